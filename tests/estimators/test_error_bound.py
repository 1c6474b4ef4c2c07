"""The error certificate of a fit against optima computed with 50 digits."""

from __future__ import annotations

import copy
import pickle
import warnings

import mpmath as mp
import numpy as np
import pytest
import torch

import raphson as rp
from raphson._errors import NotEstimableError

PLAIN = ("softmax", "logistic", "poisson", "gaussian", "binomial", "gamma", "negative binomial")
OTHERS = ("class counts", "shares", "counts in pairs", "weighted labels", "weibull", "censored", "ordinal")
KINDS = PLAIN + OTHERS
DISPERSION, SHAPE = 0.3, 1.5
CLASSES = ("softmax", "class counts", "shares")


def optimum(x, targets, weights, kind, l2, start, trials=1):
    """Newton's method with 50 digits: coefficients ``(P,)``, of columns with ones first, class 0 the reference.

    ``start`` is ``(R, D')``, one row for each output; of levels it is the two cuts, then the slopes, ``(2 + D,)``.
    """
    with mp.workdps(50):
        rows = [[mp.mpf(1), *map(mp.mpf, map(float, row))] for row in x]
        start = np.asarray(start)
        r, d = (2, len(rows[0])) if kind == "ordinal" else start.shape
        theta = mp.matrix([mp.mpf(float(value)) for value in start.ravel()])
        p = len(theta)

        def design(row):
            z = mp.zeros(r, p)
            for a in range(r):
                if kind == "ordinal":
                    z[a, a] = 1
                    for i in range(1, d):
                        z[a, 1 + i] = -row[i]
                else:
                    for i in range(d):
                        z[a, a * d + i] = row[i]
            return z

        designs = [design(row) for row in rows]
        penalty = mp.zeros(p, p)
        share = mp.mpf(1) / (r + 1) if kind in CLASSES else mp.mpf(0)
        for i in range(1, d):
            if kind == "ordinal":
                penalty[1 + i, 1 + i] = mp.mpf(float(l2))
            else:
                for a in range(r):
                    for b in range(r):
                        penalty[a * d + i, b * d + i] = mp.mpf(float(l2)) * ((a == b) - share)
        total = mp.fsum(map(mp.mpf, map(float, weights)))
        for _ in range(60):
            gradient, hessian = penalty * theta, penalty.copy()
            for z, target, weight in zip(designs, targets, weights, strict=True):
                slope, curve = slope_and_curvature(list(z * theta), target, kind, trials)
                w = mp.mpf(float(weight)) / total
                gradient += w * (z.T * mp.matrix(slope))
                hessian += w * (z.T * (mp.matrix(curve) * z))
            step = mp.lu_solve(hessian, -gradient)
            theta += step
            if mp.norm(step) < mp.mpf(10) ** -40 * (1 + mp.norm(theta)):  # 50 digits of theta
                return list(theta)
    raise AssertionError("no optimum")


def sigma(v):
    return 1 / (1 + mp.exp(-v))


