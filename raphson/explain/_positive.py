r"""Positive responses and durations: gamma, inverse Gaussian, Weibull."""

from __future__ import annotations

from raphson.explain._algebra import Expr, factored, positive, real, sympy
from raphson.explain._definition import Abbreviation, Convexity, Definition, first_number, mean_by_moments, one_number
from raphson.likelihoods import Gamma, InverseGaussian, Weibull

_GLM = "P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., "


def _ratio() -> tuple[Expr, Abbreviation, Abbreviation]:
    eta, mu, u = real("eta"), positive("mu"), positive("u")
    return eta, Abbreviation(mu, sympy.exp(eta), {eta: mu}), Abbreviation(u, positive("y") / mu, {eta: -u})


def gamma(likelihood: Gamma) -> Definition:
    """Define the gamma with a log mean; its shape learned or known."""
    y, k = positive("y k")
    eta, mu, u = _ratio()
    r = u.symbol
    nll = sympy.loggamma(k) - k * sympy.log(k) - k * sympy.log(r) + sympy.log(y) + k * r
    if likelihood.dispersion is not None:
        phi = positive("phi")
        return Definition(
            likelihood=likelihood,
            outputs=(eta,),
            targets=(y,),
            nll=sympy.expand_log(nll.subs(k, 1 / phi), force=True),
            abbreviations=(mu, u),
            moments={r: sympy.Integer(1)},
            constants={phi: first_number(likelihood.dispersion)},
            example=((0.4,), 2.0),
            convexity=Convexity("Strictly convex in the output for every target.", sympy.true),
            source=_GLM + "chapter 8.",
            target_words="a positive number with mean μ and variance φ μ²",
        )
    kappa = real("kappa")
    shape = Abbreviation(k, sympy.exp(kappa), {kappa: k})
    log_mean = sympy.digamma(k) - sympy.log(k)
    condition = r * (log_mean + k * sympy.trigamma(k) - sympy.log(r)) >= 1
    return Definition(
        likelihood=likelihood,
        outputs=(eta, kappa),
        targets=(y,),
        nll=nll,
        abbreviations=(mu, shape, u),
        moments={r: sympy.Integer(1), sympy.log(r): log_mean},
        example=((0.4, 0.3), 2.0),
        convexity=Convexity(
            "Strictly convex in the log mean for a fixed shape. In both outputs convex only near the mean: where "
            "u (ψ(k) - log k + k ψ′(k) - log u) ≥ 1, which holds at u = 1 and fails for small and for large u.",
            condition,
        ),
        source=_GLM + "chapter 8.",
        target_words="a positive number with mean μ and variance μ²/k",
    )


def inverse_gaussian(likelihood: InverseGaussian) -> Definition:
    """Define the inverse Gaussian with a log mean; its shape learned or known."""
    y, lam, d = positive("y lambda d")
    eta, mu, _ = _ratio()
    m = mu.symbol
    rate = 2 * lam * (m - y) / m**2
    if likelihood.dispersion is not None:
        phi = positive("phi")
        deviance = Abbreviation(d, (y - m) ** 2 / (phi * m**2 * y), {eta: rate.subs(lam, 1 / phi)})
        return Definition(
            likelihood=likelihood,
            outputs=(eta,),
            targets=(y,),
            nll=d / 2 + sympy.log(2 * sympy.pi * phi * y**3) / 2,
            abbreviations=(mu, deviance),
            moments={y: m},
            constants={phi: first_number(likelihood.dispersion)},
            example=((0.4,), 1.3),
            convexity=Convexity("Convex where 2y ≥ μ. The Fisher information is positive everywhere.", 2 * y >= m),
            source=_GLM + "table 2.1.",
            arrange=factored,
            target_words="a positive number with mean μ and variance φ μ³",
        )
    s = real("s")
    shape = Abbreviation(lam, sympy.exp(s), {s: lam})
    deviance = Abbreviation(d, lam * (y - m) ** 2 / (m**2 * y), {eta: rate, s: d})
    return Definition(
        likelihood=likelihood,
        outputs=(eta, s),
        targets=(y,),
        nll=d / 2 - s / 2 + sympy.log(2 * sympy.pi * y**3) / 2,
        abbreviations=(mu, shape, deviance),
        moments={y: m, d: sympy.Integer(1)},
        example=((0.4, 0.3), 1.3),
        convexity=Convexity(
            "Convex in s for a fixed mean, and in the log mean where 2y ≥ μ, but not in both: the determinant is "
            "negative wherever y differs from the mean. The Fisher information is positive definite everywhere.",
            sympy.Eq(y, m),
        ),
        source="V. Seshadri (1999), The Inverse Gaussian Distribution.",
        arrange=factored,
        target_words="a positive number with mean μ and variance μ³/λ",
    )


