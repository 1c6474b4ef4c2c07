"""Regression problems of the GLM benchmark: made data, what each contestant fits, and gradients by NumPy alone.

All contestants of a problem maximize the same likelihood. Each answer is turned into the coefficients that raphson
reports, and the gradient of the mean negative log-likelihood there decides whether it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import statsmodels.api as sm
from glum import GeneralizedLinearRegressor
from scipy.special import digamma, expit
from sklearn.linear_model import GammaRegressor, PoissonRegressor
from statsmodels.miscmodels.ordinal_model import OrderedModel
from statsmodels.othermod.betareg import BetaModel

import raphson as rp

TOL = 1e-6

Answer = dict[str, np.ndarray]
"""Coefficients by output, the intercept first; ``errors`` has standard errors of the first output, if asked for."""

Run = Callable[[], Answer]


class Problem(NamedTuple):
    """One model on one table.

    Attributes:
        name: Model and shape.
        n_rows: N.
        gradient: The gradient of the mean negative log-likelihood at an answer, by NumPy.
        fits: Contestants that give coefficients only, by name; ``raphson`` is one.
        errors: Contestants that give standard errors too.
    """

    name: str
    n_rows: int
    gradient: Callable[[Answer], np.ndarray]
    fits: dict[str, Run]
    errors: dict[str, Run]


def problems(sizes: list[tuple[int, int]], only: list[str] | None = None) -> Iterator[Problem]:
    """Yield the problems, made one at a time.

    Args:
        sizes: Rows and columns of the tables.
        only: Words; problems whose name holds one are kept. None for all.

    Yields:
        The problems.
    """
    makers = {
        "poisson": _poisson,
        "binomial": _binomial,
        "gamma": _gamma,
        "gaussian": _gaussian,
        "negative-binomial": _negative_binomial,
        "ordinal": _ordinal,
        "beta": _beta,
        "beta, precision columns": _beta_precision,
    }
    for n, d in sizes:
        for model, make in makers.items():
            name = f"{model} {n}x{d}"
            if n > 200_000 and model != "poisson":
                continue
            if only is None or any(word in name for word in only):
                rng = np.random.default_rng(0)
                x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.1 * rng.normal(size=(d, d)))
                eta = x @ rng.normal(size=d) * (0.5 / np.sqrt(d))
                fits, errors, gradient = make(x, eta, rng)
                yield Problem(name, n, gradient, fits, errors)


Made = tuple[dict[str, Run], dict[str, Run], Callable[[Answer], np.ndarray]]


def _ours(likelihood: Any, x: Any, y: np.ndarray) -> tuple[dict[str, Run], dict[str, Run]]:
    def answer(model: Any) -> Answer:
        outputs = model.likelihood.output_names(len(model.intercept_))
        return {name: np.r_[b, w] for name, b, w in zip(outputs, model.intercept_, model.coef_, strict=True)}

    def fit() -> Answer:
        return answer(rp.VectorGLM(likelihood, tol=TOL).fit(x, y))

    def errors() -> Answer:
        model = rp.VectorGLM(likelihood, tol=TOL).fit(x, y)
        found = model.standard_errors()
        outputs = [output for output, _ in model.estimates().labels]
        first = outputs.index("shared" if "shared" in outputs else likelihood.parameters[0])
        count = outputs.count(outputs[first])
        return answer(model) | {"errors": found.to_numpy()[first : first + count]}

    return {"raphson": fit}, {"raphson": errors}


def _glm(y: Any, x: np.ndarray, family: Any, output: str) -> dict[str, Run]:
    ones = sm.add_constant(x)

    def run() -> Answer:
        # its default tolerance, on the deviance, is relative to the sum; the parameters settle after it
        found = sm.GLM(y, ones, family=family).fit(tol=1e-9, scale=1.0)
        return {output: found.params, "errors": found.bse}

    return {"statsmodels": run}


def _scikit(make: Callable[..., Any], x: np.ndarray, y: np.ndarray, output: str) -> dict[str, Run]:
    def run(solver: str) -> Answer:
        model = make(alpha=0.0, tol=TOL, solver=solver, max_iter=10_000).fit(x, y)
        return {output: np.r_[model.intercept_, model.coef_]}

    return {f"scikit-learn {solver}": lambda s=solver: run(s) for solver in ("lbfgs", "newton-cholesky")}


def _glum(family: str, x: np.ndarray, y: np.ndarray, output: str, **arguments: Any) -> dict[str, Run]:
    def run() -> Answer:
        model = GeneralizedLinearRegressor(family=family, alpha=0.0, gradient_tol=TOL, **arguments).fit(x, y)
        return {output: np.r_[model.intercept_, model.coef_]}

    return {"glum": run}


def _discrete(
    make: Callable[[], Any], answer: Callable[[Any, Any], Answer], options: dict[str, Any], n_errors: int
) -> dict[str, Run]:
    def run(method: str) -> Answer:
        model = make()
        found = model.fit(disp=0, method=method, **options[method])
        return answer(model, found) | {"errors": np.asarray(found.bse)[:n_errors]}

    return {f"statsmodels {method}": lambda m=method: run(m) for method in options}


def _mean_gradient(x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return np.r_[residual.mean(), x.T @ residual / len(x)]


def _eta(answer: Answer, output: str, x: np.ndarray) -> np.ndarray:
    b = answer[output]
    return b[0] + x @ b[1 : 1 + x.shape[1]]


# the models --------------------------------------------------------------------------------------------------------


def _poisson(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    y = rng.poisson(np.exp(eta + 1.0)).astype(float)
    fits, errors = _ours(rp.Poisson(), x, y)
    fits |= _scikit(PoissonRegressor, x, y, "log_mean") | _glum("poisson", x, y, "log_mean")
    errors |= _glm(y, x, sm.families.Poisson(), "log_mean")
    return fits, errors, lambda a: _mean_gradient(x, np.exp(_eta(a, "log_mean", x)) - y)


def _binomial(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    y = rng.binomial(10, expit(2 * eta)).astype(float)
    fits, errors = _ours(rp.Binomial(trials=10), x, y)
    fits |= _glum("binomial", x, y / 10, "logit", link="logit")
    errors |= _glm(np.column_stack([y, 10 - y]), x, sm.families.Binomial(), "logit")
    return fits, errors, lambda a: _mean_gradient(x, 10 * expit(_eta(a, "logit", x)) - y)


def _gamma(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    y = rng.gamma(2.0, np.exp(eta) / 2.0)
    fits, errors = _ours(rp.Gamma(dispersion=1.0), x, y)
    fits |= _scikit(GammaRegressor, x, y, "log_mean") | _glum("gamma", x, y, "log_mean", link="log")
    errors |= _glm(y, x, sm.families.Gamma(sm.families.links.Log()), "log_mean")
    return fits, errors, lambda a: _mean_gradient(x, 1 - y * np.exp(-_eta(a, "log_mean", x)))


def _gaussian(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    """Mean and scale; statsmodels' GLM has the mean by weighted least squares and the scale from residuals."""
    y = rng.normal(1.0 + eta, 0.7)
    fits, errors = _ours(rp.HeteroscedasticGaussian(), x, y)
    ones = sm.add_constant(x)

    def least_squares() -> Answer:
        found = sm.GLM(y, ones).fit()
        residual = y - found.fittedvalues
        scale = np.r_[0.5 * np.log(residual @ residual / len(y)), np.zeros(x.shape[1])]
        return {"mean": found.params, "log_scale": scale, "errors": found.bse}

    def gradient(a: Answer) -> np.ndarray:
        log_scale = a["log_scale"][0]
        z = (y - _eta(a, "mean", x)) * np.exp(-log_scale)
        return np.r_[_mean_gradient(x, -z * np.exp(-log_scale)), (1 - z**2).mean()]

    return fits, errors | {"statsmodels": least_squares}, gradient


