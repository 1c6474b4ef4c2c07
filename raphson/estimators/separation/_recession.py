r"""Directions of recession of a multinomial logit: certificates, and the linear program that decides.

The likelihood never falls along a table :math:`B` with :math:`(b_{y_i} - b_k)^T \hat x_i \ge 0` for every row
:math:`i` and class :math:`k` (Albert and Anderson 1984). Finding one, or showing that there is none, is a
linear program (Konis 2007). Sums of such directions are again such directions. Columns are standardized here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._standardize import Standardized, as_numpy, as_rows, standardize

Array = NDArray[Any]

TIE = 1e-9  # margins below this share of their terms are zero up to rounding
NUMBERS = 20_000_000  # the linear program is tried up to this many entries of the design and of its margins
VARIABLES = 3000  # and up to this many free coefficients
PROJECTED = 1200  # coefficients for which the span of the directions is computed by an eigendecomposition
SLOW = 200  # coefficients beyond which the linear program is slow enough to try a fit first
FLAT = 1e-12  # relative eigenvalue below which a direction leaves margins unchanged


class Data(NamedTuple):
    """Standardized rows with their classes; ``z`` is held, intercept first, unless the design is large."""

    std: Standardized
    live: Array
    y: Array
    n_classes: int
    z: Array | None

    @property
    def width(self) -> int:
        return len(self.live) + self.std.has_intercept

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and their standardized design.

        Yields:
            The slice and an array of that many rows by ``width``.
        """
        if self.z is not None:
            yield slice(0, len(self.y)), self.z
            return
        for rows, block in self.std.blocks(self.live):
            yield rows, _with_ones(block) if self.std.has_intercept else block


class Cone(NamedTuple):
    """A certified direction ``(K, width)`` of standardized columns, and the pairs ``(N, K)`` it separates."""

    direction: Array
    strict: Array


def all_strict(cone: Cone) -> bool:
    return bool((cone.strict.sum(1) == cone.strict.shape[1] - 1).all())


def _with_ones(z: Array) -> Array:
    return np.concatenate([np.ones((len(z), 1)), z], axis=1)


def prepare(x: Any, y: Any, n_classes: int, weights: Any, has_intercept: bool) -> tuple[Data, Array]:
    rows, keep = as_rows(x, weights)
    codes = as_numpy(y).astype(np.int64)[keep]
    std = standardize(rows, has_intercept)
    live = std.live
    data = Data(std, live, codes, n_classes, None)
    if len(codes) * max(data.width, n_classes) <= NUMBERS:
        z = np.concatenate([block for _, block in data.blocks()]) if len(live) else np.ones((len(codes), data.width))
        data = data._replace(z=z)
    return data, keep


def standard_direction(data: Data, direction: Any) -> Array:
    """Turn a direction in the units of ``X`` into one of the standardized columns that vary."""
    b = as_numpy(direction).astype(np.float64)
    std, first = data.std, int(data.std.has_intercept)
    slopes = b[:, first:]
    slopes = slopes * np.where(std.scale > 0, std.scale, 0.0)
    if not first:
        return slopes[:, data.live]
    constant = std.scale == 0
    values = np.zeros(len(constant))
    for j in np.flatnonzero(constant):
        values[j] = std.x[0, j]
    intercept = b[:, 0] + b[:, 1:] @ (values + np.where(constant, 0.0, std.reference)) + slopes @ std.shift
    return np.column_stack([intercept, slopes[:, data.live]])


def original_direction(data: Data, b: Array) -> Array:
    """Turn standardized directions ``(K, width)`` into the units of ``X``, rounding set to zero."""
    first = int(data.std.has_intercept)
    b = np.where(np.abs(b) > 1e-7 * np.abs(b).max(), b, 0.0)
    full = np.zeros((len(data.std.scale), data.n_classes))
    full[data.live] = b[:, first:].T
    original = data.std.to_original(full).T
    if first:
        size = np.abs(b[:, 0]) + np.abs(original[:, 0])
        total = original[:, 0] + b[:, 0]
        original[:, 0] = np.where(np.abs(total) > 1e-7 * size, total, 0.0)
    return original


