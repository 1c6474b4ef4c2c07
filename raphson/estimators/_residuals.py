"""Residuals of the rows that a model was fitted to, and tests of how the targets vary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.diagnose import Randomness, ResidualKind, SimulationTest, are_counts, count_frequencies, residuals
from raphson.diagnose import calibration_test as _calibration_test
from raphson.diagnose import dispersion_test as _dispersion_test
from raphson.diagnose import zero_inflation_test as _zero_inflation_test
from raphson.estimators._margins import MarginsMixin
from raphson.infer import label_name
from raphson.likelihoods import TargetDistribution
from raphson.linalg import Dense, SymmetricOperator, check_dense_size

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class FittedRows:
    """The rows that a model was fitted to, beside what it predicts for them; all have the index of ``residuals``.

    Attributes:
        observed: Targets in the units of the means: shares of successes, one-hot classes; missing where censored.
        means: Predicted means, or class probabilities.
        weights: Example weights.
        names: Names of the columns of the table.
        table: ``(n, D)`` tensor or SciPy sparse matrix.
    """

    observed: pd.DataFrame
    means: pd.DataFrame
    weights: pd.Series
    names: list[str]
    table: Any = field(repr=False)

    def __repr__(self) -> str:
        return f"<FittedRows: {len(self.means)} rows, {self.means.shape[1]} means, {len(self.names)} columns>"

    def column(self, name: str) -> pd.Series:
        """Return a column of the table.

        Args:
            name: One of ``names``.

        Returns:
            Its values.

        Raises:
            InputError: There is none of that name.
        """
        import pandas as pd

        if name not in self.names:
            raise InputError(f"There is no column named '{name}'; the first are {', '.join(self.names[:12])}.")
        found = self.table[:, [self.names.index(name)]]
        values = found.numpy() if isinstance(found, Tensor) else found.toarray()
        return pd.Series(values.ravel(), index=self.means.index, name=name)


class ResidualsMixin(MarginsMixin):
    """What the targets of the training rows say against the fitted model."""

    def residuals(self, kind: ResidualKind = "quantile", generator: Randomness = 0) -> pd.DataFrame:
        """Return the residuals of the training rows; under the model quantile residuals are standard normal.

        Kinds and sources are those of ``raphson.diagnose.residuals``. A weight is a number of rows, all of which have
        the same residual: it does not enter. Offsets do.

        Args:
            kind: ``"response"``, ``"pearson"``, ``"deviance"`` or ``"quantile"`` (Dunn and Smyth 1996).
            generator: Source of the draws of quantile residuals, or a seed.

        Returns:
            A frame with a row for each row of the fit, indexed by the position of the row among those given to ``fit``
            (with a formula, by the table's index), and a column for each mean; or one column, named after the kind,
            where a row has one residual.

        Raises:
            InputError: The kind is unknown, or the likelihood does not have it.

        Examples:
            Pearson residuals of counts about a common mean of 4.

            >>> import numpy as np
            >>> import raphson as rp
            >>> model = rp.VectorGLM(rp.Poisson()).fit(np.array([[0.0], [1.0], [0.0], [1.0]]), [2, 3, 6, 5])
            >>> model.residuals("pearson")["mean"].round(6).tolist()
            [-1.0, -0.5, 1.0, 0.5]
        """  # noqa: DOC502
        import pandas as pd

        predicted = self._training_distribution()
        values = residuals(predicted, kind, generator)
        values = values.reshape(len(values), -1)
        names = self._mean_names()
        if values.shape[1] != len(names):
            names = [kind] if values.shape[1] == 1 else names[: values.shape[1]]
        return pd.DataFrame(values, index=self._row_index(), columns=names)

    def fitted_rows(self) -> FittedRows:
        """Return the training rows beside their predicted means: what figures and calibration are made of.

        Returns:
            Targets, means and weights, in frames of one index, and the columns one by one.
        """
        import pandas as pd

        predicted, rows, names = self._training_distribution(), self._training_rows(), self._mean_names()
        index = self._row_index()
        weights = self._row_weights()
        return FittedRows(
            observed=pd.DataFrame(predicted.observed.reshape(len(index), -1), index=index, columns=names),
            means=pd.DataFrame(predicted.mean.reshape(len(index), -1), index=index, columns=names),
            weights=pd.Series(np.ones(len(index)) if weights is None else weights, index=index, name="weight"),
            names=list(self._layout.columns),
            table=rows.x if isinstance(rows.x, Tensor) else rows.x.tocsc(),
        )

    def count_frequencies(self, largest: int | None = None) -> pd.DataFrame:
        """Return ``raphson.diagnose.count_frequencies`` of the training rows, ``observed`` and ``expected``."""
        predicted = self._training_distribution()
        return count_frequencies(self._likelihood(), predicted, self._row_weights(), largest=largest)

    def dispersion_test(self, simulations: int = 250, generator: Randomness = 0) -> SimulationTest:
        """Return ``raphson.diagnose.dispersion_test`` of the training rows; a ``ratio`` above 1 is overdispersion."""
        predicted = self._training_distribution()
        return _dispersion_test(predicted, self._row_weights(), simulations=simulations, generator=generator)

    def zero_inflation_test(self, simulations: int = 250, generator: Randomness = 0) -> SimulationTest:
        """Return ``raphson.diagnose.zero_inflation_test`` of the training rows; targets must be counts."""
        if not self.has_counts():
            raise InputError(f"{type(self._likelihood()).__name__} has no counts, so there are no zeros to test.")
        predicted = self._training_distribution()
        return _zero_inflation_test(predicted, self._row_weights(), simulations=simulations, generator=generator)

    def calibration_test(self, bins: int = 10, simulations: int = 250, generator: Randomness = 0) -> SimulationTest:
        """Return ``raphson.diagnose.calibration_test`` of the training rows; targets must be classes."""
        if not self.has_classes():
            raise InputError(f"{type(self._likelihood()).__name__} has no classes whose probabilities could be tested.")
        predicted = self._training_distribution()
        return _calibration_test(
            predicted, self._row_weights(), bins=bins, simulations=simulations, generator=generator
        )

    def has_classes(self) -> bool:
        """Return whether every target is one of some classes, or 0 or 1."""
        predicted = self._training_distribution()
        seen, mean = predicted.observed, predicted.mean
        single = np.isin(seen[np.isfinite(seen)], (0.0, 1.0)).all()
        return bool(single and np.allclose(predicted.variance, mean * (1 - mean)))

    def has_counts(self) -> bool:
        """Return whether the targets are single counts, which a rootogram shows."""
        return are_counts(self._likelihood(), self._training_distribution())

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

    def _training_outputs(self) -> Tensor:
        """Return the outputs ``(n, C)`` of the rows that the model was fitted to, offsets included."""
        rows = self._training_rows()
        return torch.from_numpy(self._outputs(rows.x.numpy() if isinstance(rows.x, Tensor) else rows.x, rows.offset))

    def _row_index(self) -> Any:
        rows = self._training_rows()
        return np.flatnonzero(rows.kept) if rows.frame is None else rows.frame.index

    def _row_weights(self) -> NDArray[Any] | None:
        weights = self._training_rows().weights
        return None if weights is None else weights.numpy()