def _negative_binomial(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    mean, size = np.exp(eta + 1.0), 2.0
    y = rng.negative_binomial(size, size / (size + mean)).astype(float)
    ours = _ours(rp.NegativeBinomial(), x, y)
    ones = sm.add_constant(x)

    def answer(_: Any, found: Any) -> Answer:
        p = np.asarray(found.params)
        return {"log_mean": p[:-1], "log_dispersion": np.r_[np.log(p[-1]), np.zeros(x.shape[1])]}

    options = {
        "newton": {"maxiter": 100},
        "bfgs": {"maxiter": 500, "gtol": TOL},
        "lbfgs": {"maxiter": 500, "pgtol": TOL},
    }
    peers = _discrete(lambda: sm.NegativeBinomial(y, ones), answer, options, x.shape[1] + 1)

    def gradient(a: Answer) -> np.ndarray:
        mu, r = np.exp(_eta(a, "log_mean", x)), np.exp(-a["log_dispersion"][0])
        in_r = digamma(y + r) - digamma(r) + np.log(r / (r + mu)) + 1 - (y + r) / (r + mu)
        return np.r_[_mean_gradient(x, (mu - y) * r / (r + mu)), (r * in_r).mean()]

    return ours[0], ours[1] | peers, gradient


def _ordinal(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    y = np.digitize(2 * eta + rng.logistic(size=len(x)), [-1.5, -0.5, 0.5, 2.0])
    ours = _ours(rp.Ordinal(5), x, y)

    def answer(model: Any, found: Any) -> Answer:
        p = np.asarray(found.params)
        cuts = model.transform_threshold_params(p)[1:-1]
        return {f"{k}|{k + 1}": np.r_[cut, -p[: x.shape[1]]] for k, cut in enumerate(cuts)}

    options = {"bfgs": {"maxiter": 500, "gtol": TOL}, "lbfgs": {"maxiter": 500, "pgtol": TOL}}
    peers = _discrete(lambda: OrderedModel(y, x, distr="logit"), answer, options, x.shape[1])

    def gradient(a: Answer) -> np.ndarray:
        cuts = np.r_[-np.inf, [a[f"{k}|{k + 1}"][0] for k in range(4)], np.inf]
        slopes = x @ a["0|1"][1:]
        upper, lower = expit(cuts[y + 1] + slopes), expit(cuts[y] + slopes)
        share = upper - lower
        above, below = -upper * (1 - upper) / share, lower * (1 - lower) / share
        in_cuts = [(above * (y == k)).mean() + (below * (y == k + 1)).mean() for k in range(4)]
        return np.r_[in_cuts, x.T @ (above + below) / len(x)]

    return ours[0], ours[1] | peers, gradient


def _beta(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator, columns: int = 0) -> Made:
    mean, precision = expit(eta + 0.5), np.exp(2.0 + 0.3 * x[:, :columns].sum(1))
    y = np.clip(rng.beta(mean * precision, (1 - mean) * precision), 1e-9, 1 - 1e-9)
    table = {"logit_mean": x, "log_precision": x[:, :columns]} if columns else x
    ours = _ours(rp.Beta(), table, y)
    ones, few = sm.add_constant(x), sm.add_constant(x[:, :columns]) if columns else np.ones((len(x), 1))

    def answer(_: Any, found: Any) -> Answer:
        p = np.asarray(found.params)
        return {
            "logit_mean": p[: x.shape[1] + 1],
            "log_precision": np.r_[p[x.shape[1] + 1 :], np.zeros(x.shape[1] - columns)],
        }

    options = {"bfgs": {"maxiter": 500, "gtol": TOL}, "newton": {"maxiter": 100}}
    peers = _discrete(lambda: BetaModel(y, ones, exog_precision=few), answer, options, x.shape[1] + 1)

    def gradient(a: Answer) -> np.ndarray:
        mu, phi = expit(_eta(a, "logit_mean", x)), np.exp(_eta(a, "log_precision", x))
        p, q = mu * phi, (1 - mu) * phi
        difference = np.log(y) - np.log1p(-y) - digamma(p) + digamma(q)
        in_mean = -phi * mu * (1 - mu) * difference
        in_precision = -phi * (mu * difference + digamma(phi) - digamma(q) + np.log1p(-y))
        return np.r_[_mean_gradient(x, in_mean), _mean_gradient(x[:, :columns], in_precision)]

    return ours[0], ours[1] | peers, gradient


def _beta_precision(x: np.ndarray, eta: np.ndarray, rng: np.random.Generator) -> Made:
    return _beta(x, eta, rng, columns=3)
