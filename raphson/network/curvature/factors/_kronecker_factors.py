r"""The two factors of a layer's Kronecker-factored curvature, accumulated over the layer calls of its weight.

With inputs :math:`a_i`, output gradients :math:`g_{ic}` (weights and scale inside) and :math:`\omega_i` the weight of
position i,

.. math:: \sum_{i,c} g_{ic} g_{ic}^T \otimes a_i a_i^T \approx B \otimes A, \qquad
    A = \frac{\sum_i \omega_i a_i a_i^T}{\sum_i \omega_i}, \quad B = \sum_{i,c} g_{ic} g_{ic}^T ,

so that the scale of the data is in B once (Martens and Grosse 2015, eq. 7). *Expand* takes every position as its own
term i; *reduce* takes examples, with the mean of the inputs and the sum of the output gradients over positions
(Eschenhagen et al. 2023, eqs. 19 and 22).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods import HessianSum
from raphson.linalg import (
    Dense,
    Diagonal,
    EqualBlocks,
    Kronecker,
    SymmetricOperator,
    widest_float,
)
from raphson.network._weighted_loss import WeightedLoss
from raphson.network.curvature.factors._output_factor import Estimator, add_output_hessians, output_hessians
from raphson.network.curvature.factors._patch_syrk import PatchSyrk
from raphson.network.curvature.factors._recorded_batches import RecordedBatch
from raphson.network.curvature.factors._syrk import DiagonalSyrk, Syrk, as_operator, syrk_of
from raphson.network.layers._convolution import Convolution
from raphson.network.layers._layer_calls import LayerCall, Lookup, Matmul
from raphson.network.layers._parameter_view import PositionLayout

Sharing = Literal["expand", "reduce"]

_DENSE_TABLE = 2048
"""Rows of a table up to which reduce stores the covariance of the means; beyond, it counts as in expand."""

_DENSE_GROUP = 256
"""Size of the blocks of a grouped convolution up to which they are stored as dense blocks in one tensor."""


class RecordedCall(NamedTuple):
    """One layer call in one batch, by its number."""

    recorded: RecordedBatch
    number: int

    @property
    def call(self) -> LayerCall:
        """The call."""
        return self.recorded.record.calls[self.number]

    @property
    def example(self) -> PositionLayout:
        """Which positions belong to which example."""
        return self.recorded.example_layouts[self.number]

    @property
    def independent(self) -> PositionLayout:
        """The same with each position as an example of its own, where they are independent."""
        return self.recorded.independent_layouts[self.number]

    @property
    def summed(self) -> PositionLayout:
        """Over which positions gradients are summed."""
        return self.recorded.sum_layouts[self.number]


class Term(abc.ABC):
    """Sums for one Kronecker product: ``left`` belongs to the rows of the weight, ``right`` to its columns."""

    @abc.abstractmethod
    def add_inputs(self, calls: Sequence[RecordedCall], independent: Tensor | None, example: Tensor | None) -> None:
        """Add the inputs of a batch, with weights of independent examples or positions, and of examples."""

    @abc.abstractmethod
    def add_outputs(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:
        """Add output gradients ``(k, *shape)`` of the calls."""

    @abc.abstractmethod
    def operator(self) -> SymmetricOperator:
        """Return the Kronecker product."""


@dataclass(eq=False)
class MatmulTerm(Term):
    """Sums of a linear or convolutional weight.

    Args:
        shape: ``(G, O, I)`` of the weight.
        sharing: How positions are combined.
        joint: Whether the bias is a last column of the weight.
        flipped: Whether the weight is stored as its transpose, columns first.
        like: Gives type and device.
        most: Number of elements up to which a factor is dense, of a larger one there is the diagonal only; None for the
            largest array that is made unasked.
    """

    shape: tuple[int, int, int]
    sharing: Sharing
    joint: bool
    flipped: bool
    like: Tensor
    most: int | None = None

    def __post_init__(self) -> None:
        groups, o, i = self.shape
        # a joint bias is one more input, which is 1
        self._inputs = syrk_of(groups, i, self.like, int(self.joint), self.most)
        self._patches: PatchSyrk | None = None
        self._means = self.like.new_zeros(groups, i)
        self._outputs = syrk_of(groups, o, self.like, most=self.most)
        self._hessians: HessianSum | None = None
        self._count: float | Tensor = 0.0

    def add_inputs(self, calls: Sequence[RecordedCall], independent: Tensor | None, example: Tensor | None) -> None:  # noqa: D102
        if self.sharing == "reduce":
            self.add_rows(_mean_inputs(calls).unsqueeze(-1), example)
            return
        for one in calls:
            assert isinstance(one.call, Matmul)
            weights = None if independent is None else one.independent.per_position(independent)
            whole = isinstance(self._inputs, Syrk)
            if whole and isinstance(one.call, Convolution) and PatchSyrk.suits(one.call):
                self._add_images(one.call, weights)
                continue
            for rows, x in one.call.input_chunks():
                self.add_rows(x, None if weights is None else weights[rows])

    def add_rows(self, x: Tensor, weights: Tensor | None) -> None:
        """Add inputs ``(M, G, I, L)`` with weights ``(M,)``."""
        x, means = self._weighted(x, weights, x.shape[3])
        if self.joint:
            self._means += means.sum((0, 3)) if x.shape[3] > 1 else means.squeeze(3).sum(0)
        self._inputs.add(x)

    def _add_images(self, call: Convolution, weights: Tensor | None) -> None:
        """Add the input of a convolution with weights ``(N,)``, by its autocorrelation."""
        x, means = self._weighted(call.input(), weights, call.inner)
        if self.joint:
            self._means += call.patches(means.sum(0, keepdim=True)).sum((0, 3))
        if self._patches is None:
            self._patches = PatchSyrk(x.shape[1], call.kernel, self.like)
        self._patches.add(x, call)

    def _weighted(self, x: Tensor, weights: Tensor | None, inner: int) -> tuple[Tensor, Tensor]:
        """Count inputs of ``inner`` positions each; return them times root weights, and for a bias times weights."""
        if weights is None:
            self._count += inner * x.shape[0]
            return x, x
        self._count = self._count + inner * total_of(weights)
        root = weights.to(x.dtype).sqrt().view(-1, *(1,) * (x.ndim - 1))
        rooted = x * root
        return rooted, rooted * root if self.joint else rooted

    def add_outputs(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:  # noqa: D102
        if self.sharing == "reduce":
            total = torch.stack([_summed_outputs(one, gradients[one.number]) for one in calls]).sum(0)
            self._outputs.add(total.flatten(0, 1).unsqueeze(-1))
            return
        for one in calls:
            assert isinstance(one.call, Matmul)
            self._outputs.add(one.call.outputs(gradients[one.number]).flatten(0, 1))

    def add_hessians(self, objective: WeightedLoss, recorded: RecordedBatch, estimator: Estimator) -> None:
        """Add the outer products of a batch where the outputs are the model's, whose Hessians they add up to."""
        f = recorded.record.output.detach()
        if self._hessians is None:
            self._hessians = output_hessians(objective, estimator, f, diagonal=isinstance(self._outputs, DiagonalSyrk))
        add_output_hessians(self._hessians, objective, recorded.batch, f)

    @cached_property
    def inputs(self) -> Tensor:
        """The average of input outer products, ``(G, I, I)``, with a last row and column for a joint bias.

        Of large ones there is the diagonal only, ``(G, I)``.
        """
        a, i = self._inputs.total(), self.shape[2]
        if self._patches is not None:
            a[0, :i, :i] += self._patches.total()
        if self.joint and a.ndim == 2:
            a[:, i] = self._count
        elif self.joint:
            a[:, i, :i], a[:, :i, i], a[:, i, i] = self._means, self._means, self._count
        return divided(a, self._count)

    @cached_property
    def outputs(self) -> Tensor:
        """The sum of output gradient outer products, ``(G, O, O)``; of large ones the diagonal only, ``(G, O)``."""
        hessians = None if self._hessians is None else self._hessians.total().unsqueeze(0)
        if hessians is None or not self._outputs.empty:
            return self._outputs.total() if hessians is None else self._outputs.total() + hessians
        return hessians

    def operator(self, outputs: Tensor | None = None) -> SymmetricOperator:
        """Return the Kronecker product, with another output factor if given."""
        a, b = self.inputs, self.outputs if outputs is None else outputs
        left, right = (a, b) if self.flipped else (b, a)
        blocks = [Kronecker((as_operator(u), as_operator(v))) for u, v in zip(left, right, strict=True)]
        return blocks[0] if len(blocks) == 1 else grouped(blocks)

    def bias_operator(self) -> SymmetricOperator:
        """Return the block of a separate bias: its input is 1."""
        b = self.outputs
        if b.ndim == 2:
            return Diagonal(b.reshape(-1))
        return Dense(b[0]) if b.shape[0] == 1 else EqualBlocks(b)


