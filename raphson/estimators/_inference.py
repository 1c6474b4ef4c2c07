"""What every fitted linear estimator can be asked: covariance, intervals, tests, criteria.

``InferenceMixin`` is the single place where the estimators meet ``infer``. An estimator
supplies ``_fitted``, its names and its data; nothing here knows which likelihood it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson import infer
from raphson._errors import IndefiniteError, InputError, NotEstimableError
from raphson.estimators._nested import check_nested
from raphson.estimators._target_checks import TargetChecks
from raphson.estimators.fit._covariance import (
    DENSE_COVARIANCE,
    CovarianceKind,
    WeightMeaning,
    column_estimates,
    estimates,
)
from raphson.estimators.fit._examine import only_penalized
from raphson.estimators.fit._fitted import Fitted
from raphson.estimators.input._groups import group_codes
from raphson.estimators.input._layout import Layout
from raphson.estimators.input._rows import Rows
from raphson.infer import Estimates
from raphson.linalg import Diagonal
from raphson.solve import Solution, Status

if TYPE_CHECKING:
    import pandas as pd


_UNFINISHED = (Status.MAX_ITERATIONS, Status.STALLED, Status.NOT_FINITE)
"""Ends of fits whose log-likelihood may be larger elsewhere; where coefficients grow without bound it levels off."""

_NO_ROWS = (
    "The training rows are not part of a saved or unpickled model; attach(X, y) gives them back without a fit. "
    "Coefficients, predictions and the covariance stored with the model remain available."
)


class InferenceMixin(TargetChecks):
    """Inference for an estimator that sets the attributes below when it is fitted."""

    _fitted: Fitted | None
    _layout: Layout
    _training: Rows | None
    _estimates_cache: dict[Any, Estimates]
    _refusal: str | None
    _penalty: float
    _kept_kind: CovarianceKind | None = None
    _only_penalized: tuple[Tensor | None, str | None] | None = None
    penalty: str
    _fractional: bool
    solution_: Solution
    loglik_: float
    loglik_null_: float
    df_model_: int
    df_null_: int
    n_obs_: float
    n_rows_: int
    coef_: Any
    intercept_: Any

    _axis_names: tuple[str, str] = ("class", "feature")

    # what an estimator supplies -----------------------------------------------------------------------------

    def _check_same_target(self, restricted: Any) -> None:
        """Raise ``InputError`` for other likelihoods or, where the rows of both are known, other rows or columns."""
        check_nested(self, restricted)

    # estimates ----------------------------------------------------------------------------------------------

    def estimates(
        self,
        kind: CovarianceKind | None = None,
        groups: Any = None,
        *,
        correction: str | None = None,
        weights: WeightMeaning = "sampling",
        columns: Sequence[str] | None = None,
    ) -> Estimates:
        """Return the coefficients with their covariance, labels and estimability.

        Args:
            kind: ``"observed"`` (inverse Hessian at the data), ``"expected"`` (inverse Fisher information) or
                ``"sandwich"`` (robust: Huber 1967, White 1982); None for ``"sandwich"`` with ``groups``, a
                ``correction`` or weights that are not whole numbers, else ``"observed"``, and ``"expected"`` with
                Jeffreys' penalty, which is made of that.
            groups: ``(N,)`` cluster labels, or with a formula the name of a column of the training table; makes the
                sandwich a clustered one (Liang and Zeger 1986).
            correction: Small-sample factor of the sandwich: ``"HC0"``, ``"HC1"``, ``"CR0"``, ``"CR1"`` or
                ``"stata"`` (the default: ``n / (n - 1)``, or ``G / (G - 1)`` with clusters).
            weights: Only for the sandwich: ``"sampling"`` takes weights as inverse sampling probabilities,
                ``"frequency"`` as numbers of identical rows. The other two kinds take them as frequencies.
            columns: Names of the columns whose coefficients are wanted; None for all. With more than 8192
                coefficients only their part of the inverse is formed, for the kind ``"observed"``.

        Returns:
            Estimates, class by class with the intercept first, the reference class left out.

        Raises:
            InputError: If a kind, correction, groups or columns cannot be used.
            NotEstimableError: If the data do not determine the coefficients, a penalty biases them, or what
                it takes was not saved with the model. A covariance too large to form is a ``TooLargeError``.

        Examples:
            Two of 20 successes in one group, ten in the other.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> model.estimates().to_frame()["coef"].round(4).tolist()
            [-2.1972, 2.1972]
        """
        check_is_fitted(self)
        kind = self._default_kind(groups, correction) if kind is None else kind
        if correction is not None and kind != "sandwich":
            raise InputError(f"correction='{correction}' is a factor of the sandwich; pass kind='sandwich' with it.")
        if weights not in get_args(WeightMeaning):
            raise InputError(f"weights={weights!r:.40} has no meaning here; choose 'sampling' or 'frequency'.")
        columns = [columns] if isinstance(columns, str) else columns
        if correction == "CR1" and groups is None:
            raise InputError(
                "correction='CR1' depends on the clusters: pass groups=, one label for each row (with a formula the "
                "name of a column), or use 'HC1'."
            )
        key = (kind, correction, weights) if groups is None else None
        if columns is None and key in self._estimates_cache:
            return self._estimates_cache[key]
        if self._refusal is not None:
            raise NotEstimableError(self._refusal)
        fitted = self._require_fit()
        if columns is not None:
            return self._of_columns(fitted, columns, kind, groups, correction, weights)
        codes = None if groups is None else group_codes(groups, self._training_rows())
        made = replace(estimates(fitted, kind, codes, correction, weights), axis_names=self._axis_names)
        if self._penalty > 0:
            made = self._without_separated(made)
        if key is not None:
            self._estimates_cache[key] = made
        return made

    def _without_separated(self, found: Estimates) -> Estimates:
        """Leave out what only a ridge penalty keeps finite; the warning says what that is."""
        if self._only_penalized is None:
            self._only_penalized = only_penalized(self._require_fit(), self._training_rows())
        span, sentence = self._only_penalized
        if span is None or sentence is None:
            return found
        null = span if found.null_space is None else torch.cat([found.null_space, span], 1)
        return replace(found, estimable=found.estimable & (span == 0).all(1), null_space=null)

    def _only_penalized_note(self) -> str | None:
        """Return what a reader should know of coefficients that only a ridge penalty keeps finite, if it is known."""
        sentence = None if self._only_penalized is None else self._only_penalized[1]
        return sentence and f"Only the penalty keeps some coefficients finite. {sentence}"

    def _of_columns(
        self,
        fitted: Fitted,
        columns: Sequence[str],
        kind: CovarianceKind,
        groups: Any,
        correction: str | None,
        weights: WeightMeaning,
    ) -> Estimates:
        labels, names = self._layout.labels, self._check_columns(columns)
        picked = tuple(label for label in labels if label[1] in columns)
        large = fitted.objective.n_parameters > DENSE_COVARIANCE and kind == "observed" and self._penalty == 0
        if large and self._layout.is_relative:
            ordered = torch.tensor([names.index(name) for name in columns]).sort().values
            return column_estimates(fitted, ordered, picked)
        whole = self.estimates(kind, groups, correction=correction, weights=weights)
        rows = [i for i, label in enumerate(labels) if label[1] in columns]
        return whole.transform(torch.eye(len(labels), dtype=torch.float64)[rows], picked)

    def _check_columns(self, columns: Sequence[str]) -> list[str]:
        """Return the names of all columns, or raise ``InputError`` if one of those given is not among them."""
        names = list(dict.fromkeys(name for _, name in self._layout.labels))
        for name in columns:
            if name not in names:
                raise InputError(f"There is no column named '{name}'; the names are those of the coefficients.")
        return names

    def _default_kind(self, groups: Any, correction: str | None) -> CovarianceKind:
        if groups is not None or correction is not None or self._fractional:
            return "sandwich"
        return "expected" if self.penalty == "jeffreys" else "observed"

    def _shown_estimates(
        self, kind: CovarianceKind | None = None, groups: Any = None, **options: Any
    ) -> tuple[Estimates, str | None]:
        """Return the estimates that a summary shows, and a note where their kind is not the one that was due."""
        due = kind
        if kind is None and groups is None and not options and self._kept_kind is not None:
            due = self._kept_kind
        elif kind is None:
            due = "sandwich" if self._penalty > 0 else self._default_kind(groups, options.get("correction"))
        try:
            return self.estimates(due, groups, **options), None
        except IndefiniteError as indefinite:
            if kind is not None or due != "observed":
                raise
            note = f"{indefinite} The standard errors are those of the expected information."
            return self.estimates("expected", groups, **options), note

    def _training_rows(self) -> Rows:
        if self._training is None:
            raise NotEstimableError(_NO_ROWS)
        return self._training

    def _require_fit(self) -> Fitted:
        if self._fitted is None:
            raise NotEstimableError(_NO_ROWS)
        return self._fitted

    def covariance(self, kind: CovarianceKind | None = None, groups: Any = None, **options: Any) -> pd.DataFrame:
        """Return the covariance ``(p, p)`` of ``estimates``, with its arguments; missing where not determined.

        Examples:
            The two coefficients have the covariance of the first one's, with the other sign.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> model.covariance().round(4).to_numpy(dtype=float).tolist()
            [[0.5556, -0.5556], [-0.5556, 0.7556]]
        """
        return self.estimates(kind, groups, **options).covariance_frame()

    def standard_errors(self, kind: CovarianceKind | None = None, groups: Any = None, **options: Any) -> pd.Series:
        """Return the standard errors ``(p,)`` of ``estimates``, with its arguments; missing where not determined.

        Examples:
            The variance of a log odds ratio is 1/2 + 1/18 + 1/10 + 1/10 (Woolf 1955).

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> model.standard_errors().round(4).tolist()
            [0.7454, 0.8692]
            >>> round((1 / 2 + 1 / 18 + 1 / 10 + 1 / 10) ** 0.5, 4)
            0.8692
        """
        return self.estimates(kind, groups, **options).standard_errors_series()

    # tests and fit statistics -------------------------------------------------------------------------------

    def wald_test(
        self, R: Any, q: Any = None, *, kind: CovarianceKind | None = None, groups: Any = None, **options: Any
    ) -> infer.WaldResult:
        """Test ``R beta = q`` for coefficients in the order of ``estimates``.

        Args:
            R: ``(r, p)`` matrix, names of coefficients to test against zero together, or equations of names, such as
                ``"x = z"``, ``"x = z, 2*u = 1"`` and ``["x = z", "2*u = 1"]``.
            q: ``(r,)`` right-hand side; zero if None.
            kind: As in ``estimates``.
            groups: As in ``estimates``.
            **options: ``correction``, ``weights`` and ``columns`` of ``estimates``.

        Returns:
            The test, with one labeled line per row of R.

        Examples:
            The square of the estimate over its standard error.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> test = model.wald_test("x0 = 0")
            >>> round(test.statistic, 3), round(test.p_value, 4)
            (6.39, 0.0115)
        """
        return infer.wald_test(self.estimates(kind, groups, **options), R, q)

    def likelihood_ratio_test(self, restricted: Any = None) -> infer.LikelihoodRatioResult:
        """Compare with a nested fit to the same rows by twice the difference of log-likelihoods.

        Args:
            restricted: A fitted estimator with fewer free coefficients; None compares with the intercepts
                alone.

        Returns:
            The test.

        Raises:
            InputError: If the two fits were not made to the same rows, are not nested, or are penalized.
            NotEstimableError: If a fit did not converge.

        Examples:
            Against the intercept alone.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> test = model.likelihood_ratio_test()
            >>> round(test.statistic, 3), test.df
            (8.14, 1)
        """
        check_is_fitted(self)
        if restricted is None:
            loglik, df, n = self.loglik_null_, self.df_null_, self.n_obs_
        else:
            if not isinstance(restricted, InferenceMixin):
                raise InputError(
                    f"The restricted model is {restricted!r:.60}; pass a fitted model of raphson, or None."
                )
            check_is_fitted(restricted)
            loglik, df, n = restricted.loglik_, restricted.df_model_, restricted.n_obs_
            if df < self.df_model_:  # else the two were exchanged, which is said below
                self._check_same_target(restricted)
        for model in (self, restricted):
            if model is not None and model.solution_.status in _UNFINISHED:
                raise NotEstimableError(
                    f"No likelihood-ratio test: a fit did not converge, so that its log-likelihood is not the largest. "
                    f"{model.solution_.status.sentence} Raise max_iter, or see what the fit warned of."
                )
            if model is not None and model._fractional:
                raise InputError(
                    "A likelihood-ratio test takes weights as counts of rows, and these are no whole numbers, so that "
                    "its statistic changes with their unit; wald_test() goes by the sandwich, which takes them as "
                    "sampling weights."
                )
            if model is not None and model._penalty > 0:
                raise InputError("A likelihood-ratio test needs unpenalized fits; set l2=0.")
            if model is not None and model.penalty == "jeffreys":
                raise InputError(
                    "Twice the difference of log-likelihoods at estimates of penalty='jeffreys' has no known "
                    "distribution; use profile_test()."
                )
        return infer.likelihood_ratio_test(self.loglik_, self.df_model_, loglik, df, self.n_obs_, n)

    @property
    def aic_(self) -> float:
        """Akaike's information criterion, ``2 df - 2 loglik``."""
        return infer.aic(self.loglik_, self.df_model_)

    @property
    def bic_(self) -> float:
        """Schwarz's criterion, ``df log n - 2 loglik``."""
        return infer.bic(self.loglik_, self.df_model_, self.n_obs_)

    @property
    def pseudo_r2_(self) -> infer.PseudoR2:
        """Pseudo-R2 of McFadden, of Cox and Snell, and of Nagelkerke."""
        return infer.pseudo_r2(self.loglik_, self.loglik_null_, self.n_obs_)

    def _without_errors(self) -> Estimates:
        values = self._reported()
        return Estimates(
            values=values,
            covariance=Diagonal(torch.zeros_like(values)),
            labels=self._layout.labels,
            kind="none",
            estimable=torch.zeros(values.shape[0], dtype=torch.bool),
            axis_names=self._axis_names,
        )

    def _coefficients(self) -> Tensor:
        """Return the coefficients of all outputs, ``(C, D')``."""
        ones = int(self._layout.output_map.intercept)
        return torch.from_numpy(np.column_stack([self.intercept_[:, None][:, :ones], self.coef_]))

    def _reported(self) -> Tensor:
        """Return the parameters in the order of the labels, ``(P,)``."""
        return self._layout.output_map.collapse(self._coefficients())[self._layout.order]
