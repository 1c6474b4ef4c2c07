"""Residuals of the rows that a model was fitted to, and tests of how the targets vary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.diagnose import Randomness, ResidualKind, SimulationTest, are_counts, count_frequencies, residuals
from raphson.diagnose import calibration_test as _calibration_test
from raphson.diagnose import dispersion_test as _dispersion_test
from raphson.diagnose import zero_inflation_test as _zero_inflation_test
from raphson.likelihoods import Likelihood, TargetDistribution

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class FittedRows:
    """The rows that a model was fitted to, beside what it predicts for them; all have the index of ``residuals``.

    Attributes:
        observed: Targets in the units of the means: shares of successes, one-hot classes; missing where censored.
        means: Predicted means, or class probabilities; of a network those of each row as if left out.
        fitted: Means predicted by the fit with all rows, by which rows are sorted. They differ from ``means`` for a
            network only, where leaving a row out moves its mean away from its own target.
        weights: Example weights.
        names: Names of the columns of the table.
        table: ``(n, D)`` tensor or SciPy sparse matrix.
    """

    observed: pd.DataFrame
    means: pd.DataFrame
    fitted: pd.DataFrame
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


class TargetChecks:
    """What the targets of the training rows say against a fitted model, which supplies what is declared here."""

    def _likelihood(self) -> Likelihood:
        raise NotImplementedError

    def _training_distribution(self) -> TargetDistribution:
        """Return what is predicted of the targets of the training rows, beside them."""
        raise NotImplementedError

    def _fitted_means(self) -> NDArray[np.float64]:
        """Return the means of the fit with all rows, ``(n, ..., M)``."""
        return self._training_distribution().mean

    def _mean_names(self) -> list[str]:
        """Return names of the means, ``(M,)``."""
        raise NotImplementedError

    def _row_index(self) -> Any:
        """Return the index of the training rows."""
        raise NotImplementedError

    def _row_weights(self) -> NDArray[Any] | None:
        raise NotImplementedError

    def _row_table(self) -> tuple[list[str], Any]:
        """Return names of the columns, and the training rows ``(n, D)``, a tensor or a sparse matrix."""
        raise NotImplementedError

    def _mean_units(self) -> tuple[Any, Any]:
        """Return shift and scale of targets and means: what is published is ``shift + scale * value``."""
        return 0.0, 1.0

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
        values = values.reshape(len(values), -1) * (self._mean_units()[1] if kind == "response" else 1.0)
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

        predicted, names, index = self._training_distribution(), self._mean_names(), self._row_index()
        weights, (columns, table), (shift, scale) = self._row_weights(), self._row_table(), self._mean_units()

        def published(values: NDArray[np.float64]) -> pd.DataFrame:
            return pd.DataFrame(shift + scale * values.reshape(len(index), -1), index=index, columns=names)

        return FittedRows(
            observed=published(predicted.observed),
            means=published(predicted.mean),
            fitted=published(self._fitted_means()),
            weights=pd.Series(np.ones(len(index)) if weights is None else weights, index=index, name="weight"),
            names=columns,
            table=table,
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
            predicted,
            self._row_weights(),
            bins=bins,
            order=self._fitted_means(),
            simulations=simulations,
            generator=generator,
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
