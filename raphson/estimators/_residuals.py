"""What a linear model says of the rows that it was fitted to: outputs, targets, and its Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson.estimators._margins import MarginsMixin
from raphson.estimators._target_checks import TargetChecks
from raphson.infer import label_name
from raphson.likelihoods import TargetDistribution
from raphson.linalg import Dense, SymmetricOperator, check_dense_size


class ResidualsMixin(MarginsMixin, TargetChecks):
    """Residuals and tests of the training rows of a linear model."""

    def hessian(self) -> SymmetricOperator:
        """Return the Hessian of the objective at the fit in the reported coefficients of standardized columns.

        The objective is the average loss with its penalty; a column in units of its standard deviation about its mean
        makes curvatures comparable. Where the reported coefficients depend on each other (sums of zero over classes,
        columns that depend on others) it is zero along what the data cannot tell apart.

        Returns:
            An operator ``(P, P)`` with labels, in the order of ``estimates``.

        Raises:
            NotEstimableError: The training rows are not part of a saved model. A matrix too large to form is a
                ``TooLargeError``.
        """  # noqa: DOC502
        fitted = self._require_fit()
        p = fitted.objective.n_parameters
        check_dense_size((len(self._layout.labels), p), torch.float64, "a fit to fewer columns")
        to_reported = fitted.standardized_map()
        back = torch.linalg.pinv(to_reported)
        found = fitted.solution.hessian
        found = fitted.problem.hessian(fitted.solution.theta) if found is None else found
        dense = back.mT @ found.to_dense() @ back
        return Dense(0.5 * (dense + dense.mT), labels=tuple(map(label_name, self._layout.labels)))

    def _training_distribution(self) -> TargetDistribution:
        check_is_fitted(self)
        rows = self._training_rows()
        return self._likelihood().distribution(self._training_outputs(), rows.y)

    def _training_outputs(self, part: slice = slice(None)) -> Tensor:
        """Return the outputs ``(n, C)`` of the rows that the model was fitted to, or part of them, offsets included."""
        rows = self._training_rows()
        x = (rows.x.numpy() if isinstance(rows.x, Tensor) else rows.x)[part]
        return torch.from_numpy(self._outputs(x, None if rows.offset is None else rows.offset[part]))

    def _row_table(self) -> tuple[list[str], Any]:
        rows = self._training_rows()
        return list(self._layout.columns), rows.x if isinstance(rows.x, Tensor) else rows.x.tocsc()

    def _row_index(self) -> Any:
        rows = self._training_rows()
        return np.flatnonzero(rows.kept) if rows.frame is None else rows.frame.index

    def _row_weights(self) -> NDArray[Any] | None:
        weights = self._training_rows().weights
        return None if weights is None else weights.numpy()
