"""Blocks of a network's curvature, accumulated batch by batch from layer inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import Dense, Diagonal, Sum, SymmetricOperator
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature.factors._kronecker_factors import MatmulTerm, RecordedCall, Sharing, TableTerm, Term
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias, KroneckerPlan, make_plan, view_names
from raphson.network.curvature.factors._output_factor import Sampling, check_work, output_factors
from raphson.network.curvature.factors._recorded_batches import RecordedBatch, average_weights
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.curvature.factors._unrecognized_gradients import UnrecognizedGradients
from raphson.network.layers._layer_calls import LayerCall, Linear, Matmul
from raphson.network.layers._parameter_view import ParameterView

EXACT_BLOCK = 256
"""Number of parameters up to which what has no Kronecker form gets an exact block; beyond, an exact diagonal."""


class ParameterBlock(NamedTuple):
    """A finished block.

    Attributes:
        names: The parameters in it.
        first: Where the first of them begins in the vector of all.
        places: Returns the number of each row's parameter.
        operator: The operator.
        exact: Whether it (or its diagonal) is exact by construction.
        inputs: Which of its Kronecker factors is the average over inputs.
    """

    names: str
    first: int
    places: Callable[[], Tensor]
    operator: SymmetricOperator
    exact: bool = False
    inputs: int | None = None


class ExactSums:
    """An exact block, or its diagonal, from per-example gradients."""

    def __init__(self, n: int, like: Tensor) -> None:
        self._block = Syrk(1, n, like) if n <= EXACT_BLOCK else None
        self._diagonal = like.new_zeros(n)

    def add(self, rows: Tensor) -> None:
        """Add the outer products of ``(..., n)``."""
        flat = rows.reshape(-1, rows.shape[-1])
        if self._block is None:
            self._diagonal += flat.square().sum(0)
        else:
            self._block.add(flat[:, None, :, None])

    def operator(self) -> SymmetricOperator:
        """Return the block."""
        return Diagonal(self._diagonal) if self._block is None else Dense(self._block.total()[0])


class LayerSums:
    """The blocks of one objective.

    Args:
        objective: The objective.
        recorded: Its first batch, whose layer calls decide on the blocks.
        sharing: How positions are combined.
        bias: Whether biases share the block of their weight.
    """

    def __init__(self, objective: Objective, recorded: RecordedBatch, sharing: Sharing, bias: Bias) -> None:
        self.objective = objective
        self.plan = make_plan(objective.space, recorded.record, bias)
        self._calls = tuple(call.without_input() for call in recorded.record.calls)
        like = objective.space.empty()
        self.terms = [_terms(plan, self._calls, sharing, like) for plan in self.plan.weights]
        self.biases = [
            {i: MatmulTerm(_shape(self._calls[i]), sharing, False, False, like) for i in numbers if not self._owner(i)}
            for numbers in self.plan.biases.values()
        ]
        self.affine = [ExactSums(sum(view.numel for view in views), like) for views in self.plan.affine]
        self.unrecognized = [ExactSums(objective.space.tensors[name].numel(), like) for name in self.plan.unrecognized]

    def add(self, recorded: RecordedBatch, sampling: Sampling, outer: bool = False) -> None:
        """Add a batch; ``TooLargeError`` before anything is where its output factor has too many vectors.

        With ``outer`` the vectors will be needed in every layer later, that of the outputs as well.
        """
        self.check(recorded)
        work = self.work(recorded)
        direct = [one for one in work if sampling.exact and _makes_outputs(*one)]
        indirect = [one for one in work if not (sampling.exact and _makes_outputs(*one))]
        below = bool(indirect or self.affine or self.unrecognized)
        if below or outer:
            check_work(self.objective, recorded, sampling, outer or not direct)
        position, example = average_weights(self.objective, recorded.batch, recorded.record.output.shape[:-1])
        independent = example if position is None or not recorded.positionwise else position
        for term, calls in work:
            term.add_inputs(calls, independent, example)
        for term, _ in direct:
            assert isinstance(term, MatmulTerm)
            term.add_hessians(self.objective, recorded, sampling.estimator)
        if not below:
            return
        unrecognized = UnrecognizedGradients(self.objective, recorded, self.plan.unrecognized)
        jobs = [([one.number for one in calls], partial(term.add_outputs, calls)) for term, calls in indirect]
        affine = zip(self.affine, self.plan.affine.items(), strict=True)
        jobs += [(numbers, partial(_add_affine, sums, views, numbers, recorded)) for sums, (views, numbers) in affine]
        for u in output_factors(self.objective, recorded, sampling, outer=not direct):
            recorded.record.deliver(u, jobs)
            for sums, rows in zip(self.unrecognized, unrecognized(u).values(), strict=True):
                sums.add(rows)

    def check(self, recorded: RecordedBatch) -> None:
        """Raise ``InputError`` if a batch goes through other layers than the first one did."""
        calls = recorded.record.calls
        if len(calls) != len(self._calls) or any(
            (type(a), a.weight, a.bias) != (type(b), b.weight, b.bias) for a, b in zip(calls, self._calls, strict=True)
        ):
            raise InputError(
                f"Batch {recorded.index} goes through other layers than batch 0 (or its first part: "
                f"{len(calls)} calls with parameters against {len(self._calls)}, or other ones): there is no one "
                "set of layers to factorize. Use batches of one kind, or curvature that needs no layers (ggn, fisher)."
            )

    def weight_operator(self, i: int) -> SymmetricOperator:
        """Return the Kronecker product of weight ``i``, or the sum of two."""
        return _total([term.operator() for term in self.terms[i].values()])

    def weight_block(self, i: int, operator: SymmetricOperator) -> ParameterBlock:
        """Return the block of weight ``i`` with an operator."""
        plan, space = self.plan.weights[i], self.objective.space
        first = self._calls[plan.calls[0]]

        def places() -> Tensor:
            parameter = space.tensors[plan.weight.name]
            index = first.weight_index(parameter) if isinstance(first, Matmul) else plan.weight.index(parameter)[None]
            index = index + space.slices[plan.weight.name].start
            return index.reshape(-1) if plan.bias is None else joined(index, plan.bias.places(space))

        views = [view for view in (plan.weight, plan.bias) if view is not None]
        return _block(views, space, places, operator)._replace(inputs=0 if plan.flipped[0] else 1)

    def other_blocks(self) -> list[ParameterBlock]:
        """Return the blocks of everything but the weights."""
        space, found = self.objective.space, []
        for (bias, numbers), own in zip(self.plan.biases.items(), self.biases, strict=True):
            parts = [own[i].bias_operator() for i in own]
            owners = {id(term): term for i in numbers if (term := self._owner(i)) is not None}
            # calls with a weight have their output factor in the weight's term
            parts += [term.bias_operator() for term in owners.values()]
            found.append(_block([bias], space, partial(bias.places, space), _total(parts)))
        for views, sums in zip(self.plan.affine, self.affine, strict=True):
            places = partial(_all_places, views, space)
            found.append(_block(views, space, places, sums.operator(), exact=True))
        for name, sums in zip(self.plan.unrecognized, self.unrecognized, strict=True):
            start = space.slices[name].start
            found.append(ParameterBlock(name, start, partial(whole, space, name), sums.operator(), exact=True))
        return found

    def operator(self, weights: Sequence[SymmetricOperator] | None = None) -> LayerOperator:
        """Return all blocks, with other operators for the weights if given, and the penalty."""
        given = weights or [self.weight_operator(i) for i in range(len(self.terms))]
        blocks = [self.weight_block(i, op) for i, op in enumerate(given)] + self.other_blocks()
        return assemble(self.objective, blocks)

    def work(self, recorded: RecordedBatch) -> list[tuple[Term, list[RecordedCall]]]:
        """Return each term with the layer calls of a batch that belong to it."""
        work: list[tuple[Term, list[RecordedCall]]] = []
        for plan, terms in zip(self.plan.weights, self.terms, strict=True):
            for flipped, term in terms.items():
                numbers = [i for i, f in zip(plan.calls, plan.flipped, strict=True) if f == flipped]
                work.append((term, [RecordedCall(recorded, i) for i in numbers]))
        work += [(term, [RecordedCall(recorded, i)]) for own in self.biases for i, term in own.items()]
        return work

    def _owner(self, number: int) -> MatmulTerm | None:
        """Return the term of a call's weight if all calls in it have the same bias."""
        bias = self._calls[number].bias
        for plan, terms in zip(self.plan.weights, self.terms, strict=True):
            if number in plan.calls:
                flipped = plan.flipped[plan.calls.index(number)]
                same = [i for i, f in zip(plan.calls, plan.flipped, strict=True) if f == flipped]
                term = terms[flipped]
                if isinstance(term, MatmulTerm) and all(self._calls[i].bias == bias for i in same):
                    return term
        return None


