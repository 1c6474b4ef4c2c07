"""Intervals and tests by the profile likelihood, for both estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raphson import infer
from raphson._errors import InputError
from raphson.estimators._inference import InferenceMixin
from raphson.estimators.fit._covariance import CovarianceKind, free_covariance
from raphson.estimators.fit._profile import Profile, profiles

if TYPE_CHECKING:
    import pandas as pd


def check_method(method: Any) -> str:
    """Return how tests and intervals are made, or raise ``InputError`` if it is not known."""
    if method not in ("wald", "profile"):
        raise InputError(f"Unknown method {method!r} of intervals; choose 'wald' or 'profile'.")
    return str(method)


class ProfileMixin(InferenceMixin):
    """Profile likelihoods of an estimator's coefficients."""

    def confint(
        self,
        level: float = 0.95,
        kind: CovarianceKind | None = None,
        groups: Any = None,
        *,
        method: str = "wald",
        **options: Any,
    ) -> pd.DataFrame:
        """Return confidence intervals of the coefficients, columns ``lower`` and ``upper``.

        Args:
            level: Confidence level in (0, 1).
            method: ``"wald"``: estimate and standard error; ``"profile"``: all values of a coefficient that a test by
                the profile likelihood, penalized by Jeffreys' prior where the fit is, does not reject (Venzon and
                Moolgavkar 1988). A profile takes some refits for each bound; kind and groups do not go with it.
            kind: As in ``estimates``.
            groups: As in ``estimates``.
            **options: ``correction``, ``weights`` and ``columns`` of ``estimates``.

        Returns:
            A ``(p, 2)`` frame; a bound that the likelihood never reaches is infinite.

        Raises:
            InputError: If the method is unknown, or is given what it does not take.

        Examples:
            Two of 20 successes: the profile interval of the log odds is not symmetric.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> model.confint(method="profile").round(3).to_numpy(dtype=float)[0].tolist()
            [-4.036, -0.955]
        """
        if check_method(method) == "profile":
            if kind is not None or groups is not None or options.keys() - {"columns"}:
                raise InputError("method='profile' goes by the likelihood: leave out kind, groups and corrections.")
            columns = options.get("columns")
            return self._profile_frame(_bounds(self._profiles(columns), level), ["lower", "upper"], columns)
        return self.estimates(kind, groups, **options).to_frame(level)[["lower", "upper"]]

    def profile_test(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        r"""Test each coefficient against zero by the profile likelihood, penalized where the fit is by Jeffreys' prior.

        The statistic is :math:`2 (\ell_p(\hat\beta_j) - \ell_p(0))`, chi-square with one degree of freedom under the
        hypothesis (Wilks 1938; Heinze and Schemper 2002 with the penalty).

        Args:
            columns: Names of the columns whose coefficients are tested; None for all.

        Returns:
            A ``(p, 2)`` frame with columns ``chi2`` and ``p_value``.

        Examples:
            The test of a single slope is the likelihood-ratio test.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> one = model.profile_test(columns=["x0"])["chi2"].iloc[0]
            >>> round(float(one), 6) == round(model.likelihood_ratio_test().statistic, 6)
            True
        """
        return self._profile_frame(_tests(self._profiles(columns)), ["chi2", "p_value"], columns)

    def _with_profiles(self, frame: pd.DataFrame, level: float, columns: Sequence[str] | None) -> pd.DataFrame:
        """Return a coefficient table with tests and intervals by the profile likelihood in place of Wald's."""
        made = self._profiles(columns)
        tests = self._profile_frame(_tests(made), ["chi2", "p_value"], columns)
        bounds = self._profile_frame(_bounds(made, level), ["lower", "upper"], columns)
        return frame.assign(**tests, **bounds)[["coef", "std_err", "chi2", "p_value", "lower", "upper"]]

    def _profiles(self, columns: Sequence[str] | None = None) -> dict[int, Profile]:
        """Return the profile likelihood of each estimable coefficient of some columns, by its place."""
        if self._penalty > 0:
            raise InputError(
                f"A profile of a likelihood with a ridge penalty (l2={self._penalty:g}) has no known distribution; set "
                "l2=0, or penalty='jeffreys'."
            )
        if self._fractional:
            raise InputError(
                "A profile likelihood takes weights as counts of rows, and these are no whole numbers; the intervals "
                "of method='wald' are by the sandwich, which takes them as sampling weights."
            )
        estimable = self.estimates("expected").estimable
        labels = self._layout.labels
        self._check_columns(columns or ())
        fitted = self._require_fit()
        fitted = fitted.limit or fitted
        at = [i for i in estimable.nonzero()[:, 0].tolist() if columns is None or labels[i][1] in columns]
        covariance = free_covariance(fitted, "expected")[0].to_dense()
        return dict(zip(at, profiles(fitted, covariance, at), strict=True))

    def _profile_frame(
        self, values: dict[int, tuple[float, float]], names: list[str], columns: Sequence[str] | None
    ) -> pd.DataFrame:
        frame = self._without_errors().to_frame()[["lower", "upper"]].set_axis(names, axis="columns")
        for i, pair in values.items():
            frame.iloc[i] = list(pair)
        if columns is None:
            return frame
        return frame[[name in columns for _, name in self._layout.labels]]


def _tests(made: dict[int, Profile]) -> dict[int, tuple[float, float]]:
    """Return the statistic of zero and its p-value, by place."""
    from scipy.special import chdtrc

    statistics = {i: one.deviance(0.0)[0] for i, one in made.items()}
    return {i: (chi2, float(chdtrc(1, chi2))) for i, chi2 in statistics.items()}


def _bounds(made: dict[int, Profile], level: float) -> dict[int, tuple[float, float]]:
    root = infer.critical_value(level)
    return {i: (one.bound(root, -1), one.bound(root, 1)) for i, one in made.items()}
