"""What a fitted linear estimator says of rows: linear predictors, intervals of means, marginal effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson.estimators._inference import InferenceMixin
from raphson.estimators._names import INTERCEPT
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.input._rows import dense
from raphson.estimators.input._validate import check_offset, check_table
from raphson.infer import Estimates, MarginsResult, MeanInterval, binary_columns, margins, mean_interval
from raphson.likelihoods import Likelihood
from raphson.linalg import check_dense_size

_BLOCK_ELEMENTS = 2**22


class PredictionMixin(InferenceMixin):
    """Predictions with their uncertainty, for an estimator that supplies what is declared here."""

    _mean_scale: str
    """On which scale intervals of the mean are symmetric, so that they stay in its range."""

    def _likelihood(self) -> Likelihood:
        raise NotImplementedError

    def _mean_names(self) -> list[str]:
        raise NotImplementedError

    def _table(self, X: Any) -> Any:
        """Return new rows as an array or CSR matrix with the columns of the fit."""
        return check_table(self, X, reset=False)

    def _output_offset(self, offset: Any, n_rows: int, n_outputs: int) -> Tensor | None:
        return check_offset(offset, n_rows, n_outputs)

    def _linear_predictors(self, X: Any, offset: Any) -> NDArray[np.float64]:
        return self._checked_predictors(X, offset)[0]

    def _best_outputs(self, X: Any, offset: Any) -> NDArray[np.intp]:
        """Return the position of the largest linear predictor of each row, ``(N,)``, in blocks of rows."""
        check_is_fitted(self)
        table = check_table(self, X, reset=False)
        n, c = table.shape[0], len(self.intercept_)
        added = check_offset(offset, n, c)
        best = np.empty(n, dtype=np.intp)
        size = max(1, _BLOCK_ELEMENTS // c)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            f = np.asarray(table[rows] @ self.coef_.T) + self.intercept_
            best[rows] = (f if added is None else f + added[rows].numpy()).argmax(1)
        return best

    def _checked_predictors(self, X: Any, offset: Any) -> tuple[NDArray[np.float64], Any]:
        """Return the linear predictors ``(N, C)`` and the checked table."""
        check_is_fitted(self)
        table = self._table(X)
        shape = (table.shape[0], len(self.intercept_))
        check_dense_size(shape, torch.float64, "predict, or this call on fewer rows at a time")
        f = np.asarray(table @ self.coef_.T) + self.intercept_
        added = self._output_offset(offset, f.shape[0], f.shape[1])
        return (f if added is None else f + added.numpy()), table

    def predict_interval(
        self,
        X: Any,
        level: float = 0.95,
        offset: Any = None,
        kind: CovarianceKind = "observed",
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
            Means (probabilities, for classes), standard errors and bounds, each ``(N, M)``.
        """
        f, table = self._checked_predictors(X, offset)
        covariance = self._all_coefficients(kind, groups, options).covariance
        return mean_interval(
            self._likelihood(), torch.from_numpy(f), dense(table), covariance, level, scale=self._mean_scale
        )

    def margins(
        self,
        at: str = "overall",
        *,
        kind: CovarianceKind = "observed",
        groups: Any = None,
        discrete: bool = True,
        **options: Any,
    ) -> MarginsResult:
        """Return average marginal effects of each column on each predicted mean, with delta-method errors.

        Args:
            at: ``"overall"`` averages over the training rows; ``"mean"`` takes the mean row.
            kind: Covariance, as in ``estimates``.
            groups: Clusters, as in ``estimates``.
            discrete: Treat columns that hold 0 and 1 only as switches: the effect is the change from 0 to 1.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            Effects labeled (class, column).
        """
        check_is_fitted(self)
        rows = self._training_rows()
        x = rows.dense_x()
        return margins(
            self._likelihood(),
            self._all_coefficients(kind, groups, options),
            x,
            mean_names=self._mean_names(),
            weights=rows.weights,
            offset=rows.offset,
            binary=binary_columns(x) if discrete else torch.zeros(x.shape[1], dtype=torch.bool),
            at=at,
        )

    def _all_coefficients(self, kind: CovarianceKind, groups: Any, options: dict[str, Any]) -> Estimates:
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