def slope_and_curvature(f, target, kind, trials):
    """The first and second derivatives of a row's loss in its outputs."""
    if kind in CLASSES:
        terms = [mp.exp(v) for v in f]
        p = [t / (1 + mp.fsum(terms)) for t in terms]
        t = [mp.mpf(int(target == a)) for a in range(3)] if kind == "softmax" else [mp.mpf(float(v)) for v in target]
        n = mp.fsum(t)
        slope = [n * p[a] - t[a + 1] for a in range(len(p))]
        return slope, [[n * p[a] * ((a == b) - p[b]) for b in range(len(p))] for a in range(len(p))]
    if kind == "ordinal":
        # by the definition: the logarithm of a difference of distribution functions, differentiated by hand
        cuts = [mp.mpf(0), *map(sigma, f), mp.mpf(1)]
        level = int(target)
        prob = cuts[level + 1] - cuts[level]
        first = [mp.mpf(0)] * 2
        second = [[mp.mpf(0)] * 2 for _ in range(2)]
        score = [mp.mpf(0)] * 2
        for a, sign in ((level, 1), (level - 1, -1)):
            if 0 <= a < 2:
                s = sigma(f[a])
                score[a] = sign * s * (1 - s) / prob
                second[a][a] -= sign * s * (1 - s) * (1 - 2 * s) / prob
        first = [-v for v in score]
        for a in range(2):
            for b in range(2):
                second[a][b] += score[a] * score[b]
        return first, second
    if kind in ("logistic", "binomial", "weighted labels", "counts in pairs"):
        if kind == "counts in pairs":
            positive, negative = (mp.mpf(float(v)) for v in target)
        else:
            y = mp.mpf(float(target))
            positive, negative = y, trials - y
        if kind == "weighted labels":
            positive, negative = mp.mpf(0.5) * 3 * positive, mp.mpf(0.5) * negative
        p = sigma(f[0])
        return [negative * p - positive * (1 - p)], [[(positive + negative) * p * (1 - p)]]
    if kind in ("weibull", "censored"):
        time, event = (target, 1.0) if kind == "weibull" else target
        k = mp.mpf(SHAPE)
        hazard = mp.exp(k * (mp.log(mp.mpf(float(time))) - f[0]))
        return [k * (mp.mpf(float(event)) - hazard)], [[k * k * hazard]]
    y, mean, phi = mp.mpf(float(target)), mp.exp(f[0]), mp.mpf(DISPERSION)
    if kind == "gamma":
        return [(1 - y / mean) / phi], [[y / mean / phi]]
    if kind == "negative binomial":
        return [(mean - y) / (1 + phi * mean)], [[mean * (1 + phi * y) / (1 + phi * mean) ** 2]]
    return ([mean - y], [[mean]]) if kind == "poisson" else ([f[0] - y], [[mp.mpf(1)]])


def draw(seed):
    """A random problem: kind, size, units, weights, penalty, tolerance, and how nearly classes are separated."""
    g = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    n, d = int(g.integers(15, 40)), int(g.integers(1, 4))
    x = g.normal(size=(n, d)) * 10.0 ** g.uniform(-3, 3, d) + (g.random() < 0.3) * 10.0 ** g.uniform(-1, 3, d)
    standard = (x - x.mean(0)) / x.std(0)
    size = g.choice([0.3, 1.0, 4.0])  # 4: nearly separated
    slopes = g.normal(size=(3, d)) * size
    choice = g.integers(3)
    weights = [None, g.integers(1, 5, n).astype(float), g.uniform(0.1, 3.0, n)][choice]
    l2 = float(g.choice([0.0, 1e-3, 0.1]))
    tol = float(10.0 ** g.uniform(-10, -1))
    f = standard @ slopes.T
    trials = 7 if kind == "binomial" else 1
    bounded = np.clip(f[:, 0], -3, 3)
    share = 1 / (1 + np.exp(-f[:, 0]))
    if kind == "softmax":
        y = (f + g.gumbel(size=f.shape)).argmax(1)
        y[:3] = [0, 1, 2]
    elif kind in ("class counts", "shares"):
        p = np.exp(f - f.max(1, keepdims=True))
        y = np.array([g.multinomial(5, row / row.sum()) for row in p]) + (np.arange(n) < 3)[:, None]
        y = y if kind == "class counts" else (y + 0.1) / (y + 0.1).sum(1, keepdims=True)
    elif kind in ("logistic", "weighted labels"):
        y = (g.random(n) < share).astype(float)
        y[:2] = [0, 1]
    elif kind == "binomial":
        y = g.binomial(trials, share).astype(float)
    elif kind == "counts in pairs":
        total = g.integers(1, 9, n)
        y = g.binomial(total, share)
        y = np.c_[y, total - y].astype(float)
        y[:2] = [[1, 0], [0, 1]]
    elif kind == "ordinal":
        y = np.digitize(f[:, 0] + g.logistic(size=n), [-0.7, 0.7])
        y[:3] = [0, 1, 2]
    elif kind in ("weibull", "censored"):
        y = g.weibull(SHAPE, n) * np.exp(bounded)
        y = y if kind == "weibull" else np.c_[y, np.maximum(g.random(n) < 0.7, np.arange(n) < 5)]
    elif kind == "gamma":
        y = g.gamma(1 / DISPERSION, DISPERSION * np.exp(bounded))
    elif kind == "negative binomial":
        y = g.poisson(g.gamma(1 / DISPERSION, DISPERSION * np.exp(bounded))).astype(float)
        y[0] = 1
    elif kind == "poisson":
        y = g.poisson(np.exp(bounded)).astype(float)
        y[0] = 1
    else:
        y = f[:, 0] + g.normal(size=n)
    return kind, x, y, weights, l2, tol, trials


