r"""Beta, Student's t and ordered levels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from raphson.explain._algebra import Expr, factored, grouped, positive, real, sympy
from raphson.explain._definition import Abbreviation, Convexity, Definition, first_number
from raphson.likelihoods import Beta, Ordinal, StudentT


def beta(likelihood: Beta) -> Definition:
    """Define proportions with a logit mean and a log precision."""
    eta, s, u, v = real("eta s S T")
    y, mu, q, phi = positive("y mu q phi")
    a, b = positive("a b")
    mean = Abbreviation(mu, 1 / (1 + sympy.exp(-eta)), {eta: mu * q})
    rest = Abbreviation(q, 1 - mu, {eta: -mu * q})
    precision = Abbreviation(phi, sympy.exp(s), {s: phi})
    shapes = (Abbreviation(a, mu * phi), Abbreviation(b, q * phi))
    # S is the score of the mean of log(y/(1 - y)), T that of b: their means are zero.
    score_a = sympy.digamma(a) - sympy.digamma(phi)
    score_b = sympy.digamma(b) - sympy.digamma(phi)
    trigamma = {x: sympy.trigamma(x) for x in (a, b, phi)}
    scores = (
        Abbreviation(
            u,
            sympy.digamma(a) - sympy.digamma(b) - sympy.log(y / (1 - y)),
            {a: trigamma[a], b: -trigamma[b]},
        ),
        Abbreviation(v, score_b - sympy.log(1 - y), {b: trigamma[b], phi: -trigamma[phi]}),
    )

    special = [u, v, sympy.digamma(phi), *trigamma.values()]

    def rewrite(entry: Expr) -> Expr:
        entry = sympy.expand(entry.subs({sympy.log(y): score_a - u - v, sympy.log(1 - y): score_b - v}))
        return sympy.Add(
            *(_with_rest(part) * key for key, part in sympy.collect(entry, special, evaluate=False).items())
        )

    def _with_rest(part: Expr) -> Expr:
        forms = (part, part.subs(q, 1 - mu), part.subs(mu, 1 - q))
        return min(map(factored, forms), key=lambda form: form.count_ops())

    return Definition(
        likelihood=likelihood,
        outputs=(eta, s),
        targets=(y,),
        nll=sympy.loggamma(a)
        + sympy.loggamma(b)
        - sympy.loggamma(phi)
        - (a - 1) * sympy.log(y)
        - (b - 1) * sympy.log(1 - y),
        abbreviations=(mean, rest, precision, *shapes, *scores),
        moments={u: sympy.Integer(0), v: sympy.Integer(0)},
        example=((0.4, 1.2), 0.35),
        convexity=Convexity(
            "Not convex everywhere, not even in the logit of the mean alone: S grows without bound as y approaches 0 "
            "or 1, and its terms then outweigh the others. (It is convex in a and b.) The Fisher information is "
            "positive definite everywhere.",
        ),
        source="S. Ferrari and F. Cribari-Neto (2004), J. Applied Statistics 31, 799-815.",
        target_words="a number strictly between 0 and 1 with mean μ and variance μ(1 - μ)/(1 + φ)",
        rewrite=rewrite,
        arrange=lambda entry: grouped(entry, [u, v]),
    )


def student_t(likelihood: StudentT) -> Definition:
    """Define Student's t with a location and a log scale; its degrees of freedom learned or known."""
    mu, y, s, kappa, r = real("mu y s kappa r")
    sigma, nu = positive("sigma nu")
    known = likelihood.df is not None
    scale = Abbreviation(sigma, sympy.exp(s), {s: sigma})
    freedom = () if known else (Abbreviation(nu, sympy.exp(kappa), {kappa: nu}),)
    residual = Abbreviation(r, (y - mu) / sigma, {mu: -1 / sigma, sigma: -r / sigma})
    half = (nu + 1) / 2
    spread = sympy.log(1 + r**2 / nu)
    width = sympy.Dummy("W", positive=True)

    def arrange(entry: Expr) -> Expr:
        parts = sympy.collect(sympy.expand(entry), [spread], evaluate=False)
        gammas = (sympy.digamma, sympy.trigamma, sympy.polygamma)
        done = sympy.Integer(0)
        for key, part in parts.items():
            special = sympy.Add(*(t for t in sympy.Add.make_args(part) if t.has(*gammas)))
            done += key * factored(part - special) + factored(special)
        return done if not done.has(sympy.zoo) else entry

    def expect(entry: Expr) -> Expr:
        total = sympy.Integer(0)
        log_mean = sympy.digamma(half) - sympy.digamma(nu / 2)
        for term in sympy.Add.make_args(sympy.expand(entry.subs({spread: log_mean, nu + r**2: width}))):
            fixed, moving = term.as_independent(r, width, as_Add=False)
            powers = moving.as_powers_dict()
            total += fixed * _mean_power(int(powers[r]), -int(powers[width]), nu)
        return total

    return Definition(
        likelihood=likelihood,
        outputs=(mu, s) if known else (mu, s, kappa),
        targets=(y,),
        nll=s + half * spread + sympy.loggamma(nu / 2) - sympy.loggamma(half) + sympy.log(nu * sympy.pi) / 2,
        abbreviations=(scale, *freedom, residual),
        constants={nu: first_number(likelihood.df)} if known else {},
        example=((0.3, -0.2) if known else (0.3, -0.2, 1.3), 1.5),
        expect=expect,
        convexity=Convexity(
            "Convex in the location where r² ≤ ν, and in s for a fixed location, but not in both: the determinant "
            "of that block is negative wherever y differs from the location. The Fisher information is positive "
            "definite everywhere.",
            sympy.Eq(r, 0) if known else sympy.false,
        ),
        source="K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989), JASA 84, 881-896.",
        arrange=arrange,
    )


