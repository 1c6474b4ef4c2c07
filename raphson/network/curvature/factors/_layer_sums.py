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
from raphson.network.curvature.factors._gram import Gram
from raphson.network.curvature.factors._kronecker_factors import MatmulTerm, Seen, Sharing, TableTerm, Term
from raphson.network.curvature.factors._layer_operator import LayerOperator, Order
from raphson.network.curvature.factors._layer_plan import Bias, KroneckerPlan, RowPlan, make_plan
from raphson.network.curvature.factors._output_factor import Sampling, Tapped, average_weights, columns
from raphson.network.curvature.factors._rest import RestGradients
from raphson.network.layers._calls import Matmul, Slot, Use

EXACT_BLOCK = 256
"""Number of parameters up to which what has no Kronecker form gets an exact block; beyond, an exact diagonal."""


MAX_LABELS = 4096
"""Number of parameters up to which each gets its label: text is dear."""


class Block(NamedTuple):
    """A finished block.

    Attributes:
        names: The parameters in it.
        first: Where the first of them begins in the vector of all.
        places: Returns the number of each row's parameter.
        operator: The operator.
        exact: Whether it (or its diagonal) is exact by construction.
    """

    names: str
    first: int
    places: Callable[[], Tensor]
    operator: SymmetricOperator
    exact: bool = False


class RowSums:
    """An exact block, or its diagonal, from per-example gradients."""

    def __init__(self, n: int, like: Tensor) -> None:
        self._block = Gram(1, n, like) if n <= EXACT_BLOCK else None
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
        tapped: Its first batch, whose uses decide on the blocks.
        sharing: How positions are combined.
        bias: Whether biases share the block of their weight.
    """

    def __init__(self, objective: Objective, tapped: Tapped, sharing: Sharing, bias: Bias) -> None:
        self.objective = objective
        self.plan = make_plan(objective.space, tapped.taps, bias)
        self._uses = tuple(use.without_input() for use in tapped.taps.uses)
        like = objective.space.empty()
        self.terms = [_terms(plan, self._uses, sharing, like) for plan in self.plan.weights]
        self.biases = [
            {
                i: MatmulTerm(_shape(self._uses[i]), sharing, False, False, like)
                for i in plan.uses
                if self._owner(i) is None
            }
            for plan in self.plan.biases
        ]
        self.rows = [RowSums(sum(map(_numel, plan.slots)), like) for plan in self.plan.rows]
        self.rest = [RowSums(objective.space.tensors[name].numel(), like) for name in self.plan.rest]

    def add(self, tapped: Tapped, sampling: Sampling) -> None:
        """Add a batch."""
        self.check(tapped)
        position, example = average_weights(self.objective, tapped.batch, tapped.taps.output.shape[:-1])
        unit = example if position is None or not tapped.positionwise else position
        work = self.work(tapped)
        for term, seen in work:
            term.add_inputs(seen, unit, example)
        rest = RestGradients(self.objective, tapped, self.plan.rest) if self.plan.rest else None
        jobs = [([one.number for one in seen], partial(term.add_outputs, seen)) for term, seen in work]
        jobs += [
            (plan.uses, partial(_add_rows, sums, plan, tapped))
            for sums, plan in zip(self.rows, self.plan.rows, strict=True)
        ]
        for u in columns(self.objective, tapped, sampling):
            tapped.taps.deliver(u, jobs)
            for sums, rows in zip(self.rest, rest(u) if rest else (), strict=True):
                sums.add(rows)

    def check(self, tapped: Tapped) -> None:
        """Raise ``InputError`` if a batch goes through other layers than the first one did."""
        uses = tapped.taps.uses
        if len(uses) != len(self._uses) or any(
            (type(a), a.weight, a.bias) != (type(b), b.weight, b.bias) for a, b in zip(uses, self._uses, strict=True)
        ):
            raise InputError(
                f"Batch {tapped.index} goes through other layers than batch 0 ({len(uses)} calls with parameters "
                f"against {len(self._uses)}), so that there is no one set of layers to factorize. Use batches of one "
                "kind, or curvature that needs no layers (ggn, fisher)."
            )

    def weight_operator(self, i: int) -> SymmetricOperator:
        """Return the Kronecker product of weight ``i``, or the sum of two."""
        return _total([term.operator() for term in self.terms[i].values()])

    def weight_block(self, i: int, operator: SymmetricOperator) -> Block:
        """Return the block of weight ``i`` with an operator."""
        plan, space = self.plan.weights[i], self.objective.space
        first = self._uses[plan.uses[0]]

        def places() -> Tensor:
            parameter = space.tensors[plan.weight.name]
            index = first.weight_index(parameter) if isinstance(first, Matmul) else plan.weight.index(parameter)[None]
            index = index + space.slices[plan.weight.name].start
            return index.reshape(-1) if plan.bias is None else joined(index, _places(plan.bias, space))

        names = ", ".join(_name(slot, space) for slot in (plan.weight, plan.bias) if slot is not None)
        return Block(names, _first(plan.weight, space), places, operator)

    def other_blocks(self) -> list[Block]:
        """Return the blocks of everything but the weights."""
        space, found = self.objective.space, []
        for plan, own in zip(self.plan.biases, self.biases, strict=True):
            parts = [own[i].bias_operator() for i in own]
            owners = {id(term): term for i in plan.uses if (term := self._owner(i)) is not None}
            # uses with a weight have their output factor in the weight's term
            parts += [term.bias_operator() for term in owners.values()]
            places = partial(_places, plan.bias, space)
            found.append(Block(_name(plan.bias, space), _first(plan.bias, space), places, _total(parts)))
        for row, sums in zip(self.plan.rows, self.rows, strict=True):
            names = ", ".join(_name(slot, space) for slot in row.slots)
            places = partial(_all_places, row.slots, space)
            found.append(Block(names, _first(row.slots[0], space), places, sums.operator(), exact=True))
        for name, sums in zip(self.plan.rest, self.rest, strict=True):
            start = space.slices[name].start
            found.append(Block(name, start, partial(whole, space, name), sums.operator(), exact=True))
        return found

    def operator(self, weights: Sequence[SymmetricOperator] | None = None) -> LayerOperator:
        """Return all blocks, with other operators for the weights if given, and the penalty."""
        given = weights or [self.weight_operator(i) for i in range(len(self.terms))]
        blocks = [self.weight_block(i, op) for i, op in enumerate(given)] + self.other_blocks()
        return assemble(self.objective, blocks)

    def work(self, tapped: Tapped) -> list[tuple[Term, list[Seen]]]:
        """Return each term with the uses of a batch that belong to it."""
        work: list[tuple[Term, list[Seen]]] = []
        for plan, terms in zip(self.plan.weights, self.terms, strict=True):
            for flipped, term in terms.items():
                numbers = [i for i, f in zip(plan.uses, plan.flipped, strict=True) if f == flipped]
                work.append((term, [Seen(tapped, i) for i in numbers]))
        work += [(term, [Seen(tapped, i)]) for own in self.biases for i, term in own.items()]
        return work

    def _owner(self, number: int) -> MatmulTerm | None:
        """Return the term of a use's weight if all uses in it have the same bias."""
        bias = self._uses[number].bias
        for plan, terms in zip(self.plan.weights, self.terms, strict=True):
            if number in plan.uses:
                flipped = plan.flipped[plan.uses.index(number)]
                alike = [i for i, f in zip(plan.uses, plan.flipped, strict=True) if f == flipped]
                term = terms[flipped]
                if isinstance(term, MatmulTerm) and all(self._uses[i].bias == bias for i in alike):
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