def fitted(kind, x, y, weights, l2, tol, trials):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "softmax":
            return rp.MultinomialLogisticRegression(l2=l2, tol=tol).fit(x, y, weights)
        one = torch.ones(1, dtype=torch.float64)
        made = {
            "logistic": rp.Bernoulli(),
            "poisson": rp.Poisson(),
            "gaussian": rp.Gaussian(),
            "gamma": rp.Gamma(DISPERSION),
            "negative binomial": rp.NegativeBinomial(DISPERSION),
            "class counts": rp.Multinomial(),
            "shares": rp.Categorical(),
            "counts in pairs": rp.Binomial(),
            "weighted labels": rp.Bernoulli(3 * one, 0.5 * one),
            "weibull": rp.Weibull(SHAPE),
            "censored": rp.Weibull(SHAPE, censored=True),
            "ordinal": rp.Ordinal(3),
            "binomial": rp.Binomial(trials),
        }
        return rp.VectorGLM(made[kind], l2=l2, tol=tol).fit(x, y, weights)


def reported(model, kind):
    """Coefficients as the 50-digit optimum has them."""
    if kind == "ordinal":
        return np.r_[model.intercept_, -model.coef_[0]]
    found = np.column_stack([model.intercept_, model.coef_])
    return found[1:] if kind in CLASSES else found


def slack_of(seed):
    """Bounds over errors, ``(P,)``; None where nothing is certified."""
    kind, x, y, weights, l2, tol, trials = draw(seed)
    model = fitted(kind, x, y, weights, l2, tol, trials)
    bound = model.solution_.error_bound
    if not bound.certified:
        return None
    found = reported(model, kind)
    exact = optimum(x, y, np.ones(len(x)) if weights is None else weights, kind, l2, found, trials)
    with mp.workdps(50):
        error = np.array([float(abs(mp.mpf(float(a)) - b)) for a, b in zip(found.ravel(), exact, strict=True)])
    allowed = bound.coefficients.numpy()
    assert (error <= allowed).all(), (seed, kind, error, allowed)
    return allowed / np.maximum(error, 1e-300)


def check(seeds):
    slacks = {kind: [] for kind in KINDS}
    missing = 0
    for seed in seeds:
        slack = slack_of(seed)
        missing += slack is None
        if slack is not None:
            slacks[KINDS[seed % len(KINDS)]].append(slack)
    for kind, values in slacks.items():
        assert np.median(np.concatenate(values)) <= 100, (kind, np.median(np.concatenate(values)))
    assert missing <= 0.1 * len(seeds)


def test_the_error_bound_holds_against_50_digits():
    check(range(100))


@pytest.mark.nightly
def test_the_error_bound_holds_against_50_digits_in_2000_draws():
    check(range(2000))


