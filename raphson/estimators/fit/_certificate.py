r"""The error certificate of a fit: gradient and Hessian at the reported coefficients, with bounds on their rounding.

The gradient is summed in extended precision from the table as it was given and the coefficients as they are reported,
in the solver's parameters, whose columns :math:`(x - m) / s` are exact functions of the table for the numbers m and s.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import NotEstimableError
from raphson.diagnose import ErrorBound, Evidence, bound_error
from raphson.estimators.fit._fit import _from_table
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.input._rows import Rows
from raphson.likelihoods import ConcordanceTerm
from raphson.linear import LinearObjective

_LARGEST = 2000
"""Coefficients up to which an inverse root of the Hessian is formed."""

_BLOCK_ELEMENTS = 2**20
_UNIT = 2.0**-53
_EXTENDED = float(np.finfo(np.longdouble).eps)
_FUNCTIONS = 64
"""Roundings allowed for a weight, an exponential and a product in a term of a sum."""

Extended = NDArray[np.longdouble]


class Certificate:
    """The error bound of a fit, worked out once it is asked for; it holds fit and rows, and not the estimator."""

    def __init__(self, fitted: Fitted, rows: Rows, coef: Tensor) -> None:
        self._of = fitted, rows, coef

    def __call__(self) -> ErrorBound:
        """Return the bound."""
        return self._bound

    @cached_property
    def _bound(self) -> ErrorBound:
        return certify(*self._of)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()  # the user's rows do not belong in a pickle


def certify(fitted: Fitted, rows: Rows, coef: Tensor) -> ErrorBound:
    """Bound the distance of reported coefficients ``(C, D')`` from the optimum, or say why there is no bound."""
    labels = fitted.layout.labels
    try:
        coefficients, errors = bound_error(_evidence(fitted, rows, coef))
    except NotEstimableError as reason:
        return ErrorBound(False, f"Not certified: {reason}.", labels)
    largest = int(errors.argmax())
    name = " of ".join(reversed(labels[largest]))
    sentence = (
        f"Every coefficient is within {float(errors.max()):.1e} standard errors of the exact optimum "
        f"(the largest is that of {name}, {coefficients[largest]:.1e}), by generalized self-concordance with rounding."
    )
    return ErrorBound(True, sentence, labels, torch.from_numpy(coefficients), torch.from_numpy(errors))


def _refuse(fitted: Fitted, rows: Rows) -> None:
    objective = fitted.objective
    name, here = type(objective.likelihood).__name__, objective.output_map
    if fitted.jeffreys:
        raise NotEstimableError("Jeffreys' penalty is not self-concordant")
    if fitted.limit is not None or fitted.diverging is not None:
        raise NotEstimableError("the targets are separated, so that there is no finite optimum")
    if fitted.null_basis.shape[1]:
        raise NotEstimableError("columns are collinear, so that the optimum is not unique")
    if fitted.orthogonal is not None:
        raise NotEstimableError("columns are nearly collinear, so that rounding of their values decides")
    likelihood = objective.likelihood
    near_by = likelihood.concordance_terms(np.zeros((0, here.n_outputs)), objective.y[:0])
    if likelihood.self_concordance is None and not near_by:
        if not objective.likelihood.concave:
            raise NotEstimableError(
                f"the loss of {name} is not convex in its outputs, so that there may be other optima"
            )
        raise NotEstimableError(
            f"the loss of {name} is convex, but generalized self-concordance needs a bound of its third derivatives by "
            "its second ones, and none is known"
        )
    if objective.n_parameters > _LARGEST:
        raise NotEstimableError(f"there are more than {_LARGEST} coefficients")
    if not all(_is_selection(group.matrix) for group in (*here.groups, *fitted.layout.output_map.groups)):
        raise NotEstimableError("coefficients act on several outputs at once")


def _is_selection(matrix: Tensor) -> bool:
    """Whether every output has at most one of the coefficients, or its negative: products are then without rounding."""
    size = matrix.abs()
    return bool(((size == 0) | (size == 1)).all() and (size.sum(1) <= 1).all())


def _evidence(fitted: Fitted, rows: Rows, coef: Tensor) -> Evidence:
    _refuse(fitted, rows)
    objective = fitted.objective
    likelihood, here = objective.likelihood, objective.output_map
    theta = _from_table(objective, coef, here.left_out is not None)
    sums = _Sums(objective, rows, coef.numpy())
    expanded = here.expand(torch.eye(objective.n_parameters, dtype=torch.float64)).numpy()
    # of outputs that have a coefficient together, each takes its part of the penalty
    together = np.abs(expanded).sum(1)
    sharing = np.maximum(np.einsum("pcd,pd->cd", np.abs(expanded), together), 1)
    gradient, gradient_error, terms = sums.totals(1 / sharing.astype(np.longdouble))
    hessian = objective.hessian(theta).to_dense().numpy().copy()
    hessian = (hessian + hessian.T) / 2
    flat = expanded.reshape(len(expanded), -1)
    penalty = objective.ridge.diagonal.numpy() if objective.l2 else 0.0
    # outputs of the Hessian's own pass: as far off as those of this pass in double precision, at most
    off = 4 * sums.output_error(objective, theta)
    moved = math.expm1(sums.concordance(2 * off) * 2 * off)
    if not moved < 1:
        raise NotEstimableError("outputs are so close to the end of their range that rounding decides")
    to_reported = fitted.reported(torch.eye(objective.n_parameters, dtype=torch.float64)).mT.contiguous().numpy()
    offset = np.zeros(len(to_reported))
    if fitted.layout.output_map.is_plain and likelihood.differences_only:
        mean = np.abs(coef.numpy().astype(np.longdouble).mean(0)).astype(np.float64)
        offset = np.tile(mean, here.n_outputs)
    return Evidence(
        hessian=hessian,
        terms=(np.abs(flat) @ terms.reshape(-1)) * 1.01 + penalty,
        roundings=objective.n_rows + _FUNCTIONS,
        moved=moved,
        gradient=flat.astype(np.longdouble) @ gradient.reshape(-1),
        gradient_error=np.abs(flat) @ gradient_error.reshape(-1) * 1.01,
        row_size=lambda inverse, radius: sums.row_size(np.tensordot(inverse, expanded, 1), radius),
        to_reported=to_reported,
        offset=offset,
        weight=float(objective.total_weight),
    )


class _Sums:
    """Passes over the rows at given coefficients, in extended precision."""

    def __init__(self, objective: LinearObjective, rows: Rows, coef: NDArray[np.float64]) -> None:
        self.objective, self.rows, self.coef = objective, rows, coef
        design = objective.design
        self.ones = int(design.intercept)
        self.center, self.scale = design.center.numpy(), design.scale.numpy()
        self.weights = None if rows.weights is None else rows.weights.numpy().astype(np.longdouble)

    def _blocks(self) -> Any:
        """Yield rows with their columns as given ``(rows, D)``, float64."""
        n, d = self.rows.x.shape
        step = max(1, _BLOCK_ELEMENTS // (d + 1))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            x = self.rows.x[part]
            yield part, np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)

    def _standardized(self, x: NDArray[np.float64]) -> Extended:
        body = (x.astype(np.longdouble) - self.center) / self.scale
        return np.concatenate([np.ones((len(x), self.ones), dtype=np.longdouble), body], 1)

    def _outputs(self, part: slice, x: NDArray[np.float64]) -> tuple[Extended, NDArray[np.float64]]:
        """Return outputs ``(rows, C)``, and the sum of the absolute values of their terms."""
        slopes = self.coef[:, self.ones :]
        f = x.astype(np.longdouble) @ slopes.T.astype(np.longdouble)
        size = np.abs(x) @ np.abs(slopes).T
        if self.ones:
            f, size = f + self.coef[:, 0], size + np.abs(self.coef[:, 0])
        if self.rows.offset is not None:
            offset = self.rows.offset[part].numpy()
            f, size = f + offset, size + np.abs(offset)
        return f, size

    def totals(self, share: Extended) -> tuple[Extended, NDArray[np.float64], NDArray[np.float64]]:
        """Return gradient, bound on its rounding, and sums of absolute terms of the Hessian, each ``(C, D')``.

        ``share`` is the part of a coefficient's penalty that an output takes, ``(C, D')``.

        Raises:
            NotEstimableError: The targets have no gradient in extended precision.
        """
        objective, likelihood, d = self.objective, self.objective.likelihood, self.coef.shape[1]
        c = len(self.coef)
        total = np.zeros((c, d), dtype=np.longdouble)
        errors, terms = np.zeros((c, d)), np.zeros((c, d))
        n = objective.n_rows
        for part, x in self._blocks():
            f, size = self._outputs(part, x)
            y = objective.y[part]
            r = objective.likelihood.extended_gradient(f, y)
            if r is None:
                name = type(objective.likelihood).__name__
                raise NotEstimableError(f"{name} with these targets or weights has no gradient in extended precision")
            standard = self._standardized(x)
            absolute = np.abs(standard).astype(np.float64)
            at = torch.from_numpy(f.astype(np.float64))
            curvature = np.asarray(likelihood.curvature_terms(at, y), dtype=np.float64)
            error_f = (x.shape[1] + 4) * _EXTENDED * size
            spread = error_f if self.is_global and not likelihood.differences_only else error_f.max(1, keepdims=True)
            error = curvature * (2 * spread + _FUNCTIONS * _EXTENDED * (1 + np.abs(f).astype(np.float64)))
            error += (n + _FUNCTIONS) * _EXTENDED * (np.abs(r).astype(np.float64) + curvature)
            w = 1.0 if self.weights is None else self.weights[part][:, None]
            total += (r * w).T @ standard
            errors += (error * np.asarray(w, dtype=np.float64)).T @ absolute
            terms += (curvature * np.asarray(w, dtype=np.float64)).T @ np.square(absolute)
        weight = np.longdouble(n) if self.weights is None else self.weights.sum()
        total, errors, terms = total / weight, errors / float(weight) * 1.01, terms / float(weight)
        if objective.l2:
            slopes = self.coef[:, self.ones :].astype(np.longdouble)
            if objective.ridge.centered:
                slopes = slopes - slopes.mean(0)
            own = np.longdouble(objective.l2) * slopes / self.scale * share[:, self.ones :]
            total[:, self.ones :] += own
            size = np.abs(self.coef[:, self.ones :]).max(0) * objective.l2 / self.scale
            errors[:, self.ones :] += (c + 16) * _EXTENDED * size
        return total, errors + 8 * _EXTENDED * np.abs(total).astype(np.float64), terms

    def output_error(self, objective: LinearObjective, theta: Tensor) -> float:
        """Return how far outputs in double precision may be from those of the reported coefficients."""
        double = objective.predictors(theta).mT.numpy()
        largest = 0.0
        standard = np.abs(objective.design.from_table(torch.from_numpy(self.coef)).numpy())
        for part, x in self._blocks():
            f, _ = self._outputs(part, x)
            gap = double[part] - f
            if objective.likelihood.differences_only:
                gap = gap - gap[:, :1]
            size = np.abs(self._standardized(x)).astype(np.float64) @ standard.T
            if self.rows.offset is not None:
                size = size + np.abs(self.rows.offset[part].numpy())
            rounding = 4 * (x.shape[1] + 8) * _UNIT * float(size.max())
            largest = max(largest, float(np.abs(gap).max()) + rounding)
        return largest

    @property
    def is_global(self) -> bool:
        """Whether third derivatives are bounded by second ones everywhere, and not near the outputs alone."""
        return self.objective.likelihood.self_concordance is not None

    def concordance(self, away: float) -> float:
        """Return the bound of third derivatives by second ones where outputs have moved by at most half of ``away``.

        It is infinite where outputs can leave their domain.
        """
        known = self.objective.likelihood.self_concordance
        if known is not None:
            return known
        largest = 0.0
        for part, x in self._blocks():
            f = self._outputs(part, x)[0].astype(np.float64)
            for term in self.objective.likelihood.concordance_terms(f, self.objective.y[part]):
                largest = max(largest, float(_ratio(term, f, np.asarray(away)).max()))
        return largest

    def row_size(self, whitened: NDArray[np.float64], radius: float) -> float:
        """Return the largest M of a row by the size of its outputs in a direction of length one.

        ``whitened`` is ``B`` times the map from parameters to coefficients, ``(p, C, D')``. Where third derivatives
        are bounded near the outputs alone, it holds within ``radius``, and is infinite where that leaves the domain.
        """
        known = self.objective.likelihood.self_concordance
        if known == 0:
            return 0.0
        differences, largest = self.objective.likelihood.differences_only, 0.0
        for part, x in self._blocks():
            for start in range(0, len(x), 4096):
                few = slice(start, start + 4096)
                standard = self._standardized(x[few]).astype(np.float64)
                if known is None:
                    rows = slice(part.start + start, part.start + start + len(standard))
                    largest = max(largest, self._local_size(whitened, standard, rows, x[few], radius))
                    continue
                lengths = np.stack([_lengths(whitened[:, k], standard) for k in range(whitened.shape[1])])
                if differences and len(lengths) > 1:
                    lengths = np.sort(lengths, axis=0)[-2:].sum(0)
                largest = max(largest, known * float(lengths.max()))
        return largest

    def _local_size(
        self,
        whitened: NDArray[np.float64],
        standard: NDArray[np.float64],
        rows: slice,
        x: NDArray[np.float64],
        radius: float,
    ) -> float:
        f = self._outputs(rows, x)[0].astype(np.float64)
        largest = 0.0
        for term in self.objective.likelihood.concordance_terms(f, self.objective.y[rows]):
            moved = sum(term.weights[:, k] * (whitened[:, k] @ standard.T) for k in range(whitened.shape[1]))
            sizes = np.linalg.norm(moved, axis=0) * 1.0001
            for k in np.flatnonzero(term.weights.any(0)):
                sizes = sizes + np.abs(term.weights[:, k]) * _rounding(whitened[:, k], standard)
            ratio = _ratio(term, f, sizes * radius)
            largest = max(largest, float((np.where(sizes > 0, ratio, 0.0) * sizes).max(initial=0.0)))
        return largest


def _ratio(term: ConcordanceTerm, f: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bound of a term's third derivative by its second one, where its linear form has moved by so much."""
    left = term.distance * (1 - 1e-12) - 8 * _UNIT * (np.abs(term.weights) * np.abs(f)).sum(1) - moved
    found: NDArray[np.float64] = np.where(left > 0, term.base + 2 / np.maximum(left, 1e-300), np.inf)
    return found


def _lengths(whitened: NDArray[np.float64], standard: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norms of ``(p, D')`` by rows ``(n, D')``, ``(n,)``, rounded up."""
    found: NDArray[np.float64] = np.linalg.norm(whitened @ standard.T, axis=0) * 1.0001 + _rounding(whitened, standard)
    return found


def _rounding(whitened: NDArray[np.float64], standard: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a bound on the rounding of the products of ``(p, D')`` with rows ``(n, D')``, ``(n,)``."""
    p, d = whitened.shape
    found: NDArray[np.float64] = 2 * (p + d + 4) * _UNIT * np.linalg.norm(np.abs(whitened) @ np.abs(standard).T, axis=0)
    return found
