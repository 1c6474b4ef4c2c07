r"""Which parameters of a network have Kronecker-factored curvature, and the factors of one mini-batch.

A weight in a layer has the block :math:`L \otimes R` with ``L`` on the side of its rows. What has no such block has a
diagonal: scales and shifts of norms, weights inside recurrent kernels, weights used as themselves and as their
transpose. It is estimated without a pass over single examples: with random signs :math:`z` and a root :math:`S S^T` of
the output Hessian, :math:`E[(J^T S z)^2]` is the diagonal of :math:`J^T S S^T J` (the Gauss-Newton-Bartlett estimate
of Liu et al. 2023, Sophia).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.linalg import Diagonal, all_finite
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature._kfra import required_feed_forward
from raphson.network.curvature.factors._eigen_moments import EigenMoments
from raphson.network.curvature.factors._kronecker_factors import (
    MatmulTerm,
    RecordedCall,
    Sharing,
    TableTerm,
)
from raphson.network.curvature.factors._layer_plan import KroneckerPlan, make_plan
from raphson.network.curvature.factors._output_factor import Sampling, output_factors
from raphson.network.curvature.factors._recorded_batches import RecordedBatch, average_weights
from raphson.network.curvature.factors._recursion import Recursion
from raphson.network.layers._layer_calls import LayerCall, Linear, Lookup, Matmul
from raphson.network.layers._layer_record import Consumer, LayerRecord
from raphson.network.training._training_pass import TrainingPass

LARGEST = 4096
"""Rows of a factor beyond which it is kept as its diagonal: an inverse of 4,096 rows takes a second on a processor."""

Estimator = Literal["mc", "exact", "empirical", "recursive"]


class Factors(NamedTuple):
    """The factors of a block: a matrix for each of ``G`` groups, or its diagonal.

    Attributes:
        left: On the side of the rows, ``(G, O, O)`` or ``(G, O)``.
        right: On the side of the columns, ``(G, I, I)`` or ``(G, I)``.
        flipped: Whether the side of the rows is that of the layer's inputs, whose factor is an average; the other one
            has the scale of the loss.
    """

    left: Tensor
    right: Tensor
    flipped: bool


class Measured(NamedTuple):
    """The curvature of one batch.

    Attributes:
        factors: Of each block.
        diagonal: Of the parameters in no block, ``(R,)``.
        moments: Of each block, second moments of the gradients in a given basis, ``(G, O, I)``; empty without bases.
    """

    factors: list[Factors]
    diagonal: Tensor
    moments: list[Tensor]


@dataclass(frozen=True, eq=False)
class KroneckerBlock:
    """The parameters of a block, and where they lie in the vector of all.

    Attributes:
        parameter: The parameter that the weight is, or is part of.
        names: The parameters, or which parts of them.
        weight: Where the weight's entries lie, as ``G`` times ``O`` times ``I``.
        bias: Where the bias's entries lie, which are a last column; None without one.
        shape: ``(G, O, I)`` of the weight alone.
        flipped: Whether the layer's inputs are on the side of the rows (tables).
    """

    parameter: str
    names: tuple[str, ...]
    weight: slice | Tensor
    bias: slice | Tensor | None
    shape: tuple[int, int, int]
    flipped: bool

    @property
    def owner(self) -> str:
        """The weight, which names the block."""
        return self.names[0]

    def take(self, v: Tensor) -> Tensor:
        """Return the part of a vector ``(P,)`` as matrices ``(G, O, I')``, a bias last."""
        weight = v[self.weight].view(self.shape)
        if self.bias is None:
            return weight
        return torch.cat([weight, v[self.bias].view(*self.shape[:2], 1)], 2)

    def put(self, v: Tensor, values: Tensor) -> None:
        """Write matrices ``(G, O, I')`` into a vector."""
        for place, part in ((self.weight, values[..., : self.shape[2]]), (self.bias, values[..., -1])):
            if isinstance(place, slice):  # at once, without a copy in between
                v[place].view(part.shape).copy_(part)
            elif place is not None:
                v[place] = part.reshape(-1)

    @property
    def places(self) -> list[slice | Tensor]:
        """Where its parameters lie."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class FactorPlan:
    """The blocks of a network, as its first pass shows them.

    Args:
        first: The pass.
        sharing: How positions with a shared weight are combined.

    Attributes:
        blocks: The Kronecker blocks.
        diagonal: Names of the parameters with entries in no block.
        at_output: The number of the block of the linear layer whose outputs are the network's, each with a convex loss
            of its own; None where there is none.
    """

    def __init__(self, first: TrainingPass, sharing: Sharing) -> None:
        self._space, self._sharing = first.space, sharing
        plan = make_plan(first.space, first.record, "joint")
        self._calls = tuple(call.without_input() for call in first.record.calls)
        # used both ways round, a weight has a sum of two Kronecker products, which has no cheap inverse; of a call that
        # all examples share, gradients are sums over them, whose squares only random signs keep apart
        self._weights = [weight for weight in plan.weights if len(set(weight.flipped)) == 1]
        shared = first.record.shared()
        self._weights = [weight for weight in self._weights if shared.isdisjoint(weight.calls)]
        self.blocks = [_block(first.space, weight, self._calls[weight.calls[0]]) for weight in self._weights]
        covered = torch.zeros(first.space.numel, dtype=torch.bool, device=first.space.device)
        for block in self.blocks:
            for places in block.places:
                covered[places] = True
        self._rest = ~covered
        last = first.record.at_output
        apart = first.likelihood.concave and isinstance(first.likelihood.fisher(first.f, first.batch.y), Diagonal)
        made_by = [
            i
            for i, weight in enumerate(self._weights)
            if apart and list(weight.calls) == [last] and isinstance(self._calls[weight.calls[0]], Linear)
        ]
        self.at_output = made_by[0] if made_by else None
        self.diagonal = tuple(name for name, place in first.space.slices.items() if bool(self._rest[place].any()))

    @cached_property
    def rest(self) -> Tensor:
        """Where the entries in no block lie, ``(R,)``."""
        return self._rest.nonzero().squeeze(1)

    def flops(self) -> tuple[float, float, float]:
        """Return the operations of a gradient, of all factors and of all inverses, for the first batch."""
        gradient = factors = inverses = 0.0
        for call in self._calls:
            if isinstance(call, Matmul):
                groups, o, i = call.weight_shape
                positions = call.positions * call.inner
                gradient += 6.0 * positions * groups * o * i
                factors += 1.25 * positions * groups * (o * o + i * i) + 2.0 * positions * groups * o * i
        for number, block in enumerate(self.blocks):
            groups, o, i = block.shape
            sides = (i + (block.bias is not None),) if number == self.at_output else (o, i + (block.bias is not None))
            inverses += groups * sum(n**3 for n in sides if n <= LARGEST)
        return gradient, factors, inverses

    @property
    def diagonal_places(self) -> dict[str, slice]:
        """Where the entries of each parameter of ``diagonal`` lie among those in no block."""
        slices, start, found = self._space.slices, 0, {}
        for name in self.diagonal:
            n = int(self._rest[slices[name]].sum())
            found[name], start = slice(start, start + n), start + n
        return found

    def measure(
        self,
        made: TrainingPass,
        estimator: Estimator,
        samples: int,
        generator: torch.Generator,
        bases: Sequence[Factors] = (),
    ) -> Measured:
        """Return the curvature of one batch.

        Args:
            made: The batch's pass, after its gradient was asked for.
            estimator: How the output side is estimated.
            samples: Number of samples, for ``"mc"`` and for the diagonal.
            generator: Their source.
            bases: For each block eigenvectors of its factors, or none at all.

        Returns:
            Factors, diagonal and moments; ``InputError`` if the batch went through other layers than the first one, or
            one of them is not finite.
        """
        self._check(made.record)
        recorded = RecordedBatch(0, made.batch, made.record, mixed=True)
        recursive = self._recursive(made) if estimator == "recursive" else None
        terms = [self._term(i) for i in range(len(self.blocks))]
        calls = [[RecordedCall(recorded, number) for number in weight.calls] for weight in self._weights]
        position, example = average_weights(made, made.batch, made.f.shape[:-1])
        independent = example if position is None or not recorded.positionwise else position
        for term, own in zip(terms, calls, strict=True):
            term.add_inputs(own, independent, example)
        moments = [_moments(block, basis) for block, basis in zip(self.blocks, bases, strict=bool(bases))]
        exact = self._output_diagonal(made) if estimator in {"mc", "exact"} else None
        jobs = [
            ([one.number for one in own], partial(what.add_outputs, own))
            for i, (what, own) in enumerate(zip(terms, calls, strict=True))
            if recursive is None and (exact is None or i != self.at_output)
        ]
        jobs += [
            ([one.number for one in own], partial(what.add, own))
            for what, own in zip(moments, calls, strict=bool(moments))
        ]
        diagonal = self._space.empty().new_zeros(self.rest.shape[0])
        if estimator == "empirical":
            _hand_over(made.empirical_gradients(), jobs)
        elif estimator == "exact":
            for u in output_factors(made, recorded, Sampling("exact")):
                made.record.deliver(u, jobs)
        if estimator in {"empirical", "exact"}:
            jobs = []
        if jobs or self.diagonal:
            for u in output_factors(made, recorded, Sampling("mc", samples, generator)):
                for column in u:
                    outputs, named = made.backward(column, self.diagonal)
                    _hand_over(outputs, jobs)
                    diagonal += self._squared_rest(named)
        factors = [_factors(term) for term in terms]
        if exact is not None:
            assert self.at_output is not None
            factors[self.at_output] = factors[self.at_output]._replace(left=exact)
        if recursive is not None:
            factors = [f._replace(left=h) for f, h in zip(factors, recursive, strict=True)]
        found = Measured(factors, diagonal, [basis.moments for basis in moments])
        self._check_finite(found)
        return found

    def output_jvp(self, made: TrainingPass, v: Tensor) -> Tensor:
        """Return the Jacobian times ``v``, ``(P,)``, which is zero outside block ``at_output``: one product."""
        assert self.at_output is not None
        (number,) = self._weights[self.at_output].calls
        block, x = self.blocks[self.at_output], made.record.calls[number].input()
        (weight,) = v[block.weight].view(block.shape)
        bias = None if block.bias is None else v[block.bias]
        return nn.functional.linear(x, weight, bias).reshape(made.f.shape)

    def _output_diagonal(self, made: TrainingPass) -> Tensor | None:
        """Return the factor on the side of the outputs of the layer that makes these, where it is diagonal, ``(1, O)``.

        It is the sum of the output Hessians, without samples. None where positions of an example are added up before
        they are squared.
        """
        if self.at_output is None or (self._sharing == "reduce" and made.f.ndim > 2):
            return None
        hessian = made.likelihood.fisher(made.f, made.batch.y)
        assert isinstance(hessian, Diagonal)
        return made.scaled(hessian.values).reshape(-1, made.f.shape[-1]).sum(0, keepdim=True)

    def _recursive(self, made: TrainingPass) -> list[Tensor]:
        """Return for each block the averaged matrix of its layer's outputs, ``(1, O, O)``, or its diagonal."""
        feed_forward = required_feed_forward(made.module)
        assert made.module is not None
        random = next(
            (n for n, m in made.module.named_modules() if isinstance(m, nn.Dropout) and m.training and m.p), None
        )
        if random is not None:
            raise InputError(
                f"estimator='recursive' needs a network without chance, but module '{random}' drops values: call "
                "model.eval(), or use estimator='mc'."
            )
        if made.batch.x is None:
            raise InputError("estimator='recursive' runs the layers itself: give the batch, step(x, y), not a closure.")
        features = feed_forward.features(made.batch.x)
        passed = list(feed_forward.forward_pass(features))
        weights, _ = average_weights(made, made.batch, features.shape[:-1])
        recursion = Recursion(feed_forward, self._space.empty())
        recursion.add(made, made.batch, passed, weights)
        named = dict(zip((layer.weight for layer in feed_forward.layers), recursion.hessians(), strict=True))
        found = (named[block.owner].unsqueeze(0) for block in self.blocks)
        return [h if h.shape[1] <= LARGEST else h.diagonal(dim1=1, dim2=2) for h in found]

    def _check_finite(self, measured: Measured) -> None:
        for block, factors in zip(self.blocks, measured.factors, strict=True):
            if not all(all_finite(t) for t in factors[:2]):
                raise InputError(
                    f"The curvature of the layer with parameter '{block.owner}' is not finite for this batch, while "
                    "its gradient is. Nothing was changed. Its inputs or output gradients are too large to be squared: "
                    "scale the inputs, or use a wider floating-point type."
                )
        if not all_finite(measured.diagonal):
            bad = next(n for n, p in self.diagonal_places.items() if not all_finite(measured.diagonal[p]))
            raise InputError(
                f"The curvature in parameter '{bad}' is not finite for this batch, while its gradient is. Nothing was "
                "changed."
            )

    def _squared_rest(self, named: Mapping[str, Tensor]) -> Tensor:
        if not self.diagonal:
            return self._space.empty()
        tensors = self._space.tensors
        whole = {name: named[name] if name in named else t.new_zeros(t.shape) for name, t in tensors.items()}
        return self._space.flatten(whole)[self.rest].square()

    def _term(self, i: int) -> MatmulTerm | TableTerm:
        weight, block, like = self._weights[i], self.blocks[i], self._space.empty()
        most = LARGEST**2
        if isinstance(self._calls[weight.calls[0]], Lookup):
            return TableTerm((block.shape[1], block.shape[2]), self._sharing, like, most)
        return MatmulTerm(block.shape, self._sharing, block.bias is not None, False, like, most)

    def _check(self, record: LayerRecord) -> None:
        calls = record.calls
        if len(calls) != len(self._calls) or any(
            (type(a), a.weight, a.bias) != (type(b), b.weight, b.bias) for a, b in zip(calls, self._calls, strict=True)
        ):
            raise InputError(
                f"The batch goes through other layers than the first one did ({len(calls)} calls with parameters "
                f"against {len(self._calls)}), so that there is no one set of layers to factorize. Use batches of one "
                "kind, and a network that takes the same way each time."
            )


def _hand_over(outputs: Sequence[Tensor], jobs: Sequence[tuple[Sequence[int], Consumer]]) -> None:
    """Give output gradients of all layer calls, one vector each, to those who wait for them."""
    for numbers, take in jobs:
        take({number: outputs[number].unsqueeze(0) for number in numbers})


def _factors(term: MatmulTerm | TableTerm) -> Factors:
    if isinstance(term, TableTerm):
        return Factors(term.inputs.unsqueeze(0), term.outputs.unsqueeze(0), True)
    return Factors(term.outputs, term.inputs, False)


def _moments(block: KroneckerBlock, basis: Factors) -> EigenMoments:
    left, right = (t if t.ndim == 3 else None for t in basis[:2])
    groups, o, i = block.shape
    sizes = (groups, o, i + (block.bias is not None))
    like = basis.left
    if block.flipped:
        return EigenMoments(left, right, sizes, True, False, like)
    return EigenMoments(right, left, sizes, False, block.bias is not None, like)


def _block(space: ParameterSpace, plan: KroneckerPlan, call: LayerCall) -> KroneckerBlock:
    parameter, start = space.tensors[plan.weight.name], space.slices[plan.weight.name].start
    shape = (1, plan.weight.size[0], plan.weight.size[1])
    index = plan.weight.index(parameter)
    if isinstance(call, Matmul):
        shape, index = call.weight_shape, call.weight_index(parameter)
    views = [view for view in (plan.weight, plan.bias) if view is not None]
    # state is stored by these names, so that parts of one weight need different ones
    names = tuple(v.label(space.tensors[v.name]).replace("(part)", f"(part from {v.offset})") for v in views)
    bias = None if plan.bias is None else _slice(plan.bias.places(space))
    return KroneckerBlock(
        plan.weight.name, names, _slice(index.reshape(-1) + start), bias, shape, isinstance(call, Lookup)
    )


def _slice(index: Tensor) -> slice | Tensor:
    """Return places in order as a slice, which copies nothing."""
    first, n = int(index[0]), index.shape[0]
    whole = torch.equal(index, torch.arange(first, first + n, device=index.device))
    return slice(first, first + n) if whole else index
