"""Jeffreys' penalty against published estimates, brute force and automatic differentiation; profile likelihoods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import raphson as rp
from raphson.estimators.fit._jeffreys import JeffreysObjective, _differences, information_gradient
from raphson.likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Gamma,
    Gaussian,
    HeteroscedasticGaussian,
    InverseGaussian,
    Multinomial,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    Weibull,
)

RNG = np.random.default_rng(0)
X = pd.DataFrame({"a": RNG.normal(size=40), "b": RNG.integers(0, 2, 40).astype(float)})
POSITIVE = np.exp(0.3 * X["a"].to_numpy() + 0.5 * RNG.normal(size=40))

GROUPS = np.repeat([0.0, 1.0], [10, 4])[:, None]
YES = np.repeat([0, 1, 1], [6, 4, 4])
"""Ten rows with 4 of yes, and 4 with nothing else: Fisher's exact p is 0.085."""

FAMILIES = [
    (Bernoulli(), (X["a"] + RNG.normal(size=40) > 0).to_numpy(float)),
    (Poisson(), RNG.poisson(2, 40)),
    (Gaussian(), RNG.normal(size=40)),
    (HeteroscedasticGaussian(), RNG.normal(size=40)),
    (NegativeBinomial(), RNG.negative_binomial(1, 0.3, 40)),
    (Gamma(), POSITIVE),
    (InverseGaussian(), POSITIVE),
    (Weibull(), POSITIVE),
    (Beta(), RNG.beta(2, 3, 40)),
    (StudentT(), RNG.standard_t(3, 40)),
    (Ordinal(3), RNG.integers(0, 3, 40)),
    (Binomial(5), RNG.integers(0, 6, 40)),
    (Categorical(), RNG.integers(0, 3, 40)),
    (Multinomial(), RNG.multinomial(4, [0.2, 0.3, 0.5], 40)),
]
IDS = [type(likelihood).__name__ for likelihood, _ in FAMILIES]


def test_the_remedy_does_not_invent_certainty():
    with pytest.warns(rp.SeparationWarning, match=r"goes to \+inf.*penalty='jeffreys'"):
        plain = rp.MultinomialLogisticRegression().fit(GROUPS, YES)
    frame = plain.estimates().to_frame()
    assert frame["coef"].isna().tolist() == [False, True]
    assert float(frame["coef"].iloc[0]) == pytest.approx(np.log(4 / 6), abs=1e-9)
    assert float(frame["std_err"].iloc[0]) == pytest.approx((1 / 4 + 1 / 6) ** 0.5, abs=1e-9)
    ridge = rp.MultinomialLogisticRegression(l2=1e-3).fit(GROUPS, YES)
    assert ridge.summary().to_frame()["z"].isna().tolist() == [False, True]
    assert "Only the penalty keeps" in str(ridge.summary()) and "penalty='jeffreys'" in str(ridge.summary())
    firth = rp.MultinomialLogisticRegression(penalty="jeffreys").fit(GROUPS, YES)
    # half an observation is added to every cell
    assert firth.coef_[1, 0] == pytest.approx(np.log(4.5 / 0.5) - np.log(4.5 / 6.5), abs=1e-8)
    assert float(firth.estimates().z[1]) == pytest.approx(1.44, abs=0.005)
    assert "Jeffreys-penalized (Firth)" in str(firth.summary())
    with pytest.raises(rp.InputError, match="profile_test"):
        firth.likelihood_ratio_test()


ALLIGATORS = {  # food by size and lake, brglm2: (intercept), size > 2.3, Oklawaha, Trafford, George
    "Invertebrate": [-1.648899896, -1.401962371, 2.461142021, 2.641366455, 1.560044542],
    "Reptile": [-2.249749519, 0.320948718, 1.122673846, 1.578989908, -0.980018200],
    "Bird": [-1.901749775, 0.582876770, -1.035911394, 0.404903663, -0.621316867],
    "Other": [-0.721170461, -0.314775255, -0.719261622, 0.671438081, -0.779278908],
}
# Agresti (2013), table 8.1, summed over gender: lake, size above 2.3, then Fish, Invertebrate, Reptile, Bird, Other
FOOD = [
    [0, 0, 23, 4, 2, 2, 8],
    [0, 1, 7, 0, 1, 3, 5],
    [1, 0, 5, 11, 1, 0, 3],
    [1, 1, 13, 8, 6, 1, 0],
    [2, 0, 5, 11, 2, 1, 5],
    [2, 1, 8, 7, 6, 3, 5],
    [3, 0, 16, 19, 1, 2, 3],
    [3, 1, 17, 1, 0, 1, 3],
]


