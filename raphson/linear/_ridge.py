r"""The ridge penalty of a linear model, on the slopes of the table's columns.

.. math:: \frac\lambda2 \sum_j b_j^T Q_j b_j, \qquad Q_j = I \ \text{ or } \ H_j^T (I - \tfrac1C 1 1^T) H_j ,

where :math:`b_j` are the parameters of column j and :math:`H_j` is its constraint matrix. The second form is for
likelihoods that see differences of outputs only: the penalty then acts on sum-to-zero coefficients, and predictions do
not depend on which class is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raphson.linear._output_map import OutputMap


@dataclass(frozen=True, eq=False)
class Ridge:
    """A quadratic form in the parameters of standardized columns.

    Attributes:
        output_map: How the parameters act on the outputs.
        columns: The penalty of each column, ``(D',)``, zero for the ones.
        centered: Whether it acts on sum-to-zero coefficients.
    """

    output_map: OutputMap
    columns: Tensor
    centered: bool

    @staticmethod
    def of(output_map: OutputMap, scale: Tensor, l2: float, centered: bool) -> Ridge:
        """Return the penalty ``l2`` on the slopes ``b_j / s_j`` of the table's columns, s being ``scale``."""
        columns, ones = np.zeros(len(scale) + output_map.intercept), int(output_map.intercept)
        if l2:
            with np.errstate(all="ignore"):
                np.divide(l2, np.square(scale.numpy()), out=columns[ones:])
        return Ridge(output_map, torch.from_numpy(columns), centered)

    @cached_property
    def matrices(self) -> list[Tensor]:
        """Q of each group of columns, ``(r, r)``."""
        if not self.centered:
            return [torch.eye(r, dtype=torch.float64) for r, _ in self.output_map.shapes]
        return self.output_map.centered_products

    @property
    def own_and_shared(self) -> Tensor:
        """Of outputs selected without constraints: a and b, of which Q is :math:`a I + b 1 1^T`, ``(2,)``."""
        q = self.matrices[0].numpy()
        shared = float(q[0, 1]) if len(q) > 1 else 0.0
        return torch.tensor([float(q[0, 0]) - shared, shared], dtype=torch.float64)

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal, ``(P,)``."""
        parts = zip(self.matrices, self.output_map.groups, strict=True)
        # a third of the time of PyTorch's calls
        found = [np.outer(q.numpy().diagonal(), self.columns[g.columns].numpy()).ravel() for q, g in parts]
        return torch.from_numpy(found[0] if len(found) == 1 else np.concatenate(found))

    def mv(self, theta: Tensor) -> Tensor:
        """Return the gradient at ``theta`` ``(P,)``, which is the product with the matrix of the form."""
        if len(self.output_map.shapes) > 1:
            return self.add_product(torch.zeros_like(theta), theta)
        (q, columns), table = self._in(theta.dtype)[0], theta.view(self.output_map.shapes[0])
        return ((q @ table).mul_(columns) if self.centered else table * columns).view(-1)

    def add_product(self, total: Tensor, theta: Tensor) -> Tensor:
        """Add the product with the matrix of the form and ``theta`` to ``total``, both ``(P,)``, in place."""
        start = 0
        for (q, columns), (r, d) in zip(self._in(theta.dtype), self.output_map.shapes, strict=True):
            part = slice(start, start + r * d)
            own = theta[part].view(r, d)
            total[part].view(r, d).addcmul_(q @ own if self.centered else own, columns)
            start += r * d
        return total

    def _in(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Return Q and the penalties of each group in an element type."""
        if dtype not in self._cast:
            groups = zip(self.matrices, self.output_map.groups, strict=True)
            self._cast[dtype] = [(q.to(dtype), self.columns[g.columns].to(dtype)) for q, g in groups]
        return self._cast[dtype]

    @cached_property
    def _cast(self) -> dict[torch.dtype, list[tuple[Tensor, Tensor]]]:
        return {}

    def add_to(self, hessian: Tensor) -> None:
        """Add the matrix to a dense Hessian ``(P, P)`` in place."""
        if not self.centered:
            hessian.diagonal().add_(self.diagonal)
            return
        start = 0
        for q, group, (r, d) in zip(self.matrices, self.output_map.groups, self.output_map.shapes, strict=True):
            block = hessian[start : start + r * d, start : start + r * d]
            strides = (d * block.stride(0), block.stride(0), d * block.stride(1), block.stride(1))
            diagonals = block.as_strided((r, d, r, d), strides).diagonal(dim1=1, dim2=3)
            diagonals += (q[:, :, None] * self.columns[group.columns]).to(hessian.dtype)
            start += r * d
