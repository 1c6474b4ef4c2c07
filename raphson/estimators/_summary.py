"""The table that a fitted estimator prints: coefficients, facts about the fit, and what a reader should know."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from raphson._errors import InputError, NotEstimableError, TooLargeError
from raphson.estimators._profiles import ProfileMixin, check_method
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.input._groups import few_clusters
from raphson.report import Summary

if TYPE_CHECKING:
    import pandas as pd


_LONG = 1e12
"""Facts from here on are written with an exponent."""


class SummaryMixin(ProfileMixin):
    """The summary of an estimator, which supplies what is declared here."""

    def _title(self) -> str:
        raise NotImplementedError

    def _notes(self) -> list[str]:
        raise NotImplementedError

    def _given_facts(self) -> list[tuple[str, str]]:
        """Return parameters of the likelihood that are given, not estimated, for the summary."""
        return []

    def _has_probabilities(self) -> bool:
        """Whether the likelihood is made of probabilities, not densities, so that a pseudo R-squared makes sense."""
        raise NotImplementedError

    def summary(
        self,
        kind: CovarianceKind | None = None,
        level: float = 0.95,
        groups: Any = None,
        *,
        method: str = "wald",
        exp: bool = False,
        **options: Any,
    ) -> Summary:
        """Return the table of coefficients with everything a reader needs to judge it.

        Args:
            kind: As in ``estimates``; None means ``"observed"`` (``"expected"`` where the observed information is
                not positive definite, and with Jeffreys' penalty), or for a ridge penalty ``"sandwich"``, and the table
                says which it is.
            level: Confidence level of the intervals.
            groups: As in ``estimates``.
            method: ``"wald"``, or ``"profile"`` for intervals as in ``confint`` and tests as in ``profile_test``, by
                the likelihood: chi-square statistics take the place of z.
            exp: Show exponentials of the coefficients (odds ratios, rate ratios) with standard errors by the delta
                method and the exponentials of the bounds; tests are those of the coefficients.
            **options: ``correction``, ``weights`` and ``columns`` of ``estimates``.

        Returns:
            A summary that prints as text, shows as HTML in a notebook and turns into a frame. A kind that was asked
            for and is not positive definite is an ``IndefiniteError``.

        Raises:
            InputError: If the method is unknown, or is given what it does not take.

        Examples:
            The table turns into a frame; with ``exp=True`` it has odds ratios.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> round(float(model.summary(exp=True).to_frame().iloc[1, 0]), 3)
            9.0
        """
        check_is_fitted(self)
        if check_method(method) == "profile" and groups is not None:
            raise InputError("method='profile' goes by the likelihood, which knows no groups; leave out groups.")
        notes = list(self._notes())
        try:
            found, note = self._shown_estimates(kind, groups, **options)
            notes += [] if note is None else [note]
        except (NotEstimableError, TooLargeError) as refused:
            found = self._without_errors()
            if str(refused) not in notes:
                notes.append(str(refused))
        frame = found.to_frame(level)
        if method == "profile" and bool(found.estimable.any()):
            try:
                frame = self._with_profiles(frame, level, options.get("columns"))
            except NotEstimableError as refused:
                method = "wald"
                notes.append(f"Tests and intervals are Wald's. {refused}")
        if groups is not None and bool(found.estimable.any()):
            notes += few_clusters(groups, self._training_rows())
        only = self._only_penalized_note()
        notes += [] if only is None else [only]
        if self.penalty == "jeffreys" and method == "wald":
            notes.append(
                "The p-values and intervals are Wald's; those of summary(method='profile') go by the "
                "penalized likelihood, which is better where estimates are far from zero."
            )
        return Summary(
            title=self._title(),
            facts=tuple(self._facts(found.kind)),
            table=_exponentials(frame) if exp else frame,
            notes=tuple(notes),
            level=level,
        )

    # the plug-in format of maketables (LaTeX, Word, Typst, HTML), which is not imported ------------------------------

    @property
    def __maketables_coef_table__(self) -> pd.DataFrame:
        """The coefficients of ``summary()``: estimate, standard error, statistic, p-value and 95 percent interval."""
        check_is_fitted(self)
        frame = self.summary().to_frame()
        outputs = frame.index.get_level_values(0)
        names = {"coef": "b", "std_err": "se", "z": "t", "p_value": "p", "lower": "ci95l", "upper": "ci95u"}
        table = frame[list(names)].rename(columns=names).astype("Float64").astype(float)
        one = len(set(outputs)) == 1
        table.index = [str(column) if one else f"{output}: {column}" for output, column in frame.index]
        table.index.name = "Coefficient"
        return table

    @property
    def __maketables_default_stat_keys__(self) -> list[str]:
        """What stands below the coefficients."""
        return ["N", "ll", "aic", "bic"]

    def __maketables_stat__(self, key: str) -> Any:
        """Return a statistic of the fit by the name of its key; None for one that is not known."""
        attribute = {"N": "n_obs_", "ll": "loglik_", "aic": "aic_", "bic": "bic_"}.get(key)
        if attribute is None or (self._penalty > 0 and key in {"aic", "bic"}):
            return None
        value = float(getattr(self, attribute))
        return int(value) if key == "N" and value.is_integer() else value

    def _facts(self, covariance: str) -> list[tuple[str, str]]:
        solution, whole = self.solution_, f"{self.n_obs_:.10g}"
        facts = [
            ("Observations", f"{self.n_rows_} rows, weight {self.n_obs_:.10g}" if self._fractional else whole),
            ("Log-likelihood", _number(self.loglik_, ".6f")),
            ("Free coefficients", str(self.df_model_)),
            ("Null log-likelihood", _number(self.loglik_null_, ".6f")),
        ]
        facts += self._given_facts()
        if self._penalty > 0:
            facts.append(("Penalty l2", f"{self._penalty:g}"))
        elif self.penalty == "jeffreys":
            facts.append(("Penalty", "Jeffreys-penalized (Firth)"))
        else:
            with contextlib.suppress(InputError):  # a null model that is perfect already leaves nothing to explain
                if self._has_probabilities():
                    facts.append(("Pseudo-R2 (McFadden)", f"{self.pseudo_r2_.mcfadden:.6f}"))
            facts += [("AIC", _number(self.aic_, ".4f")), ("BIC", _number(self.bic_, ".4f"))]
        facts += [
            ("Covariance", covariance),
            ("Solver", f"{solution.method}, {solution.iterations} iterations"),
            ("Gradient norm", _number(solution.gradient_norm, ".1e")),
            ("Status", solution.status.sentence),
        ]
        return facts


def _number(value: float, style: str) -> str:
    """Return a number as text; a likelihood without a bound has none."""
    if not math.isfinite(value):
        return "not finite"
    return format(value, style) if abs(value) < _LONG else f"{value:.10g}"


def _exponentials(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a coefficient table on the scale of ratios; tests stay those of the coefficients."""
    with np.errstate(over="ignore"):
        ratios, lower, upper = (np.exp(frame[name]) for name in ("coef", "lower", "upper"))
    return frame.assign(coef=ratios, std_err=ratios * frame["std_err"], lower=lower, upper=upper).rename(
        columns={"coef": "exp(coef)"}
    )
