r"""The posterior after more data: the old one as the prior, and the new losses to second order.

With the summed losses' gradients :math:`g_1, g_2` at the mean and curvatures :math:`C_1, C_2`, precision and mean are

.. math:: \Lambda = \tfrac1T(C_1 + C_2) + \operatorname{diag}(\delta), \qquad
    \hat\theta - \Lambda^{-1} \bigl(\tfrac1T (g_1 + g_2) + \delta \hat\theta\bigr),

which is exact for a linear model with squared error.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raphson._errors import InputError, RaphsonWarning
from raphson.laplace._curvature import Curvature, curvature_of, eigenbases
from raphson.laplace._state import filled, parameters_of
from raphson.linalg import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    EqualBlocks,
    KroneckerEigen,
    LinearOperator,
    Matrix,
    SymmetricOperator,
)
from raphson.network import LayerOperator, Objective, added_factors

if TYPE_CHECKING:
    from raphson.laplace._posterior import Posterior

_AT_MODE = 0.01
"""Squared Newton decrement, in the posterior's own standard deviations, up to which a mean is taken as the mode."""


def updated(post: Posterior, data: Any) -> Posterior:
    """Return the posterior after other data as well."""
    if post.entries is not None:
        raise InputError("A subnetwork of single entries is not updated: use structure='dense' with subset='all'.")
    old = post.objective
    old.model.check_unchanged(post.versions)
    new = Objective(old.model.function, old.likelihood, data, params=parameters_of(old))
    wanted = Curvature(post.structure, post.kind, post.bias, _rank(post.curvature), None)
    more = curvature_of(new, wanted)
    raw = None
    if post.factors is not None:
        assert more.factors is not None
        raw = added_factors(post.factors, post.total_weight, more.factors, new.total_weight)
        curvature: SymmetricOperator = eigenbases(raw)
    else:
        curvature = added(post.curvature, more.operator)
    value, gradient = new.value_and_gradient()
    gradient, loss = post.gradient + gradient / new.scale, post.loss + float(value) / new.scale
    made = replace(
        post,
        curvature=curvature,
        factors=raw,
        gradient=gradient,
        loss=loss,
        total_weight=post.total_weight + new.total_weight,
        complete=False,
    )
    pull = gradient / post.temperature + post.prior.vector * post.mean
    before = post.gradient / post.temperature + post.prior.vector * post.mean
    step = torch.zeros_like(pull)
    if float(before @ post.precision.solve(before)) <= _AT_MODE:
        step = -made.precision.solve(pull)
    elif float(pull @ made.precision.solve(pull)) > _AT_MODE:
        warnings.warn(
            "The mean is not the mode of the posterior before this update (the network was trained with another prior, "
            "or not to the end), so that it stays where it is. Train on the new data with the old posterior as prior, "
            "or accept the mean as it is.",
            RaphsonWarning,
            stacklevel=3,
        )
    moved = curvature.mv(step)
    loss = loss + float(gradient @ step + 0.5 * (step @ moved))
    objective = _at(new, post.mean + step)
    residuals = None
    if post.residuals is not None:
        own = post.residuals
        count = own.count + new.total_weight * new.n_outputs
        residuals = replace(own, total=2 * own.scale**2 * (loss - count * own.constant), count=count)
    return replace(
        made,
        objective=objective,
        mean=post.mean + step,
        gradient=gradient + moved,
        loss=loss,
        residuals=residuals,
        versions=objective.model.versions(),
    )


def _at(objective: Objective, theta: Tensor) -> Objective:
    """Return an objective of the same data with a copy of the model at other parameters."""
    space, model = objective.space, objective.model
    batches = list(objective.batches())[:1]
    values = space.unflatten(theta)
    if model.module is None:
        params = {name: values.get(name, p).clone() for name, p in model.everything.items()}
        whole = Objective(model.function, objective.likelihood, batches, params=params)
        return whole.restricted(list(space.names))
    module = filled(model.module, values)
    return Objective(module, objective.likelihood, [(b.x, b.y) for b in batches], params=list(space.names))


def _rank(curvature: SymmetricOperator) -> int:
    return curvature.low_rank.shape[-1] if isinstance(curvature, DiagonalPlusLowRank) else 0


@singledispatch
def added(one: SymmetricOperator, other: SymmetricOperator) -> SymmetricOperator:
    """Return the sum of two curvatures of one structure, in that structure.

    Of Kronecker eigenbases and low ranks it is the nearest of their kind.
    """
    return Dense(one.to_dense() + other.to_dense(), labels=one.labels)


@added.register
def _(one: Diagonal, other: Diagonal) -> SymmetricOperator:
    return replace(one, values=one.values + other.values)


@added.register
def _(one: EqualBlocks, other: EqualBlocks) -> SymmetricOperator:
    return replace(one, blocks=one.blocks + other.blocks)


@added.register
def _(one: KroneckerEigen, other: KroneckerEigen) -> SymmetricOperator:
    # the basis of the sum's partial traces; in it the diagonal of the sum is the best one (Frobenius norm)
    bases: list[LinearOperator] = []
    total = torch.zeros_like(one.eigenvalues)
    for axis, pair in enumerate(zip(one.eigenvectors, other.eigenvectors, strict=True)):
        if all(isinstance(q, Diagonal) for q in pair):
            bases.append(pair[0])
            continue
        traces = [op.eigenvalues.movedim(axis, 0).flatten(1).sum(1) for op in (one, other)]
        whole = sum((q.to_dense() * t) @ q.to_dense().mT for q, t in zip(pair, traces, strict=True))
        assert isinstance(whole, Tensor)
        bases.append(Matrix(torch.linalg.eigh(whole)[1]))
    for op in (one, other):
        moved = op.eigenvalues
        for axis, (q, p) in enumerate(zip(bases, op.eigenvectors, strict=True)):
            overlap = q.rmm(p.to_dense()).square()
            moved = torch.tensordot(overlap, moved, dims=([1], [axis])).movedim(0, axis)
        total = total + moved
    return replace(one, eigenvectors=tuple(bases), eigenvalues=total)


@added.register
def _(one: DiagonalPlusLowRank, other: DiagonalPlusLowRank) -> SymmetricOperator:
    both = torch.cat([one.low_rank, other.low_rank], -1)
    left, singular, _ = torch.linalg.svd(both, full_matrices=False)
    r = one.low_rank.shape[-1]
    rest = (left[:, r:] * singular[r:]).square().sum(-1)
    return replace(one, diag=one.diag + other.diag + rest, low_rank=left[:, :r] * singular[:r])


@added.register
def _(one: LayerOperator, other: LayerOperator) -> SymmetricOperator:
    if one.names != other.names:
        raise InputError(
            "The new data go through other layers than the old ones did: make a posterior of both together."
        )
    return replace(one, blocks=tuple(added(a, b) for a, b in zip(one.blocks, other.blocks, strict=True)))
