"""Marginal effects, average predictions and contrasts: the training rows with variables set to values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators._prediction import PredictionMixin
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.input._recode import Recoding, recode_columns, recode_formulas, shown_value
from raphson.infer import (
    Estimates,
    MarginsResult,
    MeanTable,
    average_mean,
    average_slope,
    binary_columns,
    margins,
    pairwise,
)

At = str | Mapping[str, Any]

_MOST_ROWS = 10_000


class MarginsMixin(PredictionMixin):
    """What a fitted model says of its training rows when variables take other values.

    With a formula a variable is a column of the user's table: a factor is set to a level with all its columns together,
    and a number moves every column made from it, ``x``, ``I(x**2)`` and ``x:g``. Without one every column of the table
    is a variable of its own: which columns are the indicators of one factor, or the square of another column, is not
    known.
    """

    def margins(
        self,
        at: At = "overall",
        *,
        kind: CovarianceKind | None = None,
        groups: Any = None,
        discrete: bool = True,
        **options: Any,
    ) -> MarginsResult:
        """Return average marginal effects of each variable on each predicted mean, with delta-method errors.

        The effect of a number is the derivative of the mean, that of a factor the difference of the mean between each
        level and the base. With a formula both go through it: see the class. Without a formula each column counts on
        its own, so that indicators of one factor are each switched while the others stay; use a formula for factors of
        three and more levels. At a kink (``np.abs(x)`` at 0) the derivative is the mean of those of its two sides.

        Args:
            at: ``"overall"`` averages over the training rows; ``"mean"`` takes the mean row; a dictionary, as ``{"x":
                1.0, "g": "b"}``, sets variables to values in all rows and averages.
            kind: Covariance, as in ``estimates``.
            groups: Clusters, as in ``estimates``.
            discrete: Treat numbers that are 0 and 1 only as switches: the effect is the change from 0 to 1.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            Effects labeled (class, variable), for a factor (class, "variable[level]").

        Raises:
            InputError: If a value cannot be used, or there is no variable; a derivative where there is none is a
                ``NotEstimableError``.

        Examples:
            The effect of a switch is the difference of the two shares, 10/20 - 2/20.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> round(float(model.margins().to_frame()["effect"].iloc[-1]), 4)
            0.4
        """
        check_is_fitted(self)
        rows = self._training_rows()
        coefficients = self._all_coefficients(kind, groups, options)
        if self._formulas is None and not isinstance(at, Mapping):
            x = rows.dense_x()
            return margins(
                self._likelihood(),
                coefficients,
                x,
                mean_names=self._mean_names(),
                weights=rows.weights,
                offset=rows.offset,
                binary=binary_columns(x) if discrete else torch.zeros(x.shape[1], dtype=torch.bool),
                at=at,
            )
        recoding = self._recoding(discrete)
        coef, share = self._matrix(coefficients), self._shares()
        settings, collapse, where = _read_at(at, recoding, share)
        found: list[tuple[Tensor, Tensor]] = []
        names, kinds = [], []
        for name, variable in recoding.variables.items():
            if variable.levels is None:
                x, offset = recoding.encode(settings)
                parts = [x, offset, *recoding.slope(name, settings)]
                *parts, w = _collapsed([*parts, share]) if collapse else [*parts, share]
                x, offset, dx, do = parts
                found.append(average_slope(self._likelihood(), coef, x, w, offset, dx, do))
                names.append(name)
                kinds.append("dy/dx")
                continue
            base, *others = [
                self._mean_at(recoding, {**settings, name: level}, coef, share, collapse) for level in variable.levels
            ]
            low = shown_value(variable.levels[0])
            switch = isinstance(variable.levels[0], float) and variable.levels == (0.0, 1.0)
            for level, other in zip(variable.levels[1:], others, strict=True):
                found.append((other[0] - base[0], other[1] - base[1]))
                names.append(name if switch else f"{name}[{shown_value(level)}]")
                kinds.append(f"{shown_value(level)} vs {low}")
        if not found:
            raise InputError("The formula has no variables, so there are no effects.")
        estimates = self._table_of(coefficients, found, names)
        return MarginsResult(estimates, where, tuple(kinds))

    def predictions(
        self, at: At = "overall", *, kind: CovarianceKind | None = None, groups: Any = None, **options: Any
    ) -> MeanTable:
        """Return the predicted mean, averaged over the training rows, with delta-method intervals.

        Args:
            at: As in ``margins``; a list of values in a dictionary, ``{"x": [0, 1], "g": ["a", "b"]}``, gives a row
                for each combination.
            kind: Covariance, as in ``estimates``.
            groups: Clusters, as in ``estimates``.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            The table; it prints, and ``to_frame`` returns it as a frame. Values that cannot be used are an
            ``InputError``.
        """
        check_is_fitted(self)
        recoding, share = self._recoding(True), self._shares()
        grid = [at] if not isinstance(at, Mapping) else [dict(zip(at, v, strict=True)) for v in _combinations(at)]
        rows = [_read_at(point, recoding, share) for point in grid]
        coefficients = self._all_coefficients(kind, groups, options)
        coef = self._matrix(coefficients)
        found = [self._mean_at(recoding, settings, coef, share, collapse) for settings, collapse, _ in rows]
        names = [where for _, _, where in rows] if isinstance(at, Mapping) else ["(average)"]
        where = "averaged over rows, with values set" if isinstance(at, Mapping) else _sentence(rows[0][2])
        estimates = self._table_of(coefficients, found, names)
        return MeanTable(estimates, "Predicted means", where, difference=False)

    def contrasts(
        self,
        variable: str,
        values: Sequence[Any] | None = None,
        *,
        at: At = "overall",
        kind: CovarianceKind | None = None,
        groups: Any = None,
        **options: Any,
    ) -> MeanTable:
        """Return the differences of the average predicted mean between all pairs of levels of a variable.

        Args:
            variable: Name of a factor, or of a number with ``values``.
            values: Values to compare; None for all levels of a factor.
            at: As in ``margins``, for the other variables.
            kind: Covariance, as in ``estimates``.
            groups: Clusters, as in ``estimates``.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            The differences, the later level less the earlier, with delta-method intervals and tests that are not
            adjusted for the number of pairs.

        Raises:
            InputError: If there is no such variable, or it is a number and there are no values.
        """
        check_is_fitted(self)
        recoding = self._recoding(True)
        recoding.check(variable)
        levels = values
        if levels is None:
            known = recoding.variables.get(variable)
            if known is None or known.levels is None:
                raise InputError(f"'{variable}' is a number; say what to compare: contrasts('{variable}', [0, 1]).")
            levels = known.levels
        if isinstance(levels, str) or np.ndim(levels) != 1:
            raise InputError(f"values are those of '{variable}' to compare, such as [0, 1]; got {values!r:.60}.")
        levels = _listed(levels)
        if len(levels) < 2:
            raise InputError(f"A contrast compares two values or more; '{variable}' has {len(levels)}.")
        coefficients = self._all_coefficients(kind, groups, options)
        coef, share = self._matrix(coefficients), self._shares()
        settings, collapse, where = _read_at(at, recoding, share)
        found = [self._mean_at(recoding, {**settings, variable: level}, coef, share, collapse) for level in levels]
        names = [shown_value(level) for level in levels]
        differences = pairwise(self._table_of(coefficients, found, names), names)
        return MeanTable(differences, f"Contrasts of '{variable}'", _sentence(where), difference=True)

    def _recoding(self, discrete: bool) -> Recoding:
        rows = self._training_rows()
        if self._formulas is not None:
            return recode_formulas(self, rows, discrete)
        return recode_columns(rows, list(self._layout.columns), len(self.intercept_), discrete)

    def _shares(self) -> Tensor:
        rows = self._training_rows()
        n = rows.y.shape[0]
        if rows.weights is None:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        return rows.weights / rows.weights.sum()

    def _matrix(self, coefficients: Estimates) -> Tensor:
        return coefficients.values.reshape(len(self.intercept_), -1)

    def _mean_at(
        self, recoding: Recoding, settings: Mapping[str, Any], coef: Tensor, share: Tensor, collapse: bool
    ) -> tuple[Tensor, Tensor]:
        x, offset = recoding.encode(settings)
        x, offset, w = _collapsed([x, offset, share]) if collapse else [x, offset, share]
        return average_mean(self._likelihood(), coef, x, w, offset)

    def _table_of(
        self, coefficients: Estimates, found: Sequence[tuple[Tensor, Tensor]], names: Sequence[str]
    ) -> Estimates:
        """Return means ``(M,)`` with Jacobians, one pair a name, as estimates class by class."""
        values = torch.stack([value for value, _ in found], 1)
        jacobian = torch.stack([jacobian for _, jacobian in found], 1)
        labels = tuple((output, name) for output in self._mean_names() for name in names)
        return coefficients.propagate(values.flatten(), jacobian.flatten(0, 1), labels)


def _read_at(at: At, recoding: Recoding, share: Tensor) -> tuple[dict[str, Any], bool, str]:
    """Return values of variables, whether the mean row is meant, and what to call it."""
    if isinstance(at, Mapping):
        for name, value in at.items():
            recoding.check(name)
            if isinstance(value, list | tuple | range) or np.ndim(value) > 0:
                raise InputError(f"at sets '{name}' to one value here; predictions(at=...) takes lists.")
        return dict(at), False, ", ".join(f"{name}={shown_value(value)}" for name, value in at.items()) or "overall"
    if not isinstance(at, str) or at not in ("overall", "mean"):
        got = repr(at) if isinstance(at, str) else f"a {type(at).__name__}"
        raise InputError(
            f"at must be 'overall', 'mean' or a dictionary of values; got {got}. Rows of a table are predicted by "
            "predict(X)."
        )
    if at == "mean":
        return dict(recoding.means(share)), True, "mean"
    return {}, False, "overall"


def _combinations(at: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    values = [_listed(value) for value in at.values()]
    total = 1
    for value in values:
        total *= len(value)
    if not 0 < total <= _MOST_ROWS:
        raise InputError(f"at has {total} combinations of values; give 1 to {_MOST_ROWS}.")
    return list(itertools.product(*values))


def _listed(value: Any) -> Sequence[Any]:
    """Return the values that a variable takes; of arrays and columns, Python's own."""
    if hasattr(value, "tolist") and np.ndim(value) == 1:
        return list(value.tolist())
    return value if isinstance(value, list | tuple | range) else [value]


def _collapsed(parts: list[Tensor]) -> list[Tensor]:
    """Return the weighted mean row of each part, and the weight one; the last part holds the weights."""
    *rows, share = parts
    return [*((share @ part)[None] for part in rows), share.new_ones(1)]


def _sentence(where: str) -> str:
    return {"overall": "averaged over rows", "mean": "at the means of the variables"}.get(where, where)
