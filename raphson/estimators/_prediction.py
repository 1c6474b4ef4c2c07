"""What a fitted linear estimator says of rows: linear predictors, and means with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators._judged import JudgedMixin
from raphson.estimators._names import INTERCEPT
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.input._aligned import check_columns
from raphson.estimators.input._formulas import Formulas
from raphson.estimators.input._given import beside, plain_rows
from raphson.estimators.input._rows import dense
from raphson.estimators.input._tables import Columns, is_tables, new_table
from raphson.estimators.input._validate import check_offset, check_table
from raphson.infer import Estimates, MeanInterval, mean_interval
from raphson.linalg import check_dense_size

_BLOCK_ELEMENTS = 2**22


class PredictionMixin(JudgedMixin):
    """Predictions with their uncertainty, for an estimator that supplies what is declared here."""

    _mean_scale: str
    """On which scale intervals of the mean are symmetric, so that they stay in its range."""

    _formulas: Formulas | None = None
    _columns: Columns | None = None
    """Which columns each parameter has, where it was given a table or formula of its own."""

    def _table(self, X: Any) -> Any:
        """Return new rows as an array or CSR matrix with the columns of the fit."""
        if self._formulas is not None:
            X = self._formulas.tables(X)
        if is_tables(X):
            if self._columns is None:
                raise InputError("X is a dictionary of tables, but the model was fitted with a single table.")
            X = new_table(X, self._columns)
        return check_table(self, X, reset=False, min_columns=self._min_columns)

    @property
    def _min_columns(self) -> int:
        return 1 if self._columns is None and self._formulas is None else 0

    def _spread_offset(self, parameter: str, values: Tensor, n_outputs: int) -> Tensor:
        """Return the offset ``(N, C)`` that a formula's offset ``(N,)`` is."""
        raise NotImplementedError

    def _whole_offset(self, X: Any, offset: Any, n_rows: int, n_outputs: int) -> Tensor | None:
        """Return the sum of an offset that was passed and of each ``offset(...)`` in the formulas; None for nothing."""
        found = self._output_offset(offset, n_rows, n_outputs)
        inside = {} if self._formulas is None else self._formulas.offsets(X)
        for parameter, values in inside.items():
            added = self._spread_offset(parameter, torch.from_numpy(values), n_outputs)
            found = added if found is None else found + added
        return found

    def _output_offset(self, offset: Any, n_rows: int, n_outputs: int) -> Tensor | None:
        return check_offset(offset, n_rows, n_outputs)

    def _linear_predictors(self, X: Any, offset: Any) -> NDArray[np.float64]:
        return self._checked_predictors(X, offset)[0]

    def _best_outputs(self, X: Any, offset: Any) -> NDArray[np.intp]:
        """Return the position of the largest linear predictor of each row, ``(N,)``, in blocks of rows."""
        check_is_fitted(self)
        X, index = plain_rows(X)
        (offset,) = beside(index, offset=offset)
        check_columns(offset, self._layout.outputs, "offset")
        table = self._table(X)
        n, c = table.shape[0], len(self.intercept_)
        added = self._whole_offset(X, offset, n, c)
        best = np.empty(n, dtype=np.intp)
        size = max(1, _BLOCK_ELEMENTS // c)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            best[rows] = self._outputs(table[rows], None if added is None else added[rows]).argmax(1)
        return best

    def _outputs(self, table: Any, offset: Tensor | None) -> NDArray[np.float64]:
        """Return the linear predictors ``(N, C)`` of rows, an array or CSR matrix, with an offset."""
        f: NDArray[np.float64] = np.asarray(table @ self.coef_.T) + self.intercept_
        return f if offset is None else f + offset.numpy()

    def _checked_predictors(self, X: Any, offset: Any) -> tuple[NDArray[np.float64], Any]:
        """Return the linear predictors ``(N, C)`` and the checked table."""
        check_is_fitted(self)
        X, index = plain_rows(X)
        (offset,) = beside(index, offset=offset)
        check_columns(offset, self._layout.outputs, "offset")
        table = self._table(X)
        shape = (table.shape[0], len(self.intercept_))
        check_dense_size(shape, torch.float64, "predict, or this call on fewer rows at a time")
        return self._outputs(table, self._whole_offset(X, offset, *shape)), table

    def predict_interval(
        self,
        X: Any,
        level: float = 0.95,
        offset: Any = None,
        kind: CovarianceKind | None = None,
        groups: Any = None,
        **options: Any,
    ) -> MeanInterval:
        """Return delta-method confidence intervals of the predicted means that respect their range.

        Args:
            X: ``(N, D)`` rows.
            level: Confidence level.
            offset: ``(N, C)`` added to the linear predictors.
            kind: Covariance, as in ``estimates``.
            groups: Clusters of the training rows, as in ``estimates``.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            Means (probabilities, for classes), standard errors and bounds, each ``(N, M)``; standard errors and bounds
            are nan where the data do not determine them (separated rows, or columns not collinear as in the fit).

        Examples:
            The share of successes where x is 1, with an interval on the logit scale.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> rows = model.predict_interval([[1.0]])
            >>> [round(float(part[0, 1]), 3) for part in (rows.mean, rows.lower, rows.upper)]
            [0.5, 0.294, 0.706]
        """
        f, table = self._checked_predictors(X, offset)
        found = self._all_coefficients(kind, groups, options)
        return mean_interval(
            self._likelihood(),
            torch.from_numpy(f),
            dense(table),
            found.covariance,
            level,
            scale=self._mean_scale,
            null_space=found.null_space,
        )

    def _all_coefficients(self, kind: CovarianceKind | None, groups: Any, options: dict[str, Any]) -> Estimates:
        """Return estimates of all C (D + 1) coefficients, those of a reference and an absent intercept as zero."""
        found = self.estimates(kind, groups, **options)
        here, c, d = self._layout.output_map, len(self.intercept_), len(self._layout.columns)
        expanded = here.expand(torch.eye(here.n_parameters, dtype=torch.float64))[self._layout.order]
        full = torch.zeros(c * (d + 1), expanded.shape[0], dtype=torch.float64)
        full.view(c, d + 1, -1)[:, 1 - int(here.intercept) :] = expanded.permute(1, 2, 0)
        labels = tuple(
            (output, column) for output in self._layout.outputs for column in (INTERCEPT, *self._layout.columns)
        )
        return found.transform(full, labels)