def test_multinomial_estimates_are_those_published():
    table = np.array(FOOD, dtype=float)
    x = np.column_stack([table[:, 1], table[:, :1] == np.arange(1, 4)]).repeat(5, 0)
    y = np.tile(["Fish", *ALLIGATORS], len(table))
    model = rp.MultinomialLogisticRegression(penalty="jeffreys", reference="Fish")
    model.fit(x, y, sample_weight=table[:, 2:].ravel())
    found = model.estimates().to_frame()["coef"]
    for name, expected in ALLIGATORS.items():
        np.testing.assert_allclose(found.loc[name].to_numpy(float), expected, atol=2e-8)
    errors = model.standard_errors().loc["Invertebrate"].to_numpy(float)
    np.testing.assert_allclose(errors, [0.524144573, 0.396226704, 0.647690532, 0.659413419, 0.600356896], atol=1e-8)


# Schoener (1970): grahami, opalinus, height >= 5 ft, diameter > 2 in, shady, time of day
LIZARDS = [
    [20, 2, 0, 0, 0, 0],
    [8, 1, 0, 0, 0, 1],
    [4, 4, 0, 0, 0, 2],
    [13, 0, 1, 0, 0, 0],
    [8, 0, 1, 0, 0, 1],
    [12, 0, 1, 0, 0, 2],
    [8, 3, 0, 1, 0, 0],
    [4, 1, 0, 1, 0, 1],
    [5, 3, 0, 1, 0, 2],
    [6, 0, 1, 1, 0, 0],
    [1, 1, 1, 1, 0, 2],
    [34, 11, 0, 0, 1, 0],
    [69, 20, 0, 0, 1, 1],
    [18, 10, 0, 0, 1, 2],
    [31, 5, 1, 0, 1, 0],
    [55, 4, 1, 0, 1, 1],
    [13, 3, 1, 0, 1, 2],
    [17, 15, 0, 1, 1, 0],
    [60, 32, 0, 1, 1, 1],
    [8, 8, 0, 1, 1, 2],
    [12, 1, 1, 1, 1, 0],
    [21, 5, 1, 1, 1, 1],
    [4, 4, 1, 1, 1, 2],
]


def test_binomial_estimates_are_those_published():
    table = np.array(LIZARDS, dtype=float)
    x = np.column_stack([table[:, 2:5], table[:, 5:] == np.array([1, 2])])
    model = rp.VectorGLM(Binomial(), penalty="jeffreys").fit(x, table[:, :2])
    found = model.estimates().to_frame().to_numpy(float)
    expected = [1.9018330897, 1.1064262819, -0.7536292103, -0.8176592818, 0.2279603850, -0.7273111108]
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-8)
    errors = [0.3373533542, 0.2544032839, 0.2102715217, 0.3186057462, 0.2488410804, 0.2974581603]
    np.testing.assert_allclose(found[:, 1], errors, atol=1e-8)


@pytest.mark.parametrize(("likelihood", "y"), FAMILIES, ids=IDS)
def test_the_gradient_is_that_of_the_value(likelihood, y):
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 40)
    table = pd.concat([X, X[["a"]].rename(columns={"a": "again"})], axis=1)
    with pytest.warns(rp.CollinearityWarning):
        model = rp.VectorGLM(likelihood, penalty="jeffreys").fit(table, y, sample_weight=weights)
    assert model.solution_.converged
    problem = JeffreysObjective(model._fitted.objective)
    theta = model.solution_.theta + 0.1 * torch.from_numpy(np.random.default_rng(2).normal(size=problem.n_parameters))
    gradient = problem.value_and_gradient(theta)[1]
    for i in range(problem.n_parameters):
        step = torch.zeros_like(theta)
        step[i] = 1e-5
        difference = (problem.value(theta + step) - problem.value(theta - step)) / 2e-5
        assert float(gradient[i]) == pytest.approx(difference, rel=1e-5, abs=1e-8)
    best = minimize(lambda v: problem.value(torch.from_numpy(v)), model.solution_.theta.numpy(), method="BFGS").fun
    assert model.solution_.value <= best + 1e-9 * (1.0 + abs(best))


