r"""The Gaussian likelihoods: one mean, a mean and a scale in seven parametrizations, two correlated responses."""

from __future__ import annotations

from raphson.explain._algebra import Expr, grouped, positive, real, sympy
from raphson.explain._definition import Abbreviation, Convexity, Definition, first_number, mean_by_moments
from raphson.likelihoods import Gaussian, HeteroscedasticGaussian, MultivariateGaussian

_LOG_2PI = sympy.log(2 * sympy.pi) / 2
_SOURCE = "P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., chapter 2."
_TWO_PARAMETERS = (
    "D. R. Cox and N. Reid (1987), J. R. Statist. Soc. B 49, 1-39: mean and scale are orthogonal parameters."
)


def gaussian(likelihood: Gaussian) -> Definition:
    """Define the Gaussian with a known scale."""
    mu, y = real("mu y")
    sigma = positive("sigma")
    r = Abbreviation(real("r"), (y - mu) / sigma, {mu: -1 / sigma})
    scale = first_number(likelihood.scale)
    constant = sympy.log(sigma) + _LOG_2PI if likelihood.normalized else 0
    return Definition(
        likelihood=Gaussian(scale, likelihood.normalized),
        outputs=(mu,),
        targets=(y,),
        nll=r.symbol**2 / 2 + constant,
        abbreviations=(r,),
        moments=_standard(r),
        constants={sigma: scale},
        example=((0.3,), 1.5),
        convexity=Convexity("Strictly convex everywhere: the Hessian is a positive constant.", sympy.true),
        source=_SOURCE,
    )


def heteroscedastic_gaussian(likelihood: HeteroscedasticGaussian) -> Definition:
    """Define the Gaussian with a mean and a scale."""
    return _PARAMETRIZATIONS[likelihood.parametrization](likelihood)


def _standard(r: Abbreviation) -> dict[Expr, Expr]:
    return {r.symbol: sympy.Integer(0), r.symbol**2: sympy.Integer(1)}


