"""Second moments of the gradients of a layer in the eigenbasis of its Kronecker factors (EKFAC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raphson.linalg import Diagonal, KroneckerEigen, LinearOperator, Matrix, SymmetricOperator, rounding
from raphson.network.curvature.factors._kronecker_factors import RecordedCall, grouped
from raphson.network.curvature.factors._squared_gradients import squared_gradients, squared_table
from raphson.network.layers._layer_calls import Lookup, Matmul


class EigenMoments:
    """The eigenbasis of a layer's factors and the second moments of its gradients in it.

    Args:
        q_in: Eigenvectors of the inputs' factor, ``(G, I', I')``; None for a factor that is diagonal.
        q_out: Of the outputs' factor, ``(G, O, O)``, or None.
        shape: ``(G, ., .)`` of the moments, in the orientation of the weight.
        table: Whether the weight is a table, which has the inputs on the side of its rows.
        joint: Whether the bias is a last column of the weight.
        like: Gives type and device.

    Attributes:
        moments: The sums of squares.
    """

    def __init__(
        self,
        q_in: Tensor | None,
        q_out: Tensor | None,
        shape: tuple[int, int, int],
        table: bool,
        joint: bool,
        like: Tensor,
    ) -> None:
        self._q_in, self._q_out, self._table, self._joint = q_in, q_out, table, joint
        self.moments = like.new_zeros(shape)

    def add(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:
        """Add a batch's squared gradients."""
        if self._table:
            self._add_table(calls, gradients)
            return
        inputs, outputs = [], []
        for one in calls:
            assert isinstance(one.call, Matmul)
            a = one.recorded.summed_inputs(one.number)
            a = torch.cat([a, torch.ones_like(a[:, :, :1])], dim=2) if self._joint else a
            inputs.append(_rotated(self._q_in, a))
            outputs.append(_rotated(self._q_out, one.call.example_outputs(gradients[one.number], one.summed)))
        self.moments += squared_gradients(inputs, outputs)

    def _add_table(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:
        plain = [gradients[one.number] for one in calls]
        rotated = plain if self._q_out is None else [g @ self._q_out[0] for g in plain]
        first = calls[0].call
        assert isinstance(first, Lookup)
        if self._q_in is None and len(calls) == 1:
            self.moments[0] += squared_table(first, rotated[0], calls[0].summed)
            return
        for n in range(calls[0].summed.n):
            rows = [
                one.call.example_gradients(g, one.summed, slice(n, n + 1))[0][1]
                for one, g in zip(calls, rotated, strict=True)
            ]
            total = torch.stack(rows).sum(0)[:, 0]
            self.moments[0] += (total if self._q_in is None else self._q_in[0].mT @ total).square().sum(0)

    def operator(self) -> SymmetricOperator:
        """Return the block."""
        sizes = self.moments.shape[1:]
        order = (self._q_in, self._q_out) if self._table else (self._q_out, self._q_in)
        blocks = []
        for g, moments in enumerate(self.moments):
            bases: list[LinearOperator] = [
                Diagonal(moments.new_ones(size)) if q is None else Matrix(q[g])
                for q, size in zip(order, sizes, strict=True)
            ]
            exact = self._q_in is None and self._q_out is None
            blocks.append(KroneckerEigen(tuple(bases), moments if exact else _without_rounding(moments)))
        return blocks[0] if len(blocks) == 1 else grouped(blocks)


def _without_rounding(moments: Tensor) -> Tensor:
    """Return second moments with zeros where they are squares of what rounding leaves of a zero gradient."""
    level = rounding(moments.numel(), moments.dtype) ** 2
    return torch.where(moments <= level * moments.amax(), 0.0, moments)


def _rotated(q: Tensor | None, t: Tensor) -> Tensor:
    """Return ``Q^T t`` for each of ``G`` groups, ``(..., G, d, P)``: one product a group, of all examples together."""
    if q is None:
        return t
    rows = t.movedim(-3, 0).transpose(-2, -1)
    turned = rows.reshape(rows.shape[0], -1, rows.shape[-1]) @ q
    return turned.view(rows.shape).transpose(-2, -1).movedim(0, -3)