@pytest.mark.parametrize(("likelihood", "y"), FAMILIES, ids=IDS)
def test_differentiated_information_agrees_with_differences(likelihood, y):
    model = rp.VectorGLM(likelihood, penalty="jeffreys").fit(X, y)
    f, targets = model._fitted.objective.predictors(model.solution_.theta).mT, model._fitted.objective.y
    m = torch.from_numpy(np.random.default_rng(3).normal(size=(40, f.shape[1], f.shape[1])))
    expected = _differences(likelihood, f, targets, m @ m.mT)
    found = information_gradient(likelihood, f, targets, m @ m.mT)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7 * max(1.0, float(expected.abs().max())))


def test_a_profile_interval_ends_where_a_refit_says():
    model = rp.VectorGLM(Poisson()).fit(X, FAMILIES[1][1])
    for bound in model.confint(method="profile", columns=["a"]).to_numpy(float)[0]:
        held = rp.VectorGLM(Poisson()).fit(X[["b"]], FAMILIES[1][1], offset=bound * X["a"].to_numpy())
        assert 2 * (model.loglik_ - held.loglik_) == pytest.approx(3.841458820694124, abs=1e-6)


def test_what_does_not_go_together():
    y = FAMILIES[1][1]
    with pytest.raises(rp.InputError, match="does not go with l2"):
        rp.VectorGLM(Poisson(), penalty="jeffreys", l2=1e-3).fit(X, y)
    with pytest.raises(rp.InputError, match="Unknown penalty"):
        rp.VectorGLM(Poisson(), penalty="lasso").fit(X, y)
    with pytest.raises(rp.InputError, match="leave out kind"):
        rp.VectorGLM(Poisson()).fit(X, y).confint(method="profile", kind="sandwich")
    with pytest.raises(rp.InputError, match="ridge penalty"):
        rp.VectorGLM(Poisson(), l2=1e-3).fit(X, y).profile_test()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_no_dispersion_to_estimate_is_refused_with_and_without_a_penalty(l2):
    model = rp.VectorGLM(NegativeBinomial(), l2=l2).fit(X, np.tile([2, 3], 20))
    with pytest.raises(rp.NotEstimableError, match="no overdispersion: use Poisson"):
        model.estimates("sandwich")
    light = rp.VectorGLM(StudentT(), l2=l2).fit(X, np.tile([-1.0, 1.0], 20))
    assert not light.summary().to_frame()["z"].notna().any()


def test_a_saved_penalized_model_keeps_its_errors(tmp_path):
    model = rp.MultinomialLogisticRegression(penalty="jeffreys").fit(GROUPS, YES)
    rp.save(model, tmp_path / "m")
    assert rp.load(tmp_path / "m").model.standard_errors().equals(model.standard_errors())


@pytest.mark.filterwarnings("ignore")
def test_finite_coefficients_beside_a_copy_of_a_column_and_without_a_reference():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    table = pd.DataFrame({"a": rng.normal(size=300), "d": ((y == 1) & (rng.random(300) < 0.3)).astype(float)})
    plain = rp.MultinomialLogisticRegression().fit(table, y).standard_errors()
    assert plain.isna().tolist() == [False, False, True] * 2
    copied = rp.MultinomialLogisticRegression().fit(table.assign(copy=table["a"]), y).standard_errors()
    assert copied.isna().tolist() == [False, True, True, True] * 2
    assert float(copied.iloc[0]) == pytest.approx(float(plain.iloc[0]), rel=1e-6)
    zero = rp.MultinomialLogisticRegression(reference=None).fit(table, y)
    assert zero.standard_errors().isna().tolist() == [False, False, True] * 3
    # the same contrasts as with a reference class, in the limit and in what coef_ holds
    rows = torch.zeros(2, 9, dtype=torch.float64)
    rows[[0, 1], [4, 7]], rows[:, 1] = 1.0, -1.0
    contrasts = zero.estimates().transform(rows, (("", "1 - 0"), ("", "2 - 0")))
    np.testing.assert_allclose(contrasts.standard_errors, plain.iloc[[1, 4]].to_numpy(float), rtol=1e-9)
    relative = rp.MultinomialLogisticRegression().fit(table, y)
    np.testing.assert_allclose(contrasts.values, relative.coef_[1:, 0], rtol=1e-9)
    np.testing.assert_allclose(zero.coef_[1:, 0] - zero.coef_[0, 0], relative.coef_[1:, 0], rtol=1e-9)
    np.testing.assert_allclose(zero.predict_proba(table), relative.predict_proba(table), atol=1e-6)
    profiles = zero.confint(method="profile")
    assert profiles["lower"].isna().tolist() == [False, False, True] * 3
    # class 1 is certain where d is 1, which says nothing on the other two
    assert "(to +inf: 'd of 1')" in relative.separation_.sentence()


