r"""A square root of the softmax Fisher information that is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.linalg import LinearOperator


@dataclass(frozen=True, eq=False)
class SoftmaxFactor(LinearOperator):
    r"""The map :math:`S = \operatorname{diag}(q) - p\,q^\top`, batched and never formed.

    With :math:`q = \sqrt{s\,p}` and :math:`\sum_c p_c = 1` it satisfies
    :math:`S S^\top = s\,(\operatorname{diag}(p) - p p^\top)`. Column ``c`` is
    :math:`\sqrt{s\,p_c}\,(e_c - p)`: minus the softmax gradient at class ``c``, by the root of its weight.

    Args:
        probabilities: ``p``, ``(..., K)``.
        root: ``q``, ``(..., K)``.
    """

    probabilities: Tensor
    root: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape ``(..., K, K)``."""
        return torch.Size((*self.root.shape, self.root.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return self.root.dtype

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self.root.device

    def mv(self, v: Tensor) -> Tensor:
        """Return ``S v`` for ``v`` of shape ``(..., K)``."""
        scaled = self.root * v
        return scaled - self.probabilities * scaled.sum(-1, keepdim=True)

    def rmv(self, v: Tensor) -> Tensor:
        """Return ``S^T v`` for ``v`` of shape ``(..., K)``."""
        return self.root * (v - (self.probabilities * v).sum(-1, keepdim=True))

    def to_dense(self) -> Tensor:
        """Return the ``(..., K, K)`` tensor."""
        return torch.diag_embed(self.root) - self.probabilities.unsqueeze(-1) * self.root.unsqueeze(-2)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``S V`` for ``V`` of shape ``(..., K, k)``."""
        scaled = self.root.unsqueeze(-1) * v
        return scaled - self.probabilities.unsqueeze(-1) * scaled.sum(-2, keepdim=True)
