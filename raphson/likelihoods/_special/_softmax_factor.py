r"""A square root of the softmax Fisher information that is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raphson.linalg import LinearOperator


@dataclass(frozen=True, eq=False)
class SoftmaxFactor(LinearOperator):
    r"""A map :math:`S` of ``K - 1`` columns with :math:`S S^\top = s (\operatorname{diag} p - p p^\top)`, never formed.

    With :math:`u = \sqrt p`, which has length 1, the information is :math:`s D (I - u u^\top) D`,
    :math:`D = \operatorname{diag}(u)`. The reflection

    .. math:: H = I - \frac{w w^\top}{1 + u_K}, \qquad w = u + e_K,

    takes :math:`e_K` to :math:`-u`, so that its other columns are an orthonormal basis of what is orthogonal to
    :math:`u`, and :math:`S = \sqrt s\, D\, H_{:, 1..K-1}`. Nothing cancels: :math:`u_K` is not negative.

    Args:
        probabilities: ``p``, ``(..., K)``, of sum 1.
        root: :math:`\sqrt{s\,p}`, ``(..., K)``.
    """

    _part = "root"
    probabilities: Tensor
    root: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape ``(..., K, K - 1)``."""
        return torch.Size((*self.root.shape, self.root.shape[-1] - 1))

    @cached_property
    def _reflection(self) -> tuple[Tensor, Tensor]:
        """The first ``K - 1`` entries of ``u``, and ``-1 / (1 + u_K)``."""
        u = self.probabilities.sqrt()
        return u[..., :-1], -1 / (1 + u[..., -1:])

    def mv(self, v: Tensor) -> Tensor:
        u, factor = self._reflection
        along = (u * v).sum(-1, keepdim=True)
        return self.root * torch.cat([torch.addcmul(v, u, factor * along), -along], -1)

    def rmv(self, v: Tensor) -> Tensor:
        u, factor = self._reflection
        scaled = self.root * v
        first, last = scaled[..., :-1], scaled[..., -1:]
        return torch.addcmul(first, u, factor * (u * first).sum(-1, keepdim=True) - last)

    def to_dense(self) -> Tensor:
        u, factor = self._reflection
        reflected = torch.diag_embed(torch.ones_like(u)) + u.unsqueeze(-1) * (factor * u).unsqueeze(-2)
        return self.root.unsqueeze(-1) * torch.cat([reflected, -u.unsqueeze(-2)], -2)

    def mm(self, v: Tensor) -> Tensor:
        u, factor = self._reflection
        along = u.unsqueeze(-2) @ v
        reflected = torch.cat([torch.addcmul(v, u.unsqueeze(-1), factor.unsqueeze(-1) * along), -along], -2)
        return self.root.unsqueeze(-1) * reflected