@dataclass(eq=False)
class TableTerm(Term):
    """Sums of an embedding table ``(V, E)``: the inputs are unit vectors, so that their covariance is diagonal.

    Args:
        shape: ``(V, E)``.
        sharing: How positions are combined.
        like: Gives type and device.
        most: As for ``MatmulTerm``.
    """

    shape: tuple[int, int]
    sharing: Sharing
    like: Tensor
    most: int | None = None

    def __post_init__(self) -> None:
        v, e = self.shape
        self._dense = self.sharing == "reduce" and v <= _DENSE_TABLE
        self._inputs = self.like.new_zeros(v, v) if self._dense else self.like.new_zeros(v)
        self._outputs = syrk_of(1, e, self.like, most=self.most)
        self._count: float | Tensor = 0.0

    def add_inputs(self, calls: Sequence[RecordedCall], independent: Tensor | None, example: Tensor | None) -> None:  # noqa: D102
        for one in calls:
            assert isinstance(one.call, Lookup)
            counted = one.call.counted().to(self.like.dtype)
            if self._dense:
                bags = _bags(one, self.shape[0], counted)
                weighted = bags if example is None else bags * example.to(bags)[:, None]
                self._inputs += weighted.mT @ bags
                self._count = self._count + (bags.shape[0] if example is None else total_of(example))
                continue
            weights = counted
            if independent is not None:
                weights = counted * one.independent.per_position(independent).to(counted)
            self._inputs.index_add_(0, one.call.tokens(), weights)
            self._count = self._count + total_of(weights)

    def add_outputs(self, calls: Sequence[RecordedCall], gradients: Mapping[int, Tensor]) -> None:  # noqa: D102
        for one in calls:
            assert isinstance(one.call, Lookup)
            g = one.call.rows(gradients[one.number]) * one.call.counted()[:, None]
            if self._dense:
                g = one.summed.by_example(g.movedim(0, 1)).sum(1)
            self._outputs.add(g.reshape(-1, 1, self.shape[1], 1))

    @cached_property
    def inputs(self) -> Tensor:
        """The average of input outer products: its diagonal ``(V,)``, or ``(V, V)``."""
        return divided(self._inputs.clone(), self._count)

    @cached_property
    def outputs(self) -> Tensor:
        """The sum of output gradient outer products, ``(E, E)``, or its diagonal."""
        return self._outputs.total()[0]

    def operator(self) -> SymmetricOperator:  # noqa: D102
        a = self.inputs
        return Kronecker((as_operator(a), as_operator(self.outputs)))