def margins(data: Data, b: Array) -> tuple[Array, Array]:
    """Return margins ``(N, K)`` of a direction and the sums of the absolute values of their terms.

    The largest coefficient counts as a term: coefficients carry its rounding, also in rows near the mean.

    Returns:
        The margins and the sums.
    """
    margin = np.empty((len(data.y), data.n_classes))
    size = np.empty_like(margin)
    for rows, z in data.blocks():
        own = data.y[rows][:, None]
        score, bound = z @ b.T, np.abs(z) @ np.abs(b).T + np.abs(b).max(1)
        margin[rows] = np.take_along_axis(score, own, 1) - score
        size[rows] = np.take_along_axis(bound, own, 1) + bound
    return margin, size


def certified(data: Data, b: Array) -> Array | None:
    """Return the pairs with a positive margin, or None if ``b`` is not a direction of recession."""
    if not np.isfinite(b).all() or not b.any():
        return None
    margin, size = margins(data, b)
    strict = margin > TIE * size
    return strict if not (margin < -TIE * size).any() and strict.any() else None


def polish(data: Data, b: Array) -> Cone | None:
    """Certify a direction that is noisy, as iterates of a diverging fit and vertices of a linear program are.

    Small margins are taken for ties in turn, ever larger ones, and the direction is projected on the space
    where those are exactly zero; the first projection that passes the certificate is returned.

    Returns:
        The certified direction or None.
    """
    if not np.isfinite(b).all() or not b.any():
        return None
    b = b - b.mean(0)
    b = b / max(float(np.abs(b).max()), np.finfo(np.float64).tiny)
    margin, size = margins(data, b)
    for share in (0.0, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2):
        trial = b
        if share:
            if data.n_classes * data.width > PROJECTED or data.z is None or (margin < -share * size).any():
                continue
            ties = np.abs(margin) <= share * size
            flat = flat_space(data, ties)
            trial = flat @ (flat.T @ b.ravel())
            trial = trial.reshape(b.shape)
            if np.abs(trial).max() < 1e-6:
                return None
        strict = certified(data, trial)
        if strict is not None:
            return Cone(trial / np.abs(trial).max(), strict)
    return None


def flat_space(data: Data, pairs: Array) -> Array:
    """Return an orthonormal basis ``(K width, r)`` of the tables with zero margins at the given pairs."""
    assert data.z is not None
    k, p = data.n_classes, data.width
    gram = np.zeros((k, p, k, p))
    for a in range(k):
        rows = data.y == a
        z, active = data.z[rows], pairs[rows]
        for c in range(k):
            chosen = z[active[:, c]] if c != a else z[:0]
            if not len(chosen):
                continue
            block = chosen.T @ chosen
            gram[a, :, a] += block
            gram[c, :, c] += block
            gram[a, :, c] -= block
            gram[c, :, a] -= block
    values, vectors = np.linalg.eigh(gram.reshape(k * p, k * p))
    basis: Array = vectors[:, values <= FLAT * max(float(values[-1]), 1.0) * k * p]
    return basis


def join(data: Data, first: Cone, second: Cone | None) -> Cone:
    """Return the sum of two certified directions, which separates what either does."""
    if second is None:
        return first
    if not first.strict.any():
        return second
    direction = first.direction / np.abs(first.direction).max() + second.direction / np.abs(second.direction).max()
    strict = certified(data, direction)
    return Cone(direction, first.strict | second.strict if strict is None else strict | first.strict | second.strict)


def sum_cones(data: Data, directions: Sequence[Array | None]) -> Cone:
    """Certify directions and add up those that pass."""
    nothing = Cone(np.zeros((data.n_classes, data.width)), np.zeros((len(data.y), data.n_classes), dtype=bool))
    usable = [b for b in directions if b is not None]
    if not usable:
        return nothing
    total = np.sum([b / np.abs(b).max() for b in usable], axis=0)
    strict = certified(data, total)
    if strict is not None:
        return Cone(total, strict)
    cone = nothing
    for b in usable:
        strict = certified(data, b)
        cone = join(data, cone, None if strict is None else Cone(b, strict))
    return cone


