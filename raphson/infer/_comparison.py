"""Comparisons of fits by their log-likelihoods: likelihood ratio, pseudo R-squared, information criteria."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from raphson._errors import InputError

_ROUNDING = 1e-8
"""A log-likelihood that a restricted fit exceeds by this share or less: both are known to a fit's tolerance only."""


@dataclass(frozen=True)
class LikelihoodRatioResult:
    """A likelihood ratio test.

    Attributes:
        statistic: Twice the difference of the log-likelihoods.
        df: Difference of the numbers of parameters.
        p_value: Chi-square probability of a larger statistic.
    """

    statistic: float
    df: int
    p_value: float

    def __str__(self) -> str:
        return f"Likelihood ratio test: chi2({self.df}) = {self.statistic:.4f}, {p_text(self.p_value)}"


@dataclass(frozen=True)
class PseudoR2:
    """Pseudo R-squared measures.

    Attributes:
        mcfadden: ``1 - loglik / loglik_null``.
        cox_snell: ``1 - exp(2 (loglik_null - loglik) / n)``.
        nagelkerke: Cox and Snell's over its largest value, ``1 - exp(2 loglik_null / n)``.
    """

    mcfadden: float
    cox_snell: float
    nagelkerke: float


def likelihood_ratio_test(
    loglik_full: float,
    df_full: int,
    loglik_restricted: float,
    df_restricted: int,
    n_full: float,
    n_restricted: float,
) -> LikelihoodRatioResult:
    r"""Return the test of a fit nested in a full one by :math:`2(\ell_1 - \ell_0) \sim \chi^2_{df_1 - df_0}`.

    Source: Wilks (1938), Annals of Mathematical Statistics 9, 60-62.

    ``df`` are numbers of estimated parameters, ``n`` rows (or sums of weights), which tell fits to other data.

    Raises:
        InputError: The fits saw different numbers of rows, are not nested, or did not both converge.
    """
    from scipy import special

    if not math.isclose(n_full, n_restricted, rel_tol=1e-9):
        raise InputError(
            f"The full model was fitted to {n_full:g} rows and the restricted one to {n_restricted:g}; their "
            "likelihoods are not comparable. Drop rows with missing values first and fit both to the rest."
        )
    if not (math.isfinite(loglik_full) and math.isfinite(loglik_restricted)):
        raise InputError(
            f"The log-likelihoods {loglik_full} and {loglik_restricted} must be finite; one of the fits diverged."
        )
    if df_restricted >= df_full:
        raise InputError(
            f"The restricted model has {df_restricted} parameters and the full one {df_full}; the "
            "restricted model must have fewer. Were the two exchanged?"
        )
    statistic = 2 * (loglik_full - loglik_restricted)
    if statistic < -_ROUNDING * (1 + abs(loglik_full)):
        raise InputError(
            f"The restricted model has the higher log-likelihood ({loglik_restricted:.8g} against "
            f"{loglik_full:.8g}), which a nested model cannot have. Either it is not nested in the full "
            "model, or the full fit did not converge."
        )
    statistic = max(statistic, 0.0)
    df = df_full - df_restricted
    return LikelihoodRatioResult(statistic, df, float(special.chdtrc(df, statistic)))


def p_text(value: float) -> str:
    """Return a p-value as a message shows it; one that underflows is no zero."""
    return f"p = {value:.4g}" if value > 0 else "p < 1e-300"


def pseudo_r2(loglik: float, loglik_null: float, n: float) -> PseudoR2:
    r"""Return pseudo R-squared measures of a model for discrete outcomes.

    Source: McFadden (1974), in Frontiers in Econometrics, 105-142; Cox and Snell (1989), Analysis of Binary
    Data, p. 208; Nagelkerke (1991), Biometrika 78, 691-692.

    Raises:
        InputError: A log-likelihood is above zero, as those of densities can be, or the outcome never varies.
    """
    if not (loglik <= 0 and loglik_null <= 0):
        raise InputError(
            f"Pseudo R-squared is defined for probabilities, whose logarithms are at most zero; the "
            f"log-likelihoods are {loglik:g} and {loglik_null:g}."
        )
    if loglik_null > -_ROUNDING * n:
        raise InputError("The model with intercepts only is already perfect: the outcome never varies.")
    worse = 2 * (loglik_null - loglik) / n
    # without an intercept a fit may be far worse than the mean
    cox_snell = -math.expm1(worse) if worse < math.log(sys.float_info.max) else -math.inf
    return PseudoR2(1 - loglik / loglik_null, cox_snell, cox_snell / -math.expm1(2 * loglik_null / n))


def aic(loglik: float, df: float) -> float:
    r"""Return :math:`2 df - 2\ell` (Akaike 1974, IEEE Transactions on Automatic Control 19, 716-723)."""
    return 2 * df - 2 * loglik


def bic(loglik: float, df: float, n: float) -> float:
    r"""Return :math:`df \log n - 2\ell` for n rows, or weights of that sum (Schwarz 1978, Annals of Statistics 6)."""
    return df * math.log(n) - 2 * loglik