def assemble(objective: Objective, blocks: list[Block]) -> LayerOperator:
    """Return blocks as one operator in the order of the parameters, with zeros for those never used."""
    space = objective.space
    blocks = sorted(blocks, key=lambda block: block.first)
    if sum(block.operator.shape[-1] for block in blocks) < space.numel:
        everything = torch.arange(space.numel, device=space.device)
        used = torch.cat([block.places() for block in blocks] + [everything[:0]])
        unused = everything[~torch.isin(everything, used)]
        zero = Diagonal(space.empty().new_zeros(unused.shape[0]))
        blocks.append(Block("not used", int(unused[0]), lambda: unused, zero, exact=True))
    order = Order([block.places for block in blocks])
    operators = tuple(block.operator for block in blocks)
    names, exact = (tuple(getattr(block, what) for block in blocks) for what in ("names", "exact"))
    found = LayerOperator(operators, names, exact, order, labels=space.labels() if space.numel <= MAX_LABELS else None)
    return found.shift(objective.l2) if objective.l2 else found


def _terms(plan: KroneckerPlan, uses: Sequence[Use], sharing: Sharing, like: Tensor) -> dict[bool, Term]:
    terms: dict[bool, Term] = {}
    for number, flipped in zip(plan.uses, plan.flipped, strict=True):
        use = uses[number]
        if isinstance(use, Matmul):
            terms[flipped] = MatmulTerm(use.weight_shape, sharing, plan.bias is not None, flipped, like)
        else:
            terms[flipped] = TableTerm((plan.weight.size[0], plan.weight.size[1]), sharing, like)
    return terms


def _add_rows(sums: RowSums, plan: RowPlan, tapped: Tapped, gradients: Mapping[int, Tensor]) -> None:
    """Add per-unit gradients of scales and shifts, summed over uses, ``(k, units, n)``."""
    total: list[Tensor] | None = None
    for number in plan.uses:
        found = tapped.taps.uses[number].example_gradients(gradients[number], tapped.sum_layouts[number])
        named = dict(found)
        parts = [named[slot].flatten(2) for slot in plan.slots]
        total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
    assert total is not None
    sums.add(torch.cat(total, dim=-1))


def _shape(use: Use) -> tuple[int, int, int]:
    assert isinstance(use, Matmul)
    return use.weight_shape


def _numel(slot: Slot) -> int:
    return torch.Size(slot.size).numel()


def _name(slot: Slot, space: ParameterSpace) -> str:
    return slot.name if slot.is_whole(space.tensors[slot.name]) else f"{slot.name} (part)"


def _first(slot: Slot, space: ParameterSpace) -> int:
    start: int = space.slices[slot.name].start
    return start + slot.offset


def _all_places(slots: Sequence[Slot], space: ParameterSpace) -> Tensor:
    return torch.cat([_places(slot, space) for slot in slots])


def _places(slot: Slot, space: ParameterSpace) -> Tensor:
    start: int = space.slices[slot.name].start
    return slot.index(space.tensors[slot.name]).reshape(-1) + start


def _total(operators: Sequence[SymmetricOperator]) -> SymmetricOperator:
    """Return a sum, of dense ones as a dense one."""
    if len(operators) == 1:
        return operators[0]
    if all(isinstance(op, Dense) for op in operators):
        return Dense(torch.stack([op.to_dense() for op in operators]).sum(0))
    return Sum(tuple(operators))