def _mean_power(above: int, below: int, nu: Expr) -> Expr:
    r"""Return the mean of :math:`r^a / (\nu + r^2)^b`, since :math:`r^2/(\nu + r^2)` is beta(1/2, nu/2)."""
    if above % 2:
        return sympy.Integer(0)
    i, rest = above // 2, below - above // 2
    risen = sympy.rf(sympy.S.Half, i) * sympy.rf(nu / 2, rest) / sympy.rf((nu + 1) / 2, i + rest)
    return sympy.expand_func(risen) / nu**rest


# Distribution function, density and derivative of the density.
def _links(x: Expr) -> dict[str, tuple[Expr, Expr, Expr]]:
    logistic = 1 / (1 + sympy.exp(-x))
    density = logistic * (1 - logistic)
    normal = sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)
    inner = sympy.exp(x - sympy.exp(x))
    return {
        "logit": (logistic, density, density * (1 - 2 * logistic)),
        "probit": (sympy.erfc(-x / sympy.sqrt(2)) / 2, normal, -x * normal),
        "cloglog": (1 - sympy.exp(-sympy.exp(x)), inner, inner * (1 - sympy.exp(x))),
    }


_LINK_WORDS = {
    "logit": "F(η) = 1/(1 + exp(-η)), F′ = F(1 - F), F″ = F′(1 - 2F)",
    "probit": "F = Φ, the normal distribution function; F′ = φ, the density; F″ = -η φ(η)",
    "cloglog": "F(η) = 1 - exp(-exp(η)), F′ = exp(η - exp(η)), F″ = F′(1 - exp(η))",
}


def ordinal(likelihood: Ordinal) -> Definition:
    """Define three ordered levels with two cumulative predictors; t marks the level."""
    levels = 3
    cuts = levels - 1
    eta = sympy.symbols(f"eta_:{cuts}", real=True)
    t = sympy.symbols(f"t_:{levels}", real=True)
    p, f, h = (sympy.symbols(f"{name}_:{levels}", positive=name == "p", real=True) for name in "pfh")
    values = [_links(x)[likelihood.link] for x in eta]
    cdf, density, bend = sympy.Function("F"), sympy.Function("F'"), sympy.Function("F''")
    pieces = [Abbreviation(f[j], values[j][1], {eta[j]: h[j]}, shown=density(eta[j])) for j in range(cuts)]
    pieces += [Abbreviation(h[j], values[j][2], {}, shown=bend(eta[j])) for j in range(cuts)]
    for k in range(levels):
        upper = values[k][0] if k < cuts else sympy.Integer(1)
        lower = values[k - 1][0] if k else sympy.Integer(0)
        rates = {eta[k]: f[k]} if k < cuts else {}
        if k:
            rates[eta[k - 1]] = -f[k - 1]
        above = cdf(eta[k]) if k < cuts else sympy.Integer(1)
        shown = above - cdf(eta[k - 1]) if k else above
        pieces.append(Abbreviation(p[k], upper - lower, rates, shown=shown))

    def arrange(entry: Expr) -> Expr:
        groups = sympy.collect(sympy.expand(entry), [*f, *h], evaluate=False)
        return sympy.Add(*(sympy.factor_terms(part) * key for key, part in groups.items()))

    def read(y: Tensor) -> list[float]:
        return [float(int(y) == k) for k in range(levels)]

    return Definition(
        likelihood=replace(likelihood, n_levels=levels),
        outputs=eta,
        targets=t,
        nll=-sympy.Add(*(a * sympy.log(b) for a, b in zip(t, p, strict=True))),
        abbreviations=tuple(pieces),
        expect=lambda entry: arrange(entry.subs(dict(zip(t, p, strict=True)))),
        read=read,
        example=((-0.5, 0.9), 1),
        convexity=Convexity(
            "Convex wherever the outputs are increasing, because F and 1 - F are log-concave.", sympy.true
        ),
        source="P. McCullagh (1980), J. R. Statist. Soc. B 42, 109-142.",
        target_words="t_k = 1 for the level of the example, 0 for the others",
        notes=(
            "The outputs must increase. " + _LINK_WORDS[likelihood.link] + ".",
            "Written out for 3 levels. For K levels both matrices are tridiagonal, with f_k = F′(η_k), h_k = F″(η_k): "
            "observed entries f_k² (t_k/p_k² + t_{k+1}/p_{k+1}²) + h_k (t_{k+1}/p_{k+1} - t_k/p_k) and "
            "-f_k f_{k+1} t_{k+1}/p_{k+1}²; expected entries f_k² (1/p_k + 1/p_{k+1}) and -f_k f_{k+1}/p_{k+1}.",
        ),
        arrange=arrange,
        identities={sympy.Add(*p): sympy.Integer(1)},
        joint=True,
    )