def test_coefficients_that_sum_to_zero_are_bounded_too():
    kind, x, y, weights, l2, tol, _ = draw(0)
    assert kind == "softmax"
    relative = rp.MultinomialLogisticRegression(l2=l2, tol=tol).fit(x, y, weights)
    model = rp.MultinomialLogisticRegression(l2=l2, tol=tol, reference=None).fit(x, y, weights)
    bound = model.solution_.error_bound
    assert bound.certified
    start = np.column_stack([relative.intercept_, relative.coef_])[1:]
    exact = optimum(x, y, np.ones(len(x)) if weights is None else weights, kind, l2, start)
    with mp.workdps(50):
        each = start.shape[1]
        whole = [[mp.mpf(0)] * each, *(exact[i : i + each] for i in range(0, len(exact), each))]
        mean = [mp.fsum(column) / 3 for column in zip(*whole, strict=True)]
        centered = [value - m for line in whole for value, m in zip(line, mean, strict=True)]
        found = np.column_stack([model.intercept_, model.coef_]).ravel()
        error = np.array([float(abs(mp.mpf(float(a)) - b)) for a, b in zip(found, centered, strict=True)])
    assert (error <= bound.coefficients.numpy()).all()


def test_the_bound_is_made_when_it_is_asked_for_and_once(monkeypatch):
    from raphson.estimators.fit import _certificate

    calls = []
    whole = _certificate.certify
    monkeypatch.setattr(_certificate, "certify", lambda *args: calls.append(1) or whole(*args))
    model = fitted(*draw(0))
    assert calls == []
    assert model.solution_.error_bound is model.solution_.error_bound
    assert calls == [1]


def test_what_cannot_be_certified_says_why():
    g = np.random.default_rng(0)
    x = g.normal(size=(40, 2))
    y = (x[:, 0] + g.normal(size=40) > 0).astype(int)
    count = g.poisson(1.0, 40)
    cases = {
        "Jeffreys": rp.MultinomialLogisticRegression(penalty="jeffreys").fit(x, y),
        "loss of NegativeBinomial is not convex": rp.VectorGLM(rp.NegativeBinomial()).fit(x, count + (count > 1)),
        "loss of Ordinal is convex, but": rp.VectorGLM(rp.Ordinal(3, "probit")).fit(x, count.clip(max=2)),
        "loss of Gamma is convex, but": rp.VectorGLM(rp.Gamma(0.5, link="inverse")).fit(x, 1.0 + count),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases["collinear"] = rp.MultinomialLogisticRegression().fit(np.column_stack([x, x[:, 0]]), y)
        cases["not below"] = rp.MultinomialLogisticRegression(max_iter=1, tol=1e-12).fit(
            20 * x, x[:, 0] + x[:, 1] > 0.1
        )
    for word, model in cases.items():
        bound = model.solution_.error_bound
        assert not bound.certified and bound.coefficients is None and bound.largest == np.inf
        assert bound.sentence.startswith("Not certified: ") and word in bound.sentence, bound.sentence


def test_a_model_without_rows_says_how_to_get_the_bound():
    model = fitted(*draw(0))
    other = pickle.loads(pickle.dumps(model))
    with pytest.raises(NotEstimableError, match="attach|raphson check"):
        _ = other.solution_.error_bound
    kind, x, y, weights, *_ = draw(0)
    again = other.attach(x, y, weights).solution_.error_bound
    np.testing.assert_allclose(again.coefficients, model.solution_.error_bound.coefficients, rtol=1e-6)
    np.testing.assert_array_equal(other.coef_, model.coef_)
    for same in (copy.copy(model), copy.deepcopy(model)):
        np.testing.assert_array_equal(same.solution_.error_bound.coefficients, model.solution_.error_bound.coefficients)
    with pytest.raises(rp.InputError, match="not fitted with|columns|features"):
        other.attach(np.column_stack([x, x]), y, weights)


def test_other_rows_are_noticed():
    kind, x, y, weights, l2, _, _ = draw(0)
    model = rp.MultinomialLogisticRegression(l2=l2).fit(x, y, weights)
    moved = y.copy()
    moved[5] = (moved[5] + 1) % 3
    assert model.loglik_ < 0
    with pytest.warns(rp.RaphsonWarning, match="not the rows that the model was fitted to"):
        bound = model.attach(x, moved, weights).solution_.error_bound
    assert not bound.certified or bound.largest > 0.01
