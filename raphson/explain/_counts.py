r"""Counts and classes without order: Bernoulli, binomial, categorical, multinomial, Poisson, negative binomial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from raphson.explain._algebra import Expr, factored, grouped, mean_of, positive, real, sympy
from raphson.explain._definition import Abbreviation, Convexity, Definition, first_number, mean_by_moments, one_number
from raphson.likelihoods import Bernoulli, Binomial, Categorical, Multinomial, NegativeBinomial, Poisson

_GLM = "P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., "
_STRICTLY = Convexity("Strictly convex in the output for every target.", sympy.true)
_LOG_GAMMA = sympy.loggamma


def _logistic(eta: Expr) -> Abbreviation:
    p = positive("p")
    return Abbreviation(p, 1 / (1 + sympy.exp(-eta)), {eta: p * (1 - p)})


def bernoulli(likelihood: Bernoulli) -> Definition:
    """Define yes or no with a logit; weights only if the likelihood has them."""
    eta, y = real("eta y")
    p = _logistic(eta)
    constants = {}
    first = {}
    for field, symbol in (("pos_weight", positive("w")), ("label_weight", positive("v"))):
        weight = getattr(likelihood, field)
        if weight is not None:
            first[field] = weight.reshape(-1)[0]
            constants[symbol] = float(first[field])
    w = positive("w") if "pos_weight" in first else sympy.Integer(1)
    v = positive("v") if "label_weight" in first else sympy.Integer(1)
    q = sympy.Integer(1) - p.symbol
    pieces: tuple[Abbreviation, ...] = (p,)
    if first:
        # 1 - p as a symbol of its own keeps the weighted sums short
        q = positive("q")
        pieces = (
            Abbreviation(p.symbol, p.meaning, {eta: p.symbol * q}),
            Abbreviation(q, 1 - p.symbol, {eta: -p.symbol * q}),
        )
    return Definition(
        likelihood=replace(likelihood, **first),
        outputs=(eta,),
        targets=(y,),
        nll=-v * (w * y * sympy.log(p.symbol) + (1 - y) * sympy.log(q)),
        abbreviations=pieces,
        moments={y: p.symbol},
        constants=constants,
        example=((0.4,), 1.0),
        convexity=_STRICTLY,
        source=_GLM + "section 4.4.",
        notes=()
        if w == 1
        else ("Without targets, the Fisher information averages the weight over labels drawn from the model.",),
    )


def binomial(likelihood: Binomial) -> Definition:
    """Define successes among n trials with a logit."""
    eta, y = real("eta y")
    n = positive("n")
    p = _logistic(eta)
    fixed = likelihood.trials
    log_coefficient = _LOG_GAMMA(n + 1) - _LOG_GAMMA(y + 1) - _LOG_GAMMA(n - y + 1)
    return Definition(
        likelihood=likelihood,
        outputs=(eta,),
        targets=(y,) if fixed is not None else (y, n),
        nll=-n * sympy.log(1 - p.symbol) - y * eta - log_coefficient,
        abbreviations=(p,),
        expect=lambda entry: mean_by_moments(entry, {y: n * p.symbol}, {y}),
        constants={} if fixed is None else {n: float(fixed)},
        given_target=True,
        read=_successes_of_trials if fixed is None else one_number,
        example=((0.4,), [3.0, 2.0] if fixed is None else min(3.0, float(fixed))),
        convexity=_STRICTLY,
        source=_GLM + "section 4.4.",
        target_words="y successes in n trials" + ("; given as (successes, failures)" if fixed is None else ""),
    )


def _successes_of_trials(y: Tensor) -> Sequence[float]:
    successes, failures = y.tolist()
    return (successes, successes + failures)


def _softmax(k: int) -> tuple[tuple[Expr, ...], tuple[Abbreviation, ...]]:
    f = sympy.symbols(f"f_:{k}", real=True)
    z, p = positive("Z"), sympy.symbols(f"p_:{k}", positive=True)
    total = Abbreviation(z, sympy.Add(*(sympy.exp(x) for x in f)), {f[j]: z * p[j] for j in range(k)})
    shares = (
        Abbreviation(p[i], sympy.exp(f[i]) / z, {f[j]: p[i] * (int(i == j) - p[j]) for j in range(k)}) for i in range(k)
    )
    return f, (total, *shares)


_ONLY_CONVEX = Convexity(
    "Convex everywhere, not strictly: adding a constant to all outputs changes nothing, so the Hessian has one zero "
    "eigenvalue, with eigenvector (1, ..., 1).",
    sympy.true,
)
_PLAIN = "For K classes: gradient p - t, Hessian diag(p) - p pᵀ."
_SCALED = "For K classes, s = t_0 + ... + t_{K-1}: gradient s p - t, Hessian s (diag(p) - p pᵀ)."


def categorical(likelihood: Categorical) -> Definition:
    """Define a class among three; what weights and smoothing make of the target is in its row t."""
    k = 3
    f, pieces = _softmax(k)
    t = sympy.symbols(f"t_:{k}", real=True)
    z, *p = (piece.symbol for piece in pieces)
    weight = likelihood.class_weight
    member = replace(likelihood, class_weight=None if weight is None else weight[:k])
    smoothing = likelihood.label_smoothing
    plain = weight is None
    w = [1.0] * k if weight is None else weight[:k].tolist()
    weights, epsilon = sympy.symbols(f"w_:{k}", positive=True), positive("epsilon")
    # The weight of the target and its mean over targets drawn from the model.
    s, mean = (sympy.Integer(1),) * 2 if plain else positive("s m")
    shares = [(1 - epsilon) * p[i] + epsilon / k if smoothing else p[i] for i in range(k)]
    constants = {} if plain else dict(zip(weights, w, strict=True))
    if not plain:
        pieces += (
            Abbreviation(s, sympy.Add(*t), {}),
            Abbreviation(mean, sympy.Add(*(a * b for a, b in zip(weights, shares, strict=True)))),
        )
        constants |= {epsilon: smoothing} if smoothing else {}

    def read(y: Tensor) -> Sequence[float]:
        return [w[i] * ((1 - smoothing) * (i == int(y)) + smoothing / k) for i in range(k)]

    words = "t_k = 1 for the class of the example, 0 for the others"
    if not plain or smoothing:
        words = "t_k = w_k ((1 - ε) [k is the class] + ε/K), with class weights w and label smoothing ε"
    return Definition(
        likelihood=member,
        outputs=f,
        targets=t,
        nll=s * sympy.log(z) - sympy.Add(*(a * b for a, b in zip(t, f, strict=True))),
        abbreviations=pieces,
        expect=lambda entry: entry.subs(s, mean) if not plain else entry,
        constants=constants,
        read=read,
        example=((0.5, -0.3, 0.1), 2),
        convexity=_ONLY_CONVEX,
        source="D. Böhning (1992), Ann. Inst. Statist. Math. 44, 197-200.",
        target_words=words,
        notes=("Written out for K = 3 classes. " + (_PLAIN if plain else _SCALED),),
        arrange=factored,
        joint=True,
    )


def multinomial(likelihood: Multinomial) -> Definition:
    """Define counts of three classes."""
    k = 3
    f, pieces = _softmax(k)
    y = sympy.symbols(f"y_:{k}", real=True)
    n = Abbreviation(positive("n"), sympy.Add(*y), {})
    z = pieces[0].symbol
    log_coefficient = _LOG_GAMMA(n.symbol + 1) - sympy.Add(*(_LOG_GAMMA(count + 1) for count in y))
    return Definition(
        likelihood=likelihood,
        outputs=f,
        targets=y,
        nll=n.symbol * sympy.log(z) - sympy.Add(*(a * b for a, b in zip(y, f, strict=True))) - log_coefficient,
        abbreviations=(*pieces, n),
        expect=lambda entry: entry,
        read=lambda row: row.tolist(),
        given_target=True,
        example=((0.5, -0.3, 0.1), [4.0, 1.0, 2.0]),
        convexity=_ONLY_CONVEX,
        source=_GLM + "section 5.2.",
        target_words="counts y_k that sum to n, which is given",
        notes=("Written out for K = 3 classes. For K classes: gradient n p - y, Hessian n (diag(p) - p pᵀ).",),
        arrange=factored,
        joint=True,
    )


def _log_mean() -> tuple[Expr, Abbreviation]:
    eta, mu = real("eta"), positive("mu")
    return eta, Abbreviation(mu, sympy.exp(eta), {eta: mu})


def poisson(likelihood: Poisson) -> Definition:
    """Define counts with a log mean."""
    y = real("y")
    eta, mu = _log_mean()
    return Definition(
        likelihood=likelihood,
        outputs=(eta,),
        targets=(y,),
        nll=mu.symbol - y * eta + _LOG_GAMMA(y + 1),
        abbreviations=(mu,),
        moments={y: mu.symbol},
        example=((0.4,), 3.0),
        convexity=Convexity(
            "Strictly convex everywhere; the Hessian does not depend on y, so observed and expected agree.", sympy.true
        ),
        source=_GLM + "chapter 6.",
    )


def negative_binomial(likelihood: NegativeBinomial) -> Definition:
    """Define counts with variance mu + alpha mu^2."""
    return _learned_dispersion(likelihood) if likelihood.dispersion is None else _known_dispersion(likelihood)


_NB = "J. F. Lawless (1987), Can. J. Stat. 15, 209-225 (NB2)."


def _known_dispersion(likelihood: NegativeBinomial) -> Definition:
    y, alpha = real("y"), positive("alpha")
    eta, mu = _log_mean()
    m, k = mu.symbol, 1 / alpha
    return Definition(
        likelihood=likelihood,
        outputs=(eta,),
        targets=(y,),
        nll=(y + k) * sympy.log(1 + alpha * m)
        - y * (eta + sympy.log(alpha))
        - _LOG_GAMMA(y + k)
        + _LOG_GAMMA(k)
        + _LOG_GAMMA(y + 1),
        abbreviations=(mu,),
        moments={y: m},
        constants={alpha: first_number(likelihood.dispersion)},
        example=((0.4,), 3.0),
        convexity=_STRICTLY,
        arrange=factored,
        source=_NB,
        target_words="a count with mean μ and variance μ + α μ²",
    )


def _learned_dispersion(likelihood: NegativeBinomial) -> Definition:
    y, log_alpha, a, b = real("y a A B")
    eta, mu = _log_mean()
    m, k = mu.symbol, positive("k")
    shape = Abbreviation(k, sympy.exp(-log_alpha), {log_alpha: -k})
    # A is the score of k in a form with mean zero, B its derivative: differences that belong together.
    ratio = sympy.log(1 + m / k)
    score = Abbreviation(a, sympy.digamma(y + k) - sympy.digamma(k) - ratio, {k: b, eta: -m / (k + m)})
    slope_parts = -sympy.trigamma(k) + m / (k * (k + m))
    slope = Abbreviation(b, sympy.trigamma(y + k) + slope_parts)

    def rewrite(entry: Expr) -> Expr:
        entry = entry.subs(sympy.digamma(y + k), a + sympy.digamma(k) + ratio)
        return entry.subs(sympy.trigamma(y + k), b - slope_parts)

    mean_trigamma = mean_of(sympy.trigamma(y + k))
    return Definition(
        likelihood=likelihood,
        outputs=(eta, log_alpha),
        targets=(y,),
        nll=(y + k) * ratio - y * (eta + log_alpha) - _LOG_GAMMA(y + k) + _LOG_GAMMA(k) + _LOG_GAMMA(y + 1),
        abbreviations=(mu, shape, score, slope),
        moments={y: m, a: sympy.Integer(0), b: mean_trigamma + slope_parts},
        example=((0.4, -0.5), 3.0),
        convexity=Convexity(
            "Strictly convex in the log mean for a fixed dispersion, not in both outputs: the observed Hessian is "
            "indefinite at counts away from the mean (at mean 1 and dispersion 1 at all but the counts 1 and 2). The "
            "Fisher information is positive definite everywhere.",
        ),
        source=_NB,
        target_words="a count with mean μ and variance μ + μ²/k",
        notes=("E is a mean over counts y drawn from the model; it has no closed form and is summed.",),
        rewrite=rewrite,
        arrange=lambda entry: grouped(entry, [a, b, sympy.trigamma(k), mean_trigamma]),
    )