@pytest.mark.filterwarnings("ignore")
def test_what_separation_leaves_open_is_not_invented_elsewhere():
    table = pd.DataFrame({"g": GROUPS[:, 0], "z": np.random.default_rng(8).normal(size=14), "y": YES})
    model = rp.MultinomialLogisticRegression(formula="y ~ g + z").fit(table)
    assert model.wald_test("z = 0").df == 1
    for hypothesis in ("g", "g = z", ["z", "g"]):
        with pytest.raises(rp.NotEstimableError, match="penalty='jeffreys'"):
            model.wald_test(hypothesis)
    means = model.predictions({"g": [0, 1]})
    assert means.to_frame()["std_err"].isna().tolist() == [False, True] * 2
    assert "penalty='jeffreys'" in str(means) and "penalty='jeffreys'" in str(model.margins())
    alone = rp.MultinomialLogisticRegression(formula="y ~ z").fit(table[:10])
    expected = alone.predict_interval(table[:10])
    found = model.predict_interval(table)
    np.testing.assert_allclose(found.standard_errors[:10], expected.standard_errors, rtol=1e-6)
    assert np.isnan(found.lower[10:]).all() and np.isfinite(found.mean).all()
    firth = rp.MultinomialLogisticRegression(formula="y ~ g + z", penalty="jeffreys").fit(table)
    assert firth.margins().estimates.kind == "expected information"
    assert firth.margins().to_frame()["std_err"].notna().all()
    weights = np.linspace(0.5, 1.5, 14)
    with pytest.raises(rp.InputError, match="no whole numbers"):
        firth.fit(table, sample_weight=weights).confint(method="profile")


def test_summaries_by_the_profile_likelihood():
    model = rp.VectorGLM(Poisson()).fit(X, FAMILIES[1][1])
    frame = model.summary(method="profile", level=0.9).to_frame()
    assert list(frame.columns) == ["coef", "std_err", "chi2", "p_value", "lower", "upper"]
    np.testing.assert_allclose(
        frame[["lower", "upper"]].to_numpy(float), model.confint(0.9, method="profile").to_numpy(float)
    )
    np.testing.assert_allclose(frame[["chi2", "p_value"]].to_numpy(float), model.profile_test().to_numpy(float))
    assert "P>chi2" in str(model.summary(method="profile"))
    for options, words in (({"method": "exact"}, "choose 'wald' or 'profile'"), ({"groups": [0, 1] * 20}, "groups")):
        with pytest.raises(rp.InputError, match=words):
            model.summary(**{"method": "profile", **options})


@pytest.mark.parametrize("name", ["negative-binomial", "student-t"])
def test_a_parameter_next_to_uninformed_takes_few_steps(name):
    """Underdispersed counts, light tails: the penalty alone bends the objective, and steps are by its curvature."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    mean = np.exp(0.5 + 0.2 * x.sum(1))
    counts = rng.binomial(np.maximum(2, np.round(2 * mean)).astype(int), 0.5)
    y = counts if name == "negative-binomial" else x.sum(1) + rng.uniform(-1, 1, 200)
    model = rp.VectorGLM(name, penalty="jeffreys", tol=1e-9).fit(x, y)
    assert model.solution_.converged and model.n_iter_ <= 30
    objective = model._require_fit().problem
    theta, p = model.solution_.theta, objective.n_parameters

    def value(point):
        information = objective.base.hessian(point, "expected").to_dense()
        return objective.base.value(point) - 0.5 * float(torch.logdet(information)) / objective.base.total_weight

    # a minimum of the definition, by differences in units of standard errors
    factor = torch.linalg.cholesky(objective.base.hessian(theta, "expected").to_dense() * objective.base.total_weight)
    units = torch.linalg.inv(factor).mT
    best = value(theta)
    for k in range(p):
        for sign in (0.05, -0.05):
            assert value(theta + sign * units[:, k]) > best
