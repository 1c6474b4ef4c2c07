r"""The curvature of the summed losses in the structure of a posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raphson.laplace._operators import combined
from raphson.linalg import (
    Dense,
    DiagonalPlusLowRank,
    Kronecker,
    Sum,
    SymmetricOperator,
    check_dense_size,
)
from raphson.network import LayerOperator, Objective, ekfac, fisher, ggn, hessian, kfac, multiplied_factors

Structure = Literal["dense", "diagonal", "kfac", "ekfac", "low_rank"]
Kind = Literal["expected", "observed", "hessian"]

_OVERSAMPLING = 10
"""Vectors beyond the rank, and two power iterations: what a Nystrom approximation needs to be near the best one."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Which curvature to take.

    Attributes:
        structure: Its structure.
        kind: ``"expected"``, ``"observed"`` or ``"hessian"``.
        bias: Whether a bias shares the block of its weight.
        rank: For a low rank.
        generator: Source of randomness for a low rank; None for a fixed one.
    """

    structure: Structure
    kind: Kind
    bias: Literal["joint", "separate"]
    rank: int
    generator: torch.Generator | None


class Computed(NamedTuple):
    """A curvature.

    Attributes:
        operator: It, ``(P, P)``, Kronecker products in their eigenbases.
        factors: The Kronecker products themselves, for ``"kfac"``: those of more data are added to them.
    """

    operator: SymmetricOperator
    factors: LayerOperator | None


def curvature_of(objective: Objective, wanted: Curvature, entries: Tensor | None = None) -> Computed:
    """Return the curvature of the summed losses, without a penalty; the objective's scale is taken out.

    ``entries`` are the numbers of the parameters to take, for a dense structure; None for all.
    """
    if wanted.structure == "kfac":
        factors = multiplied_factors(kfac(objective, bias=wanted.bias), 1.0 / objective.scale)
        return Computed(eigenbases(factors), factors)
    found = _average(objective, wanted)
    if entries is not None:
        assert isinstance(found, Dense)
        labels = objective.space.labels()
        kept = None if labels is None else tuple(labels[i] for i in entries.tolist())
        found = Dense(found.matrix[entries][:, entries].clone(), labels=kept)
    zeros = torch.zeros(found.shape[-1], dtype=found.dtype, device=found.device)
    return Computed(combined(found, 1.0 / objective.scale, zeros), None)


def _average(objective: Objective, wanted: Curvature) -> SymmetricOperator:
    structure, kind = wanted.structure, wanted.kind
    if structure == "ekfac":
        return eigenbases(ekfac(objective, bias=wanted.bias))
    if structure == "low_rank":
        return _low_rank(objective, wanted)
    form: Literal["dense", "diagonal"] = "dense" if structure == "dense" else "diagonal"
    if form == "dense":
        check_dense_size((objective.n_parameters,) * 2, objective.dtype, "structure='kfac', 'diagonal' or a subset")
    if kind == "hessian":
        return hessian(objective, form)
    return ggn(objective, form, kind="observed") if kind == "observed" else fisher(objective, structure=form)


def eigenbases(operator: LayerOperator) -> LayerOperator:
    """Return layered curvature with its Kronecker products in their eigenbases."""
    blocks = []
    for block in operator.blocks:
        if isinstance(block, Kronecker):
            block = block.in_eigenbasis()
            # what rounding leaves of a zero can be below the prior precision, in single precision above all
            block = replace(block, eigenvalues=block.eigenvalues.clamp_min(0.0))
        elif isinstance(block, Sum):
            block = Dense(block.to_dense())
        blocks.append(block)
    return replace(operator, blocks=tuple(blocks))


def _low_rank(objective: Objective, wanted: Curvature) -> DiagonalPlusLowRank:
    """Return a Nystrom approximation plus the diagonal of what it leaves, which is never negative.

    With an orthonormal basis Q of vectors that were multiplied a few times by the curvature G it is
    ``G Q (Q^T G Q)^-1 Q^T G`` (Halko, Martinsson and Tropp 2011, section 5.4), at most G in the semi-definite order.
    """
    g = fisher(objective)
    p = objective.n_parameters
    rank = min(wanted.rank, p)
    k = min(rank + _OVERSAMPLING, p)
    generator = wanted.generator or torch.Generator(objective.device).manual_seed(0)
    basis = torch.randn(p, k, generator=generator, dtype=objective.dtype, device=objective.device)
    for _ in range(2):
        basis = torch.linalg.qr(g.mm(basis))[0]
    image = g.mm(basis)
    middle = basis.mT @ image
    values, vectors = torch.linalg.eigh((middle + middle.mT) / 2)
    keep = values > values[-1] * k * torch.finfo(values.dtype).eps
    half = image @ (vectors[:, keep] / values[keep].sqrt())
    left, singular, _ = torch.linalg.svd(half, full_matrices=False)
    low_rank = (left[:, :rank] * singular[:rank]).contiguous()
    diagonal = fisher(objective, structure="diagonal").diagonal() - low_rank.square().sum(1)
    return DiagonalPlusLowRank(diagonal.clamp_min(0.0), low_rank, labels=objective.space.labels())
