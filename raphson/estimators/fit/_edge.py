r"""Outputs with bounds (a mean above zero, a probability below one): fits that stay inside, and optima on the edge.

A Newton step that leaves the domain is halved until it does not, and then often ends beside the edge, short of the
optimum. Steps that take no more than a share of the distance to the edge do better, and where they stop at the edge the
optimum is approached along the central path of a logarithmic barrier,

.. math:: \ell(f, y) - \mu \sum_c [\log(f_c - a_c) + \log(b_c - f_c)], \qquad \mu \to 0,

each point of which is a Newton fit from the one before. Where the path ends on the edge there is no interior optimum,
and no theory for standard errors.

References:
    J. Nocedal and S. J. Wright (2006), Numerical Optimization, 2nd ed., section 19.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators._names import listed
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import continued, is_dense, solve
from raphson.estimators.input._layout import Layout
from raphson.likelihoods import REAL, Likelihood, Ordinal, Wrapper
from raphson.linalg import SymmetricOperator, plus_diagonal
from raphson.linear import LinearObjective
from raphson.solve import Callback, Solution, Status, inverse_map, newton

_BARRIERS = (1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
"""Weights of the barrier on its way to zero, against one nat of a row."""

_NEAR = 1e-3
"""An output so many standard deviations (of one row, by its information) or fewer from a bound lies on it."""

_ITERATIONS = 60

_FEW_ITERATIONS = 10
"""Fewer are taken literally, as by all solvers."""

_SHARE = 0.9
"""Share of an output's distance to its bound that one step may take."""

_PIT = 1e-10
"""A distance to the bound of this share of the other rows': a scale of zero in a row that is fitted exactly, say."""

_DRAWN = 1e-6
"""A distance to the bound of this share of the start's, after ten steps by Jeffreys' prior: no optimum is inside."""

_SHORTEST = 1e-10
"""A step of a smaller share leads nowhere."""

_PROBES = (-0.5, 0.25, 0.75, 2.0)
_BOUNDS = {
    (False, True, True, True): (0.0, math.inf),
    (True, False, False, False): (-math.inf, 0.0),
    (False, True, True, False): (0.0, 1.0),
}
"""Bounds of a domain by which of the probes it contains."""