def whole(space: ParameterSpace, name: str) -> Tensor:
    """Return the places of a parameter in the vector of all."""
    place = space.slices[name]
    return torch.arange(place.start, place.stop, device=space.device)


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the places of ``[W b]`` row by row, for those of the weight ``(G, O, I)`` and of the bias."""
    places = weight.new_empty(*weight.shape[:2], weight.shape[2] + 1)
    places[..., :-1], places[..., -1] = weight, bias.view(weight.shape[:2])
    return places.reshape(-1)


def assemble(objective: Objective, blocks: list[ParameterBlock]) -> LayerOperator:
    """Return blocks as one operator in the order of the parameters, with zeros for those never used."""
    space = objective.space
    blocks = sorted(blocks, key=lambda block: block.first)
    if sum(block.operator.shape[-1] for block in blocks) < space.numel:
        everything = torch.arange(space.numel, device=space.device)
        used = torch.cat([block.places() for block in blocks] + [everything[:0]])
        unused = everything[~torch.isin(everything, used)]
        zero = Diagonal(space.empty().new_zeros(unused.shape[0]))
        blocks.append(ParameterBlock("not used", int(unused[0]), lambda: unused, zero, exact=True))
    places = [block.places for block in blocks]
    operators = tuple(block.operator for block in blocks)
    names, exact = (tuple(getattr(block, what) for block in blocks) for what in ("names", "exact"))
    found = LayerOperator(
        operators,
        names,
        exact,
        lambda: torch.cat([part() for part in places]),
        tuple(block.inputs for block in blocks),
        labels=space.labels(),
    )
    return found.shift(objective.l2) if objective.l2 else found


def _terms(plan: KroneckerPlan, calls: Sequence[LayerCall], sharing: Sharing, like: Tensor) -> dict[bool, Term]:
    terms: dict[bool, Term] = {}
    for number, flipped in zip(plan.calls, plan.flipped, strict=True):
        call = calls[number]
        if isinstance(call, Matmul):
            terms[flipped] = MatmulTerm(call.weight_shape, sharing, plan.bias is not None, flipped, like)
        else:
            terms[flipped] = TableTerm((plan.weight.size[0], plan.weight.size[1]), sharing, like)
    return terms


def _add_affine(
    sums: ExactSums,
    views: Sequence[ParameterView],
    numbers: Sequence[int],
    recorded: RecordedBatch,
    gradients: Mapping[int, Tensor],
) -> None:
    """Add gradients of scales and shifts by example or position, summed over calls, ``(k, N, n)``."""
    total: Tensor | float = 0.0
    for number in numbers:
        found = dict(recorded.record.calls[number].example_gradients(gradients[number], recorded.sum_layouts[number]))
        total = total + torch.cat([found[view].flatten(2) for view in views], dim=-1)
    assert isinstance(total, Tensor)
    sums.add(total)


def _makes_outputs(term: Term, calls: Sequence[RecordedCall]) -> bool:
    """Whether a term has one call, a linear layer whose outputs are the model's."""
    if len(calls) != 1 or not isinstance(term, MatmulTerm):
        return False
    ((recorded, number),) = calls
    return number == recorded.record.at_output and isinstance(calls[0].call, Linear)


def _shape(call: LayerCall) -> tuple[int, int, int]:
    assert isinstance(call, Matmul)
    return call.weight_shape


def _block(
    views: Sequence[ParameterView],
    space: ParameterSpace,
    places: Callable[[], Tensor],
    operator: SymmetricOperator,
    exact: bool = False,
) -> ParameterBlock:
    first: int = space.slices[views[0].name].start + views[0].offset
    return ParameterBlock(view_names(views, space), first, places, operator, exact)


def _all_places(views: Sequence[ParameterView], space: ParameterSpace) -> Tensor:
    return torch.cat([view.places(space) for view in views])


def _total(operators: Sequence[SymmetricOperator]) -> SymmetricOperator:
    """Return a sum, of dense ones as a dense one."""
    if len(operators) == 1:
        return operators[0]
    if all(isinstance(op, Dense) for op in operators):
        return Dense(torch.stack([op.to_dense() for op in operators]).sum(0))
    return Sum(tuple(operators))