def _mean_scale(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y = real("mu y")
    sigma = positive("sigma")
    r = Abbreviation(real("r"), (y - mu) / sigma, {mu: -1 / sigma, sigma: -real("r") / sigma})
    return Definition(
        likelihood=likelihood,
        outputs=(mu, sigma),
        targets=(y,),
        nll=sympy.log(sigma) + r.symbol**2 / 2 + _LOG_2PI,
        abbreviations=(r,),
        moments=_standard(r),
        example=((0.3, 0.8), 1.5),
        convexity=Convexity(
            "Nowhere convex: the determinant is negative, so the observed Hessian always has one negative eigenvalue. "
            "The Fisher information is positive definite everywhere.",
            sympy.false,
        ),
        source=_TWO_PARAMETERS,
    )


def _mean_log_scale(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y, s = real("mu y s")
    sigma = Abbreviation(positive("sigma"), sympy.exp(s), {s: positive("sigma")})
    rate = -1 / sigma.symbol
    r = Abbreviation(real("r"), (y - mu) / sigma.symbol, {mu: rate, sigma.symbol: rate * real("r")})
    return Definition(
        likelihood=likelihood,
        outputs=(mu, s),
        targets=(y,),
        nll=s + r.symbol**2 / 2 + _LOG_2PI,
        abbreviations=(sigma, r),
        moments=_standard(r),
        example=((0.3, -0.2), 1.5),
        convexity=Convexity(
            "Convex in s for a fixed mean and in the mean for a fixed s, but not in both: the determinant is negative "
            "wherever y differs from the mean, and zero where it does not. The Fisher information is positive "
            "definite everywhere.",
            sympy.Eq(r.symbol, 0),
        ),
        source=_TWO_PARAMETERS,
    )


def _mean_variance(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y = real("mu y")
    v = positive("v")
    e = Abbreviation(real("e"), y - mu)
    return Definition(
        likelihood=likelihood,
        outputs=(mu, v),
        targets=(y,),
        nll=sympy.log(v) / 2 + e.symbol**2 / (2 * v) + _LOG_2PI,
        abbreviations=(e,),
        moments={e.symbol: sympy.Integer(0), e.symbol**2: v},
        example=((0.3, 0.6), 1.5),
        convexity=Convexity(
            "Nowhere convex: the determinant is -1/(2v³) whatever y is, so the observed Hessian always has one "
            "negative eigenvalue. The Fisher information is positive definite everywhere.",
            sympy.false,
        ),
        source=_TWO_PARAMETERS,
    )


def _mean_log_variance(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y, rho = real("mu y rho")
    sigma = Abbreviation(positive("sigma"), sympy.exp(rho / 2), {rho: positive("sigma") / 2})
    rate = -1 / sigma.symbol
    r = Abbreviation(real("r"), (y - mu) / sigma.symbol, {mu: rate, sigma.symbol: rate * real("r")})
    return Definition(
        likelihood=likelihood,
        outputs=(mu, rho),
        targets=(y,),
        nll=rho / 2 + r.symbol**2 / 2 + _LOG_2PI,
        abbreviations=(sigma, r),
        moments=_standard(r),
        example=((0.3, -0.4), 1.5),
        convexity=Convexity(
            "Convex in ρ for a fixed mean and in the mean for a fixed ρ, but not in both: the determinant is negative "
            "wherever y differs from the mean, and zero where it does not. The Fisher information is positive "
            "definite everywhere.",
            sympy.Eq(r.symbol, 0),
        ),
        source=_TWO_PARAMETERS,
    )


def _mean_precision(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y = real("mu y")
    tau = positive("tau")
    e = Abbreviation(real("e"), y - mu)
    return Definition(
        likelihood=likelihood,
        outputs=(mu, tau),
        targets=(y,),
        nll=-sympy.log(tau) / 2 + tau * e.symbol**2 / 2 + _LOG_2PI,
        abbreviations=(e,),
        moments={e.symbol: sympy.Integer(0), e.symbol**2: 1 / tau},
        example=((0.3, 1.5), 0.7),
        convexity=Convexity(
            "Convex where τe² ≤ 1/2, that is within 0.707 standard deviations of the mean; beyond, the observed "
            "Hessian has one negative eigenvalue. The Fisher information is positive definite everywhere.",
            tau * e.symbol**2 <= sympy.Rational(1, 2),
        ),
        source=_TWO_PARAMETERS,
    )


def _mean_softplus_scale(likelihood: HeteroscedasticGaussian) -> Definition:
    mu, y, a = real("mu y a")
    q = Abbreviation(positive("q"), 1 / (1 + sympy.exp(-a)), {a: positive("q") * (1 - positive("q"))})
    sigma = Abbreviation(positive("sigma"), sympy.log(1 + sympy.exp(a)), {a: q.symbol})
    rate = -1 / sigma.symbol
    r = Abbreviation(real("r"), (y - mu) / sigma.symbol, {mu: rate, sigma.symbol: rate * real("r")})
    return Definition(
        likelihood=likelihood,
        outputs=(mu, a),
        targets=(y,),
        nll=sympy.log(sigma.symbol) + r.symbol**2 / 2 + _LOG_2PI,
        abbreviations=(q, sigma, r),
        moments=_standard(r),
        example=((0.3, 0.2), 1.5),
        convexity=Convexity(
            "Nowhere convex: the determinant is negative, because σ(1 - q)(1 - r²) < q(1 + r²) for every a and r "
            "(it comes down to 1 + σ < exp σ). The Fisher information is positive definite everywhere.",
            sympy.false,
        ),
        source=_TWO_PARAMETERS,
        arrange=lambda entry: grouped(entry, [sigma.symbol]),
    )


def _natural(likelihood: HeteroscedasticGaussian) -> Definition:
    eta_1, y = real("eta_1 y")
    eta_2 = sympy.Symbol("eta_2", negative=True)
    mu, v = real("mu"), positive("v")
    variance = Abbreviation(v, -1 / (2 * eta_2), {eta_2: 2 * v**2})
    mean = Abbreviation(mu, eta_1 * v, {eta_1: v, eta_2: 2 * mu * v})
    return Definition(
        likelihood=likelihood,
        outputs=(eta_1, eta_2),
        targets=(y,),
        nll=mu**2 / (2 * v) + sympy.log(v) / 2 - eta_1 * y - eta_2 * y**2 + _LOG_2PI,
        abbreviations=(variance, mean),
        moments={y: mu, y**2: mu**2 + v},
        example=((0.4, -0.7), 1.5),
        convexity=Convexity(
            "Strictly convex everywhere: the Hessian is the covariance of (y, y²) and does not depend on y, so "
            "observed and expected are the same matrix.",
            sympy.true,
        ),
        source="L. D. Brown (1986), Fundamentals of Statistical Exponential Families, chapter 1.",
        arrange=sympy.expand,
    )


def multivariate_gaussian(likelihood: MultivariateGaussian) -> Definition:
    """Define two correlated responses with a Cholesky factor of the precision."""
    mu = real("mu_0 mu_1")
    rho = real("rho_0 rho_1")
    y = real("y_0 y_1")
    c = real("c")
    a, b = positive("a b")
    d, z = real("d_0 d_1"), real("z_0 z_1")
    pieces = (
        Abbreviation(a, sympy.exp(rho[0]), {rho[0]: a}),
        Abbreviation(b, sympy.exp(rho[1]), {rho[1]: b}),
        *(Abbreviation(d[i], y[i] - mu[i], {mu[i]: sympy.Integer(-1)}) for i in range(2)),
        Abbreviation(z[0], a * d[0] + c * d[1], {a: d[0], d[0]: a, c: d[1], d[1]: c}),
        Abbreviation(z[1], b * d[1], {b: d[1], d[1]: b}),
    )
    standard = {x: sympy.Integer(0) for x in (*z, z[0] * z[1])} | {x**2: sympy.Integer(1) for x in z}
    residuals = {d[1]: z[1] / b, d[0]: (z[0] - c * z[1] / b) / a}
    return Definition(
        likelihood=MultivariateGaussian(2),
        outputs=(*mu, *rho, c),
        targets=y,
        nll=(z[0] ** 2 + z[1] ** 2) / 2 - rho[0] - rho[1] + sympy.log(2 * sympy.pi),
        abbreviations=pieces,
        expect=lambda entry: mean_by_moments(entry.subs(residuals), standard, set(z)),
        read=lambda row: row.tolist(),
        example=((0.3, -0.2, 0.1, -0.4, 0.5), [1.1, 0.4]),
        convexity=Convexity(
            "Convex in the mean for a fixed L, but not in all outputs: with a direction of the mean that moves z₁ "
            "alone, ρ₁ has a block of negative determinant wherever z₁ is not zero. The Fisher information is positive "
            "definite everywhere.",
            sympy.false,
        ),
        source="M. Pourahmadi (1999), Biometrika 86, 677-690.",
        target_words="the two responses",
        joint=True,
        notes=(
            "Written out for M = 2, where the precision is L Lᵀ with L = [[a, 0], [c, b]]. In general, with "
            "d = y - μ and z = Lᵀd: gradient -L z in the mean, d_i z_j in the entry L_ij below the diagonal, and "
            "L_jj d_j z_j - 1 in its logarithm on the diagonal; Hessian L Lᵀ in the mean.",
        ),
    )


_PARAMETRIZATIONS = {
    "mean_scale": _mean_scale,
    "mean_log_scale": _mean_log_scale,
    "mean_variance": _mean_variance,
    "mean_log_variance": _mean_log_variance,
    "mean_precision": _mean_precision,
    "mean_softplus_scale": _mean_softplus_scale,
    "natural": _natural,
}
