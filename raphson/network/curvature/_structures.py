"""Dense, diagonal and block forms of a network's curvature, exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Literal, get_args

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.data import Batch
from raphson.linalg import BlockDiagonal, Dense, Diagonal, SymmetricOperator, check_dense_size
from raphson.network._objective import Objective
from raphson.network._parameters import ParameterSpace
from raphson.network.curvature._dense_jacobian import dense_jacobian
from raphson.network.curvature._layer_diagonal import layer_diagonal
from raphson.network.curvature.factors._output_curvature import OutputCurvature, slice_rows
from raphson.network.curvature.factors._output_factor import Estimator, OutputDraw
from raphson.network.layers._layer_calls import Linear
from raphson.network.layers._recorder import record_feed_forward

Structure = Literal["implicit", "dense", "diagonal", "blocks"]
Blocks = Literal["tensor", "layer"]

_JACOBIAN = 2**24
"""Entries of the per-example Jacobians that are formed at once."""


def check_structure(structure: str, blocks: str) -> None:
    """Raise ``InputError`` for a word that is not a structure or a kind of blocks."""
    if structure not in get_args(Structure):
        raise InputError(f"structure is {structure!r}, but it must be one of {', '.join(get_args(Structure))}.")
    if blocks not in get_args(Blocks):
        raise InputError(f"blocks is {blocks!r}, but it must be 'tensor' (one for each parameter) or 'layer'.")


def gauss_newton_structure(
    objective: Objective, middle: OutputCurvature, structure: Structure, blocks: Blocks
) -> SymmetricOperator:
    """Return the sum of ``J^T M J`` over the data as a dense, diagonal or block-diagonal operator."""
    if structure == "blocks":
        return block_diagonal(
            objective, blocks, lambda part: gauss_newton_structure(part, middle, "dense", blocks).to_dense()
        )
    if structure == "diagonal" and middle.kind == "mc":
        return _finished(objective, layer_diagonal(objective, draw=_draw(objective, middle)))
    estimator = _factor_estimator(objective, middle) if structure == "diagonal" else None
    if estimator is not None:
        return _finished(objective, layer_diagonal(objective, estimator))
    space = objective.space
    dense = structure == "dense"
    total = _empty(space, dense)
    # sampled targets are drawn in the order of the parts below
    whole = _of_last_layer(objective, middle) if dense and middle.kind != "mc" else None
    if whole is not None:
        return _finished(objective, whole)
    for jacobian, image in _jacobian_chunks(objective, middle):
        total += jacobian.mT @ image if dense else (jacobian * image).sum(0)
    return _finished(objective, total)


def _factor_estimator(objective: Objective, middle: OutputCurvature) -> Estimator | None:
    """Return which output factor has these matrices as its outer product; None where there is none."""
    if middle.kind == "empirical":
        return "empirical"
    if middle.kind == "expected" or objective.information_is_observed:
        return "exact"
    return "observed" if objective.likelihood.concave else None


def _draw(objective: Objective, middle: OutputCurvature) -> OutputDraw:
    """Return what draws the factors of the batches with the signs that they have in all structures."""
    generators: dict[int, torch.Generator] = {}

    def draw(f: Tensor, batch: Batch, index: int) -> Tensor:
        if index not in generators:
            generators[index] = middle.generator(f.device, index)
        return middle.factor(objective.likelihood, f, batch.y, generators[index])

    return draw


def block_diagonal(objective: Objective, blocks: Blocks, dense: Callable[[Objective], Tensor]) -> BlockDiagonal:
    """Return one dense block for each parameter or module, which ``dense`` makes of the objective in these only."""
    made = []
    for names in groups(objective.space, blocks):
        part = objective.restricted(names)
        made.append(Dense(dense(part), labels=part.space.labels()))
    return BlockDiagonal(tuple(made), labels=objective.space.labels())


def groups(space: ParameterSpace, blocks: Blocks) -> list[list[str]]:
    """Return the names of the parameters that share a block: consecutive ones of one module, or each by itself."""
    if blocks == "tensor":
        return [[name] for name in space.names]
    return [list(names) for _, names in groupby(space.names, lambda name: name.rpartition(".")[0])]


def _jacobian_chunks(objective: Objective, middle: OutputCurvature) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``J`` and ``M J`` with weights and scale, ``(positions C, P)``, of some examples at a time."""
    p = objective.n_parameters
    for index, batch in enumerate(objective.batches()):
        with torch.no_grad():
            f = objective.outputs(batch, index)
        objective.check_outputs(f, batch, index)
        generator = middle.generator(f.device, index)
        width = max(1, _JACOBIAN // (f[0].numel() * p))
        for rows in slice_rows(batch.n_examples, width):
            part = batch.rows(rows)
            jacobian = dense_jacobian(objective, part)
            image = middle.operator(objective.likelihood, f[rows], part.y, generator).mm(jacobian)
            weights = objective.position_weights(part)
            image = image * objective.scale if weights is None else image * (objective.scale * weights)[..., None, None]
            yield jacobian.reshape(-1, p), image.reshape(-1, p)


def _of_last_layer(objective: Objective, middle: OutputCurvature) -> Tensor | None:
    """Return the dense sum where the parameters are those of a feed-forward network's last layer; None elsewhere.

    The Jacobian is ``I (x) a_n^T`` with the layer's inputs (and a 1 for the bias): the block of outputs c and d is
    ``sum_n M_ncd a_n a_n^T``, a product of D columns instead of C D, for half of all pairs.
    """
    network, space = objective.feed_forward, objective.space
    total: Tensor | None = None
    names: tuple[str, str | None] = ("", None)
    for index, batch in enumerate(objective.batches()):
        record = None if network is None else record_feed_forward(network, space, batch.x)
        if record is None or len(record.calls) != 1 or record.at_output is None or record.output.ndim > 2:
            return None
        (call,), f = record.calls, record.output.detach()
        if not isinstance(call, Linear) or call.weight is None:
            return None
        objective.check_outputs(f, batch, index)
        names = call.weight.name, None if call.bias is None else call.bias.name
        a = call.input().detach()
        a = a if call.bias is None else torch.cat([a, torch.ones_like(a[:, :1])], 1)
        (n, c), d = f.shape, a.shape[1]
        if c * d != space.numel:
            return None
        total = a.new_zeros(c, d, c, d) if total is None else total
        generator = middle.generator(f.device, index)
        for rows in slice_rows(n, max(1, _JACOBIAN // (c * max(c, d)))):
            part = batch.rows(rows)
            m = middle.operator(objective.likelihood, f[rows], part.y, generator).to_dense() * objective.scale
            weights = objective.position_weights(part)
            m = m if weights is None else m * weights[:, None, None]
            for i in range(c):
                scaled = (m[:, i, i:, None] * a[rows, None, :]).flatten(1)
                total[i, :, i:] += (a[rows].mT @ scaled).view(d, c - i, d)
    if total is None:
        return None
    for i in range(c):
        total[i + 1 :, :, i] = total[i, :, i + 1 :].permute(1, 2, 0)
    weight, bias = names
    size = d if bias is None else d - 1
    order = torch.arange(c * d, device=total.device).view(c, d)
    places = torch.empty(space.numel, dtype=torch.long, device=total.device)
    places[space.slices[weight]] = order[:, :size].reshape(-1)
    if bias is not None:
        places[space.slices[bias]] = order[:, size]
    flat = total.view(c * d, c * d)
    return flat if bias is None else flat[places][:, places]


def _empty(space: ParameterSpace, dense: bool) -> Tensor:
    shape = (space.numel, space.numel) if dense else (space.numel,)
    check_dense_size(shape, space.dtype, "structure='implicit', 'diagonal' or 'blocks', or fewer params")
    return torch.zeros(shape, dtype=space.dtype, device=space.device)


def _finished(objective: Objective, total: Tensor) -> SymmetricOperator:
    """Return a sum over the data as an operator, with the penalty."""
    labels = objective.space.labels()
    if total.ndim == 1:
        return Diagonal(total + objective.l2, labels=labels)
    total.diagonal().add_(objective.l2)
    return Dense((total + total.mT) / 2, labels=labels)