_CENSORED = (
    "This is the information of a complete duration: that of a censored one would need the censoring times of all "
    "rows. At given targets the library takes the predictable variation of the score up to the observed time instead, "
    "w [[k², -k z], [-k z, 1 + z²]], whose mean is the Fisher information under independent censoring."
)


def weibull(likelihood: Weibull) -> Definition:
    """Define durations with a log scale; their shape learned or known, complete or right-censored."""
    y, k = positive("y k")
    a, z, delta = real("a z delta")
    w = positive("w")
    known = likelihood.shape is not None
    kappa = real("kappa")
    log_k = sympy.log(k) if known else kappa
    event = delta if likelihood.censored else sympy.Integer(1)
    shape = () if known else (Abbreviation(k, sympy.exp(kappa), {kappa: k}),)
    standard = Abbreviation(z, k * (sympy.log(y) - a), {a: -k} if known else {a: -k, kappa: z})
    hazard = Abbreviation(w, sympy.exp(z), {z: w})
    euler = 1 - sympy.EulerGamma
    moments = {
        w: sympy.Integer(1),
        z: -sympy.EulerGamma,
        w * z: euler,
        w * z**2: euler**2 + sympy.pi**2 / 6 - 1,
    }
    if known:
        where: Expr = sympy.true
        sentence = "Strictly convex in the output for every target."
    elif likelihood.censored:
        where = sympy.Or(sympy.And(sympy.Eq(delta, 0), z <= -1), sympy.Eq(w, 1) & sympy.Eq(delta, 1))
        sentence = (
            "Strictly convex in the log scale for a fixed shape, not in both outputs: for an event the determinant is "
            "negative unless w = 1; for a censored row the Hessian is positive semidefinite where z ≤ -1 only."
        )
    else:
        where = sympy.Eq(w, 1)
        sentence = (
            "Strictly convex in the log scale for a fixed shape, not in both outputs: the determinant is negative "
            "unless w = 1. The Fisher information is positive definite everywhere."
        )
    return Definition(
        likelihood=likelihood,
        outputs=(a,) if known else (a, kappa),
        targets=(y, delta) if likelihood.censored else (y,),
        nll=w + event * (sympy.log(y) - z - log_k),
        abbreviations=(*shape, standard, hazard),
        moments=moments,
        # The information at complete durations; a censored row has its own, which its definition says.
        expect=lambda entry: mean_by_moments(entry.subs(delta, 1), moments, {y, z, w}),
        constants={k: first_number(likelihood.shape)} if known else {},
        read=(lambda row: row.reshape(-1).tolist()) if likelihood.censored else one_number,
        example=((0.4,) if known else (0.4, 0.3), [2.0, 1.0] if likelihood.censored else 2.0),
        convexity=Convexity(sentence, where),
        source="J. F. Lawless (2003), Statistical Models and Methods for Lifetime Data, 2nd ed., section 5.2.",
        notes=(_CENSORED,) if likelihood.censored else (),
        target_words="a time y, and δ = 1 for an event, 0 if right-censored" if likelihood.censored else "a time y",
    )