def total_of(weights: Tensor) -> Tensor:
    """Return a sum of weights where they are: to look at a number on another device is to wait for it."""
    return weights.sum(dtype=widest_float(weights.device))


def divided(sums: Tensor, count: float | Tensor) -> Tensor:
    """Return sums divided in place by a number of examples, sums of none as they are."""
    if isinstance(count, Tensor):
        return sums.div_(torch.where(count > 0, count, torch.ones_like(count)))
    return sums.div_(count) if count > 0 else sums


def grouped(blocks: Sequence[SymmetricOperator]) -> SymmetricOperator:
    """Return blocks of one size as one operator: a tensor of dense blocks if they are small."""
    from raphson.linalg import BlockDiagonal

    if blocks[0].shape[-1] <= _DENSE_GROUP:
        return EqualBlocks(torch.stack([block.to_dense() for block in blocks]))
    return BlockDiagonal(tuple(blocks))


def _mean_inputs(calls: Sequence[RecordedCall]) -> Tensor:
    """Return the mean inputs over positions and calls, ``(N, G, I)``."""
    parts = [one.call.example_inputs(one.example) for one in calls if isinstance(one.call, Matmul)]
    return torch.stack([part.sum(-1) for part in parts]).sum(0) / sum(part.shape[-1] for part in parts)


def _summed_outputs(one: RecordedCall, g: Tensor) -> Tensor:
    """Return output gradients summed over ``summed`` positions, ``(N, k, G, O)``."""
    assert isinstance(one.call, Matmul)
    return one.call.example_outputs(g, one.summed).sum(-1)


def _bags(one: RecordedCall, v: int, counted: Tensor) -> Tensor:
    """Return the share of each row of the table among the positions of an example, ``(N, V)``."""
    assert isinstance(one.call, Lookup)
    tokens = one.example.by_example(one.call.tokens())
    weights = one.example.by_example(counted)
    bags = counted.new_zeros(tokens.shape[0], v).scatter_add_(1, tokens, weights)
    return bags / weights.sum(1, keepdim=True).clamp_min(1.0)