def exclude_absent(data: Data, cone: Cone) -> Cone:
    """Add to a direction that classes without rows become impossible, where the intercept can do that."""
    missing = np.bincount(data.y, minlength=data.n_classes) == 0
    if not missing.any() or not data.std.has_intercept:
        return cone
    # far enough below every other score, which the terms of the margins bound
    reach = float(margins(data, cone.direction)[1].max())
    b = cone.direction.copy()
    b[missing] = 0.0
    b[missing, 0] = -1.0 - 2.0 * reach
    strict = certified(data, b)
    return cone if strict is None else Cone(b, strict)


def saturated(data: Data) -> Cone | None:
    """Return a direction that fits every label, where rows are linearly independent."""
    n = len(data.y)
    if data.width < n or data.z is None:
        return None
    targets = np.eye(data.n_classes)[data.y] - 1.0 / data.n_classes
    solution, _, rank, _ = np.linalg.lstsq(data.z @ data.z.T, targets, rcond=1e-12)
    if rank < n:
        return None
    b = (data.z.T @ solution).T
    strict = certified(data, b)
    return Cone(b, strict) if strict is not None and all_strict(Cone(b, strict)) else None


def descend(data: Data, deadline: float) -> Cone | None:
    """Return the coefficients of an unpenalized fit that was stopped early, if they classify every row.

    That is a direction of complete separation, and quasi-Newton steps reach it long before a linear program
    of many variables is solved.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    z = data.z
    assert z is not None
    shape, each = (data.n_classes, data.width), np.arange(len(data.y))

    def loss(b: Array) -> tuple[float, Array]:
        logs = log_softmax(z @ b.reshape(shape).T, axis=1)
        residual = np.exp(logs)
        residual[each, data.y] -= 1.0
        return -float(logs[each, data.y].mean()), (residual.T @ z).ravel() / len(z)

    def stop(intermediate_result: Any) -> None:
        if time.monotonic() > deadline or intermediate_result.fun < 1e-3 / len(z):
            raise StopIteration

    fitted = minimize(
        loss,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={"maxiter": 500, "ftol": 0.0, "gtol": 0.0},
    )
    b = fitted.x.reshape(shape)
    strict = certified(data, b)
    return None if strict is None else Cone(b, strict)


def linear_program(data: Data, known: Cone, deadline: float) -> tuple[Cone, bool]:
    r"""Extend what is known to the maximal set of separated pairs.

    One round maximizes the mean margin of the pairs not separated yet plus, for each ordered pair of classes,
    the least margin between them, over :math:`|B| \le 1` with all margins nonnegative. A round whose optimum
    is zero proves that the rest overlaps. Sums of directions are directions: a few rounds find everything.

    Returns:
        The cone direction with every separated pair, and whether that is proved.
    """
    active = np.zeros((len(data.y), data.n_classes), dtype=bool)
    own = np.eye(data.n_classes, dtype=bool)[data.y]
    while True:
        remaining = ~known.strict & ~own
        if not remaining.any():
            return known, True
        outcome, b = _round(data, remaining, active, deadline)
        if outcome != "found" or b is None:
            return known, outcome == "none"
        cone = polish(data, b)
        if cone is None or not (cone.strict & remaining).any():
            # an optimum that does not survive the certificate is rounding if it is tiny: the data overlap
            return known, False
        known = join(data, known, cone)


def _round(data: Data, remaining: Array, active: Array, deadline: float) -> tuple[str, Array | None]:
    """Solve one linear program by adding violated constraints to ``active`` until none is left.

    Returns:
        ``"none"`` if the optimum is zero, ``"found"`` with the direction, or ``"undecided"``.
    """
    assert data.z is not None
    k, p = data.n_classes, data.width
    weight = -remaining.astype(np.float64)
    weight[np.arange(len(data.y)), data.y] = remaining.sum(1)
    gain = weight.T @ data.z
    peak = float(np.abs(gain).max(initial=0.0))
    if peak <= FLAT * float((np.abs(weight).T @ np.abs(data.z)).max(initial=0.0)):
        return "none", None  # nonnegative margins whose sum is zero for every table
    gain = gain[:-1].ravel() / peak
    pending = [(a, c) for a in np.unique(data.y) for c in range(k) if a != c and remaining[data.y == a, c].all()]
    groups = np.full((k, k), -1)
    for g, (a, c) in enumerate(pending):
        groups[a, c] = g
    least = np.zeros((len(data.y), k))
    batch = max(500, k * p)
    _add(active, *margins(data, _discriminant(data)), batch, groups, data.y)
    while time.monotonic() < deadline:
        value, solution = _solve(data, active, gain, groups, len(pending), deadline)
        if solution is None:
            return "undecided", None
        if value <= 1e-9:
            return "none", None
        b = np.vstack([solution[: (k - 1) * p].reshape(k - 1, p), np.zeros(p)])
        scores = solution[(k - 1) * p :]
        least = np.where(groups >= 0, scores[np.maximum(groups, 0)], 0.0)[data.y] if len(pending) else least
        margin, size = margins(data, b)
        slack = margin - least
        slack[active] = 0.0
        if not (slack < -TIE * np.maximum(size, 1.0)).any():
            return "found", b
        _add(active, slack, size, batch, groups, data.y)
    return "undecided", None


def _discriminant(data: Data) -> Array:
    """Return the least-squares direction of the class indicators, to guess which constraints matter."""
    assert data.z is not None
    gram = data.z.T @ data.z
    gram[np.diag_indices_from(gram)] += 1e-6 * len(data.y)
    solved: Array = np.linalg.solve(gram, data.z.T @ np.eye(data.n_classes)[data.y])
    return solved.T


def _add(active: Array, slack: Array, size: Array, batch: int, groups: Array, y: Array) -> None:
    """Mark the most violated constraints, and the worst of each pair of classes, as active."""
    relative = slack / np.maximum(size, np.finfo(np.float64).tiny)
    relative[np.arange(len(y)), y] = np.inf
    relative[active] = np.inf
    flat = relative.ravel()
    chosen = np.argpartition(flat, min(batch, flat.size - 1))[:batch]
    active.ravel()[chosen[flat[chosen] < np.inf]] = True
    for a in np.unique(y):
        rows = np.flatnonzero(y == a)
        for c in np.flatnonzero(groups[a] >= 0):
            active[rows[int(slack[rows, c].argmin())], c] = True


def _solve(
    data: Data, active: Array, gain: Array, groups: Array, n_groups: int, deadline: float
) -> tuple[float, Array | None]:
    """Solve the linear program over the active constraints; return its value and solution."""
    import scipy.sparse
    from scipy.optimize import linprog

    assert data.z is not None
    k, p = data.n_classes, data.width
    rows, against = np.nonzero(active)
    own, z, count = data.y[rows], data.z[rows], np.arange(len(rows))
    parts = []
    for classes, sign in ((own, -1.0), (against, 1.0)):
        free = np.flatnonzero(classes < k - 1)
        columns = classes[free, None] * p + np.arange(p)
        index = np.broadcast_to(free[:, None], columns.shape)
        parts.append((sign * z[free].ravel(), index.ravel(), columns.ravel()))
    group = groups[own, against]
    grouped = np.flatnonzero(group >= 0)
    parts.append((np.ones(len(grouped)), count[grouped], (k - 1) * p + group[grouped]))
    value, row, column = (np.concatenate(piece) for piece in zip(*parts, strict=True))
    n_variables = (k - 1) * p + n_groups
    matrix = scipy.sparse.csr_array((value, (row, column)), shape=(len(rows), n_variables))
    bounds = np.concatenate([np.tile([-1.0, 1.0], ((k - 1) * p, 1)), np.tile([0.0, 1.0], (n_groups, 1))])
    result = linprog(
        -np.concatenate([gain, np.full(n_groups, 1.0 / max(n_groups, 1))]),
        A_ub=matrix,
        b_ub=np.zeros(len(rows)),
        bounds=bounds,
        method="highs",
        options={
            "time_limit": max(0.05, deadline - time.monotonic()),
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    return (0.0, None) if result.status != 0 else (-float(result.fun), result.x)
