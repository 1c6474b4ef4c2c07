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
