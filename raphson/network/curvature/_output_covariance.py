r"""The covariance of a network's outputs when its parameters are uncertain: :math:`J_n \Lambda^{-1} J_n^\top`.

A layer with inputs :math:`a_{np}` and gradients :math:`g_{ncp}` of output c in its own outputs has the Jacobian
:math:`\sum_p g_{ncp} a_{np}^\top`. Where the precision of the layer is diagonal in a Kronecker basis
:math:`Q_B \otimes Q_A`, with eigenvalues :math:`\lambda_{ij}`, one position gives

.. math:: \Sigma_{n,cd} = \sum_i (Q_B^\top g_{nc})_i\, (Q_B^\top g_{nd})_i\, m_{ni}, \qquad
    m_{ni} = \sum_j \frac{(Q_A^\top a_n)_j^2}{\lambda_{ij}} ,

which is three matrix products and no array of N x C x P. A diagonal precision is the same in the standard basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch, Inputs, take, tree_map
from raphson.linalg import (
    Dense,
    Diagonal,
    KroneckerEigen,
    LinearOperator,
    SymmetricOperator,
    check_dense_size,
    cholesky,
)
from raphson.network._call_place import runnable
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network._progress import shown
from raphson.network.curvature._dense_jacobian import dense_jacobian
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias, PlanPart, make_plan
from raphson.network.curvature.factors._layer_sums import joined, whole
from raphson.network.curvature.factors._output_curvature import slice_rows
from raphson.network.curvature.factors._recorded_batches import RecordedBatch, recorded_parts
from raphson.network.curvature.factors._syrk import Syrk
from raphson.network.curvature.factors._unrecognized_gradients import UnrecognizedGradients
from raphson.network.layers._layer_calls import Lookup, Matmul, weight_gradients

_TOGETHER = 2**23
"""Entries of what a model makes, or of Jacobians, for all outputs of some examples at a time."""

MANY_OUTPUTS = 512
"""Outputs from which on half of a symmetric product is worth the saving."""

Halves = Iterator[tuple[slice, Tensor, Tensor]]
"""Rows of examples with ``L`` and ``R``, ``(n, E, m)``, whose products ``L R^T`` add up to the covariance."""


class OutputCovariance:
    r"""Covariances of outputs for a Gaussian over the parameters with a given precision.

    Args:
        objective: The objective, for its model.
        precision: :math:`\Lambda`, ``(P, P)``: a ``LayerOperator`` or ``Diagonal``, which go layer by layer, or any
            other operator, for which Jacobians of some examples at a time are formed.
        bias: Whether biases share the block of their weight in a ``LayerOperator``.
        entries: Numbers of the parameters that are uncertain, where these are not all of the objective's.
    """

    def __init__(
        self, objective: Objective, precision: SymmetricOperator, bias: Bias = "joint", entries: Tensor | None = None
    ) -> None:
        self._objective, self._precision, self._bias, self._entries = objective, precision, bias, entries
        self._by_layer = entries is None and isinstance(precision, LayerOperator | Diagonal)

    def __call__(self, x: Inputs, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield outputs ``(n, ..., C)`` and their covariances ``(n, ..., C, C)``, some examples at a time."""
        for batch in self._batches(x):
            for rows in shown(self._parts(batch), "inputs", progress):
                part = batch.rows(rows)
                yield from self._by_layers(part) if self._by_layer else self._by_jacobian(part)

    def roots(self, x: Inputs, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield outputs ``(n, C)`` and square roots ``(n, C, r)`` of their covariances, some examples at a time.

        For many outputs: a layer's half of the covariance is made by one matrix product less than the covariance.
        Nothing is yielded where outputs are few or the halves are no roots.
        """
        (batch,) = self._batches(x)
        if not self._by_layer or batch.y.ndim > 2 or batch.y.shape[1] < MANY_OUTPUTS:
            return
        for rows in shown(self._parts(batch), "inputs", progress):
            for _, recorded in recorded_parts(self._objective, batch.rows(rows), 0, rows.stop - rows.start):
                f = recorded.record.output.detach()
                halves = list(self._of_layers(recorded, f.shape[1]))
                if any(left is not right or left.shape[0] != f.shape[0] for _, left, right in halves):
                    return
                yield f, halves[0][1] if len(halves) == 1 else torch.cat([left for _, left, _ in halves], -1)

    def joint(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Return the outputs ``(N, ..., C)`` and the covariance of all of them together, row-major."""
        (batch,) = self._batches(x)
        f = batch.y
        size = f.numel()
        check_dense_size((size, size), f.dtype, "joint=False, or fewer inputs")
        total = f.new_zeros(size, size)
        if not self._by_layer:
            jacobian = torch.cat([self._jacobian(batch.rows(rows)).flatten(0, 1) for rows in self._parts(batch)])
            left, right = self._halves(jacobian)
            return f, total.addmm_(left, right.mT)
        ((_, recorded),) = recorded_parts(self._objective, batch, 0, batch.n_examples)
        each = f[0].numel()
        for _, left, right in self._of_layers(recorded, each, joint=True):
            total.addmm_(left.flatten(0, 1), right.flatten(0, 1).mT)
        return f, total

    def on_device(self, x: Inputs) -> Inputs:
        """Return inputs on the device of the model."""
        return tree_map(lambda tensor: tensor.to(self._objective.device), x)

    def _batches(self, x: Inputs) -> Iterator[Batch]:
        """Yield the inputs, with their outputs in place of targets, in one batch."""
        objective = self._objective
        objective.model.refresh()
        x = self.on_device(x)
        found: list[Tensor] = []
        tree_map(found.append, x)
        if not found or found[0].ndim == 0:
            raise InputError("x holds no tensor with an axis of examples: give inputs (N, ...), as for the model.")
        n = found[0].shape[0]
        if n == 0:
            raise InputError("x has no rows: give at least one input.")
        step = max(1, 4 * _TOGETHER // objective.traits.entries)
        model = objective.model
        with torch.no_grad(), runnable(model.module or model.function, x, model.space.dtype):
            f = torch.cat([objective.model.call(None, take(x, rows, n)) for rows in slice_rows(n, step)])
        finite = torch.isfinite(f).reshape(n, -1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InputError(
                f"The outputs for row {row} of x are not finite ({int((~finite).sum())} such rows in all): check these "
                "inputs for missing or extreme values."
            )
        yield Batch(x, f, None)

    def _parts(self, batch: Batch) -> list[slice]:
        outputs = batch.y[0].numel()
        entries = self._objective.traits.entries if self._by_layer else self._precision.shape[-1]
        return slice_rows(batch.n_examples, max(1, _TOGETHER // (entries * outputs)))

    # any operator: some rows of the Jacobian at a time -------------------------------------------------------------

    def _by_jacobian(self, part: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        jacobian = self._jacobian(part)
        n, each = jacobian.shape[:2]
        left, right = self._halves(jacobian.flatten(0, 1))
        yield part.y, _by_position(left.view(n, each, -1) @ right.view(n, each, -1).mT, part.y)

    def _jacobian(self, part: Batch) -> Tensor:
        """Return the Jacobian of some examples, ``(n, E, P)``."""
        rows = dense_jacobian(self._objective, part).flatten(1, -2).detach()
        return rows if self._entries is None else rows[..., self._entries]

    def _halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``L`` and ``R`` with ``L R^T = J A^-1 J^T`` for rows of ``J``, ``(m, P)``."""
        if self._root is not None:
            half = rows @ self._root
            return half, half
        return rows, self._precision.solve(rows.mT.contiguous()).mT

    @cached_property
    def _root(self) -> Tensor | None:
        """The inverse of a dense precision's Cholesky factor, transposed."""
        if not isinstance(self._precision, Dense):
            return None
        lower = cholesky(self._precision.matrix, labels=self._precision.labels)
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return inverse.mT.contiguous()

    # layer by layer ---------------------------------------------------------------------------------------------------

    def _by_layers(self, part: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        for _, recorded in recorded_parts(self._objective, part, 0, part.n_examples):
            f = recorded.record.output.detach()
            each = f.shape[-1] if recorded.positionwise else f[0].numel()
            total = f.new_zeros(f.numel() // each, each, each)
            for rows, left, right in self._of_layers(recorded, each):
                _add_products(total[rows], left, right)
            yield f, total.view(*f.shape, f.shape[-1]) if recorded.positionwise else _by_position(total, f)

    def _of_layers(self, recorded: RecordedBatch, each: int, joint: bool = False) -> Halves:
        """Yield halves of the covariance, block by block."""
        record, space = recorded.record, self._objective.space
        plan = make_plan(space, record, self._bias)
        parts = plan.parts(space)
        blocks = self._blocks(recorded, parts)
        n = record.output.numel() // each
        unit = torch.eye(each, dtype=record.output.dtype, device=record.output.device)
        u = unit[:, None, :].expand(each, n, each).reshape(each, *record.output.shape)
        found: dict[int, Tensor] = {}

        def store(number: int, gradients: Mapping[int, Tensor]) -> None:
            found[number] = gradients[number].clone()

        # one layer's gradients at a time would need the halves inside the backward pass; all of them fit by _parts
        record.deliver(u, [([i], partial(store, i)) for i in range(len(record.calls))])
        with torch.no_grad():
            for part, (block, places) in zip(parts, blocks, strict=True):
                if part.unrecognized is None:
                    layer = _LayerRows(recorded, part, found, joint)
                    yield from layer.halves(block, partial(self._rows_of, part, places, layer))
        for name, rows in UnrecognizedGradients(self._objective, recorded, plan.unrecognized)(u).items():
            part, (block, places) = next((p, b) for p, b in zip(parts, blocks, strict=True) if p.unrecognized == name)
            own = rows.transpose(0, 1)[..., places - space.slices[name].start]
            yield from _solved(block, own)

    def _rows_of(self, part: PlanPart, places: Tensor, layer: _LayerRows) -> Tensor:
        """Return the Jacobian in the parameters of a block, in its order, ``(n, E, size)``."""
        space = self._objective.space
        totals = layer.whole_rows(space.tensors)
        first = next(iter(totals.values()))
        rows = first.new_zeros(*first.shape[:2], places.shape[0])
        for name, values in totals.items():
            start, stop = space.slices[name].start, space.slices[name].stop
            inside = (places >= start) & (places < stop)
            rows[..., inside] = values[..., places[inside] - start]
        return rows

    def _blocks(self, recorded: RecordedBatch, parts: Sequence[PlanPart]) -> list[tuple[SymmetricOperator, Tensor]]:
        """Return for each part of the plan its block of the precision and the parameters of its rows."""
        precision, space = self._precision, self._objective.space
        if isinstance(precision, Diagonal):
            return [_diagonal_block(precision.values, recorded, part, space) for part in parts]
        assert isinstance(precision, LayerOperator)
        names = [part.names(space) for part in parts]
        if names != [name for name in precision.names if name != "not used"]:
            raise InputError(
                f"These inputs go through other layers ({', '.join(names)}) than the data of the posterior did "
                f"({', '.join(precision.names)}). Use inputs of one kind, or structure='dense'."
            )
        places = torch.split(self._order, [block.shape[-1] for block in precision.blocks])
        return list(zip(precision.blocks, places, strict=True))[: len(parts)]

    @cached_property
    def _order(self) -> Tensor:
        assert isinstance(self._precision, LayerOperator)
        return self._precision.order().to(self._objective.device)


class _LayerRows:
    """The Jacobian of one part of the plan at the examples of a batch.

    Args:
        recorded: The batch.
        part: The part.
        gradients: Output gradients ``(E, *shape)`` by the numbers of the calls.
        joint: Whether halves are for the covariance of all examples together.
    """

    def __init__(self, recorded: RecordedBatch, part: PlanPart, gradients: Mapping[int, Tensor], joint: bool) -> None:
        self._recorded, self._part, self._gradients, self._joint = recorded, part, gradients, joint
        self._layouts = recorded.example_layouts if joint else recorded.independent_layouts
        self._calls = [recorded.record.calls[i] for i in part.numbers]

    def halves(self, block: SymmetricOperator, rows: Callable[[], Tensor]) -> Halves:
        """Yield halves of the covariance for a block of the precision; ``rows`` returns the Jacobian in its order."""
        weight = self._part.weight
        if weight is not None and isinstance(block, KroneckerEigen) and len(block.eigenvectors) == 2:
            calls = [call for call in self._calls if isinstance(call, Matmul) and call.weight_shape[0] == 1]
            if len(calls) == len(self._calls) and not any(weight.flipped):
                yield from self._kronecker(block, calls, weight.bias is not None)
                return
            first = self._calls[0]
            alone = len(self._calls) == 1 and not self._joint
            if isinstance(first, Lookup) and alone and isinstance(block.eigenvectors[0], Diagonal):
                yield from self._table(block, first)
                return
        yield from _solved(block, rows())

    def whole_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the Jacobian in the whole of each parameter of the part, ``(n, E, numel)``."""
        totals: dict[str, Tensor] = {}
        for number in self._part.numbers:
            call = self._recorded.record.calls[number]
            for view, values in call.example_gradients(self._gradients[number], self._layouts[number]):
                if view in self._part.views:
                    parameter = tensors[view.name]
                    if view.name not in totals:
                        totals[view.name] = values.new_zeros(values.shape[1], values.shape[0], parameter.numel())
                    view.add(totals[view.name], parameter, values.transpose(0, 1))
        return totals

    def _kronecker(self, block: KroneckerEigen, calls: Sequence[Matmul], bias: bool) -> Halves:
        q_out, q_in = block.eigenvectors
        inputs, outputs = [], []
        for number, call in zip(self._part.numbers, calls, strict=True):
            a = call.example_inputs(self._layouts[number])[:, 0]
            a = torch.cat([a, torch.ones_like(a[:, :1])], 1) if bias else a
            g = call.example_outputs(self._gradients[number], self._layouts[number])[:, :, 0]
            inputs.append(_rotated(q_in, a))
            outputs.append(_rotated(q_out, g))
        root = block.eigenvalues.rsqrt()
        n, e, o, _ = outputs[0].shape
        single = len(calls) == 1 and inputs[0].shape[-1] == 1
        if single and not self._joint:
            m = inputs[0].squeeze(-1).square() @ root.square().mT
            half = outputs[0].squeeze(-1) * m.sqrt().unsqueeze(1)
            yield slice(None), half, half
            return
        if single:
            a, g = inputs[0].squeeze(-1), outputs[0].squeeze(-1)
            for cols in slice_rows(o, max(1, _TOGETHER // (n * e * a.shape[1]))):
                half = (g[:, :, cols, None] * a[:, None, None, :] * root[cols]).flatten(2)
                yield slice(None), half, half
            return
        step = n if self._joint else max(1, _TOGETHER // (e * root.numel()))
        for rows in slice_rows(n, step):
            total = sum(
                weight_gradients(g[rows].unsqueeze(2), a[rows].unsqueeze(1))[:, 0]
                for g, a in zip(outputs, inputs, strict=True)
            )
            half = (total * root).flatten(2)
            yield rows, half, half

    def _table(self, block: KroneckerEigen, call: Lookup) -> Halves:
        """Yield halves for an embedding table, of which an example reads a few rows only."""
        number = self._part.numbers[0]
        g = (call.rows(self._gradients[number]) * call.counted()[:, None]).movedim(0, 1)
        layout = self._layouts[number]
        tokens = layout.by_example(call.tokens())
        rotated = _rotated(block.eigenvectors[1], layout.by_example(g).mT).mT
        root = block.eigenvalues.rsqrt()
        for row, (own, rows) in enumerate(zip(tokens, rotated, strict=True)):
            seen, place = own.unique(return_inverse=True)
            sums = rows.new_zeros(len(seen), *rows.shape[1:]).index_add_(0, place, rows)
            half = (sums * root[seen].unsqueeze(1)).transpose(0, 1).reshape(1, rows.shape[1], -1)
            yield slice(row, row + 1), half, half


def _solved(block: SymmetricOperator, rows: Tensor) -> Halves:
    """Yield halves for rows of the Jacobian ``(n, E, size)`` by a solve with the block."""
    flat = rows.flatten(0, 1)
    yield slice(None), rows, block.solve(flat.mT.contiguous()).mT.view(rows.shape)


def _rotated(q: LinearOperator, t: Tensor) -> Tensor:
    """Return ``Q^T`` times ``(..., d, P)``; nothing is done in the standard basis, or to unit vectors."""
    if isinstance(q, Diagonal):
        return t
    matrix = q.to_dense()
    if t.ndim == 4 and t.shape[1] == t.shape[2] >= MANY_OUTPUTS and t.shape[-1] == 1:
        eye = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
        if all(torch.equal(one.squeeze(-1), eye) for one in t):
            # the last layer of a classifier: its outputs are the model's
            return matrix.expand(len(t), -1, -1).unsqueeze(-1)
    return matrix.mT @ t


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``L R^T``, ``(n, E, E)``; of a large symmetric product half is computed."""
    if left is right and left.shape[1] >= MANY_OUTPUTS:
        total += squared_roots(left)
        return
    total.baddbmm_(left, right.mT)


def squared_roots(root: Tensor) -> Tensor:
    """Return ``R R^T`` for ``(n, E, r)``, of large ones by half the operations."""
    if root.shape[1] < MANY_OUTPUTS:
        return root @ root.mT
    found = []
    for half in root:
        product = Syrk(1, half.shape[0], half)
        product.add(half[None, None])
        found.append(product.total()[0])
    return torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)


def _by_position(total: Tensor, f: Tensor) -> Tensor:
    """Return covariances of all outputs of an example ``(n, E, E)`` as those at each position, ``(n, ..., C, C)``."""
    if f.ndim == 2:
        return total
    n, c = f.shape[0], f.shape[-1]
    t = total.shape[1] // c
    own = total.view(n, t, c, t, c).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    return own.reshape(*f.shape, c)


def _diagonal_block(
    values: Tensor, recorded: RecordedBatch, part: PlanPart, space: ParameterSpace
) -> tuple[SymmetricOperator, Tensor]:
    """Return the block of a diagonal precision that belongs to a part of the plan, and its parameters."""
    if part.unrecognized is not None:
        places = whole(space, part.unrecognized)
        return Diagonal(values[places]), places
    call = recorded.record.calls[part.numbers[0]]
    if part.weight is None or not isinstance(call, Matmul) or any(part.weight.flipped):
        places = torch.cat([view.places(space) for view in part.views])
        return Diagonal(values[places]), places
    view = part.weight.weight
    index = call.weight_index(space.tensors[view.name]) + space.slices[view.name].start
    bias = part.weight.bias
    places = index.reshape(-1) if bias is None else joined(index, bias.places(space))
    grid = values[places].view(index.shape[0], index.shape[1], -1)
    if grid.shape[0] > 1:
        return Diagonal(values[places]), places
    bases = tuple(Diagonal(torch.ones_like(grid[0, 0, :1]).expand(size)) for size in grid.shape[1:])
    return KroneckerEigen(bases, grid[0]), places