def bounds(likelihood: Likelihood, n_outputs: int) -> tuple[Tensor, Tensor] | None:
    """Return what outputs must be greater and less than, ``(C,)`` each; None where no output has a bound."""
    domains = likelihood.domains
    if all(domain is REAL for domain in domains):
        return None
    probes = torch.tensor(_PROBES, dtype=torch.float64)
    free = (-math.inf, math.inf)
    each = [_BOUNDS.get(tuple(domain.contains(probes).tolist()), free) for domain in domains]
    if all(pair == free for pair in each):
        return None
    low, high = torch.tensor(each, dtype=torch.float64).mT.repeat(1, n_outputs // len(each))
    return low, high


@dataclass(frozen=True, eq=False)
class _Inside(Wrapper):
    """A likelihood with a barrier at the bounds of its outputs: what a solver asks for."""

    base: Likelihood
    low: Tensor
    high: Tensor
    barrier: float

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        room = _log_room(f - self.low) + _log_room(self.high - f)
        return torch.nan_to_num(self.base.nll(f, y) - self.barrier * room.sum(-1), nan=math.inf)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return self.base.gradient(f, y) + self._slope(f)

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        return plus_diagonal(self.base.hessian(f, y), self._curvature(f))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        return plus_diagonal(self.base.fisher(f, y), self._curvature(f))

    def _slope(self, f: Tensor) -> Tensor:
        return self.barrier * ((self.high - f).reciprocal() - (f - self.low).reciprocal())

    def _curvature(self, f: Tensor) -> Tensor:
        return self.barrier * ((self.high - f).square().reciprocal() + (f - self.low).square().reciprocal())


def _log_room(room: Tensor) -> Tensor:
    """Return the logarithm of the distance to a bound: zero where there is none, -inf beyond it."""
    return torch.where(torch.isinf(room), 0.0, room.clamp_min(0.0).log())


@dataclass(frozen=True)
class Edge:
    """Rows whose outputs lie on a bound.

    Attributes:
        output: Name of the output.
        bound: The bound.
        n_rows: How many rows.
        row: The first of them, as they were given to the fit.
    """

    output: str
    bound: float
    n_rows: int
    row: int

    def sentence(self) -> str:
        """Return what was seen and the remedy."""
        where = f"row {self.row}" if self.n_rows == 1 else f"{self.n_rows} rows (the first is row {self.row})"
        return (
            f"The optimum is at the edge of what '{self.output}' may be: it goes to {self.bound:g} in {where}. "
            "There estimates have no standard errors. Remedy: a link or parametrization whose outputs have no bounds "
            "(such as the log of a mean or of a scale, the logit of a probability), or fewer columns."
        )


def absent_levels(likelihood: Likelihood, y: Tensor, layout: Layout) -> str | None:
    """Return a sentence where levels of an ordinal target have no rows, so that cuts have no estimate; else None."""
    if not isinstance(likelihood, Ordinal):
        return None
    counts = torch.bincount(y.long().reshape(-1), minlength=len(layout.outputs) + 1)
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if not absent:
        return None
    seen = counts.nonzero()[:, 0]
    names = [layout.outputs[0].split("|")[0], *(name.rsplit("|", 1)[1] for name in layout.outputs)]
    inside = all(int(seen[0]) < k < int(seen[-1]) for k in absent)
    what = (
        "the cuts on both sides of it meet at the optimum, at the edge of what ordered cuts may be, and the fit "
        "stopped short of that"
        if inside
        else "the cuts beside it have no finite or no distinct estimates"
    )
    return (
        f"The target is never {listed([names[k] for k in absent])}: {what}. Remedy: leave such levels out of the "
        "target's coding."
    )


def find_edge(objective: LinearObjective, theta: Tensor, layout: Layout, kept: NDArray[np.bool_]) -> Edge | None:
    """Return the output that lies on a bound in most rows; None where none does.

    The layout names it; ``kept`` ``(N,)`` says which of the rows given to the fit it has.
    """
    limits = bounds(objective.likelihood, objective.n_outputs)
    if limits is None:
        return None
    near = _near(objective, theta, *limits)
    counts = near.sum(0)
    if not bool(counts.any()):
        return None
    output = int(counts.argmax())
    rows = near[:, output].nonzero()[:, 0]
    f = float(objective.predictors(theta)[output, rows[0]])
    low, high = (float(limit[output]) for limit in limits)
    bound = low if abs(f - low) <= abs(high - f) else high
    return Edge(layout.outputs[output], bound, len(rows), int(np.flatnonzero(kept)[int(rows[0])]))


def _near(objective: LinearObjective, theta: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return which outputs of which rows lie on a bound, bool ``(N, C)``."""
    f, likelihood = objective.predictors(theta).mT, objective.likelihood
    information = likelihood.fisher(f, objective.y).diagonal()
    room = torch.minimum((f - low).abs(), (high - f).abs())
    # where the likelihood is so flat that the start values lie within a standard deviation, closer than these
    start = likelihood.start(objective.y, objective.n_outputs, objective.weights)
    usual = torch.minimum((start - low).abs(), (high - start).abs()) * likelihood.fisher(start).diagonal().sqrt()
    least = _NEAR * torch.where(usual > 0, usual, 1.0).clamp(max=1.0)
    near = (room * information.clamp_min(0.0).sqrt() < least) | _is_pit(room) | (f <= low) | (f >= high)
    # far off on the other side an output has little information, too, but the way to the bound is uphill
    moved = torch.where((f - low).abs() <= (high - f).abs(), low + 1e-3 * room, high - 1e-3 * room)
    uphill = likelihood.nll(torch.where(near, moved, f), objective.y) > likelihood.nll(f, objective.y) + 1e-2
    return near & ~uphill[:, None]


def _is_pit(room: Tensor) -> Tensor:
    """Return which outputs ``(N, C)`` have next to no distance to their bound, compared with other rows."""
    return room <= _PIT * torch.where(torch.isinf(room), 0.0, room).median(0).values


def fit_inside(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, *, warm: bool = False
) -> Solution:
    """Fit a model whose outputs may have bounds; arguments are those of ``solve``.

    Returns:
        The optimum inside; else the end of the central path, marked where that is on the edge.
    """
    limits = bounds(objective.likelihood, objective.n_outputs)
    if limits is not None and options.jeffreys:
        return _penalized_inside(objective, start, options, callback, _Room(objective, *limits))
    if limits is None or not is_dense(objective) or not math.isfinite(objective.value(start)):
        return solve(objective, start, options, callback, warm=warm)
    room, scoring = _Room(objective, *limits), not objective.likelihood.concave
    if options.solver in ("auto", "newton") and options.max_iter >= _FEW_ITERATIONS:
        # long steps are halved at the edge again and again, or end in a pit: a scale next to zero where one row is
        # fitted exactly
        path, stuck = room.descend(objective, start, options.tol, options.max_iter)
        left = replace(options, max_iter=1) if stuck or room.is_edge(path) else options
        solution = solve(objective, path, left, callback, warm=True)
    else:
        solution = solve(objective, start, options, callback, warm=warm)
    if solution.converged and not room.is_edge(solution.theta):
        return solution
    theta = start
    for barrier in () if scoring and room.is_pit(objective.predictors(solution.theta)) else _BARRIERS:
        inside = objective.on(objective.design, objective.output_map, _Inside(objective.likelihood, *limits, barrier))
        theta, _ = room.descend(inside, theta, options.tol, _ITERATIONS, 1e-2 * barrier)
    if theta is start:
        theta = solution.theta
    if not room.is_edge(theta):
        last = newton(objective, theta, tol=options.tol, max_iter=options.max_iter, scoring=scoring, callback=callback)
        return last if last.converged and not room.is_edge(last.theta) else solution
    value, gradient = objective.value_and_gradient(theta)
    norm = objective.gradient_norm(gradient)
    return replace(solution, theta=theta, status=Status.BOUNDARY, value=value, gradient_norm=norm, hessian=None)


def _penalized_inside(
    objective: LinearObjective, start: Tensor, options: FitOptions, callback: Callback | None, room: _Room
) -> Solution:
    """Fit with Jeffreys' prior, and see after some steps whether it draws outputs to a bound, where it is infinite."""
    first = solve(objective, start, replace(options, max_iter=min(options.max_iter, _FEW_ITERATIONS)), callback)
    if first.converged or options.max_iter <= _FEW_ITERATIONS:
        return first
    least = [float(room.distances(objective.predictors(at)).amin()) for at in (start, first.theta)]
    if room.is_edge(first.theta) or least[1] <= _DRAWN * least[0]:
        return replace(first, status=Status.BOUNDARY)
    return continued(first, solve(objective, first.theta, options, callback))


@dataclass(frozen=True, eq=False)
class _Room:
    """An objective with the bounds of its outputs, ``(C,)``."""

    objective: LinearObjective
    low: Tensor
    high: Tensor

    def is_edge(self, theta: Tensor) -> bool:
        """Return whether outputs of some row lie on a bound."""
        return bool(_near(self.objective, theta, self.low, self.high).any())

    def longest(self, f: Tensor, move: Tensor) -> float:
        """Return how much of a move ``(C, N)`` of the outputs leaves a share of the room that each had."""
        room = torch.where(move < 0, f - self.low[:, None], self.high[:, None] - f)
        return min(1.0, _SHARE * float((room / move.abs()).amin()))

    def descend(
        self, problem: LinearObjective, theta: Tensor, tol: float, max_iter: int, enough: float = 1e-16
    ) -> tuple[Tensor, bool]:
        """Return where Newton steps lead that keep a share of every output's room; scoring steps where they must.

        They stop at a gradient of ``tol``, or where a step promises no more than ``enough``; the second part says if
        they stopped because they became too short.
        """
        at, f = problem.evaluate(theta), problem.predictors(theta)
        for _ in range(max_iter):
            if problem.gradient_norm(at.gradient) <= tol or at.hessian is None:
                break
            hessian = at.hessian.to_dense()
            if int(torch.linalg.cholesky_ex(hessian)[1]):
                hessian = problem.hessian(theta, "expected").to_dense()
            step = -inverse_map(hessian)(at.gradient)
            slope = float(at.gradient @ step)
            if -slope <= enough:
                break
            length = self.longest(f, problem.predictors(theta + step) - f)
            while length > _SHORTEST and problem.value(theta + length * step) > at.value + 1e-4 * length * slope:
                length *= 0.5
            if not slope < 0.0 or length <= _SHORTEST:
                return theta, True
            theta = theta + length * step
            at, f = problem.evaluate(theta), problem.predictors(theta)
            if self.is_pit(f):
                break
        return theta, False

    def distances(self, f: Tensor) -> Tensor:
        """Return the distance of each output ``(C, N)`` to its nearest bound, ``(N, C)``."""
        return torch.minimum((f.mT - self.low).abs(), (self.high - f.mT).abs())

    def is_pit(self, f: Tensor) -> bool:
        """Return whether an output is in a pit: the likelihood grows for ever towards its bound, other rows aside."""
        return bool(_is_pit(self.distances(f)).any())
