"""Small networks with posteriors behind scikit-learn's interface."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import raphson as rp
from raphson.estimators.networks._expected import ExpectedCurvature
from raphson.saved._schema import check_content, check_tensors


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([
    rp.BayesianMLP(hidden=(5,), max_iter=2, steps=5),
    rp.BayesianMLP(rp.Gaussian(), hidden=(4,), max_iter=2, steps=5, structure="kfac"),
])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def waves(n, seed=0):
    g = np.random.default_rng(seed)
    x = g.uniform(-2, 2, (n, 1))
    scale = 0.05 + 0.2 * (x[:, 0] > 0)
    return 3.0 + 10 * x, 100 + 7 * (np.sin(2 * x[:, 0]) + scale * g.standard_normal(n)), 7 * scale


@pytest.mark.parametrize("structure", ["dense", "kfac", "ekfac", "diagonal"])
def test_mean_scale_and_intervals(structure):
    x, y, _ = waves(400)
    xt, yt, scale = waves(2000, 1)
    net = rp.BayesianMLP(rp.HeteroscedasticGaussian(), hidden=(20,), structure=structure).fit(x, y)
    mean, sd = net.predict(xt, return_std=True)
    low, high = net.predict_interval(xt, 0.9)
    assert abs(np.mean((yt > low) & (yt < high)) - 0.9) < 0.03
    # the noise is what no net can explain: a density of known noise loses little to this one
    truth = np.mean(-0.5 * ((yt - 100 - 7 * np.sin(2 * (xt[:, 0] - 3) / 10)) / scale) ** 2 - np.log(scale)) - 0.919
    assert net.score(xt, yt) > truth - 0.12
    assert np.corrcoef(sd, scale)[0, 1] > 0.9
    far = net.predict_interval(np.array([[103.0]]))
    assert (far[1] - far[0])[0] > (1.1 if structure == "diagonal" else 2) * np.max(high - low)
    assert abs(net.log_density(xt, yt).mean() - net.score(xt, yt)) < 1e-12


def test_units_do_not_matter():
    x, y = load_diabetes(return_X_y=True)
    one = rp.BayesianMLP(hidden=(4,), max_iter=3, steps=20).fit(x, y)
    other = rp.BayesianMLP(hidden=(4,), max_iter=3, steps=20).fit(1e6 * x - 3.0, 1e-3 * y + 5.0)
    np.testing.assert_allclose(other.predict(1e6 * x - 3.0), 1e-3 * one.predict(x) + 5.0, rtol=1e-5)
    assert other.score(1e6 * x - 3.0, 1e-3 * y + 5.0) == pytest.approx(one.score(x, y) + np.log(1e3), abs=1e-4)


def test_a_gaussian_learns_its_scale():
    g = np.random.default_rng(0)
    x = g.standard_normal((600, 2))
    y = x[:, 0] - x[:, 1] + 0.5 * g.standard_normal(600)
    net = rp.BayesianMLP(rp.Gaussian(), hidden=(20,)).fit(x, y)
    assert net.posterior_.objective.likelihood.scale * y.std() == pytest.approx(0.5, rel=0.1)
    assert cross_val_score(clone(net), x, y, cv=3).mean() > -0.80  # the truth has -0.726


def test_classes_counts_weights_and_seeds():
    x, y = load_iris(return_X_y=True, as_frame=True)
    net = rp.BayesianMLP(rp.Categorical(), hidden=(8,), max_iter=4).fit(x, y)
    p = net.predict(x)
    assert p.shape == (150, 3) and np.allclose(p.sum(1), 1) and np.mean(p.argmax(1) == y) > 0.96
    again = rp.BayesianMLP(rp.Categorical(), hidden=(8,), max_iter=4).fit(x.to_numpy(), y)
    np.testing.assert_array_equal(again.predict(x.to_numpy()), p)
    other = rp.BayesianMLP(rp.Categorical(), hidden=(8,), max_iter=4, random_state=1).fit(x, y)
    assert not np.allclose(other.predict(x), p, atol=1e-9)
    counts = np.random.default_rng(0).poisson(np.exp(x.iloc[:, 0] - 5))
    rates = rp.BayesianMLP(rp.Poisson(), hidden=(5,), max_iter=4).fit(x, counts)
    assert np.corrcoef(rates.predict(x), np.exp(x.iloc[:, 0] - 5))[0, 1] > 0.8
    twice = rp.BayesianMLP(rp.Poisson(), hidden=(5,), max_iter=2).fit(pd.concat([x, x]), np.r_[counts, counts])
    weighted = rp.BayesianMLP(rp.Poisson(), hidden=(5,), max_iter=2).fit(x, counts, np.full(150, 2.0))
    np.testing.assert_allclose(weighted.predict(x), twice.predict(x), rtol=1e-4)


def test_members_are_mixed():
    x, y, _ = waves(200)
    xt, yt, _ = waves(300, 1)
    options = {"hidden": (8,), "max_iter": 3}
    net = rp.BayesianMLP(rp.Gaussian(), members=3, **options).fit(x, y)
    assert "3 networks" in str(net.summary())
    found = net.predictive(xt)
    parts = [post.predict(net._scaled(xt)) for post in net.posteriors_]
    target = (torch.from_numpy(yt) - net._center) / net._unit
    # a mixture of normal distributions, written out
    density = sum(
        torch.distributions.Normal(p.mean[:, 0], p.variance[:, 0].sqrt()).log_prob(target).exp() for p in parts
    )
    torch.testing.assert_close(found.log_density(target), (density / 3).log())
    second = sum((p.variance + p.mean.square()) for p in parts) / 3
    torch.testing.assert_close(found.variance, second - found.mean.square())
    torch.testing.assert_close(found.output_mean, found.mean)
    torch.testing.assert_close(found.output_covariance[:, :, 0], found.epistemic)
    draws = found.sample(4000, torch.Generator().manual_seed(0))[..., 0]
    assert float((draws.mean(0) - found.mean[:, 0]).abs().max()) < 0.05
    torch.testing.assert_close(draws.var(0), found.variance[:, 0], rtol=0.15, atol=0.0)
    low, high = found.interval(0.9)
    # the distribution function of the mixture at its limits
    normals = [torch.distributions.Normal(p.mean, p.variance.sqrt()) for p in parts]
    for limit, level in ((low, 0.05), (high, 0.95)):
        reached = sum(normal.cdf(limit) for normal in normals) / 3
        assert float((reached - level).abs().max()) < 0.02
    first = rp.BayesianMLP(rp.Gaussian(), **options).fit(x, y)
    np.testing.assert_array_equal(
        first.predict(xt), net.posterior_.predict(net._scaled(xt)).mean[:, 0] * net._unit + net._center
    )
    assert net.score(xt, yt) >= np.mean([p.log_density(target).mean() for p in parts]) - np.log(float(net._unit))


def test_clear_errors():
    x, y, _ = waves(20)
    for options, words in {
        ("activation", "swish"): "one of tanh, relu, silu, gelu",
        ("hidden", (0,)): "whole numbers of units",
        ("structure", "full"): "one of dense, diagonal",
        ("hidden", 50): "whole numbers of units",
        ("tol", "x"): "tol is 'x'",
        ("random_state", "x"): "random_state is 'x'",
        ("members", 0): "members is 0, but it must be a whole number",
        ("max_iter", 2.5): "max_iter is 2.5",
        ("likelihood", rp.Gaussian): "pass an instance",
    }.items():
        with pytest.raises(rp.InputError, match=words):
            rp.BayesianMLP(**{options[0]: options[1]}).fit(x, y)
    with pytest.raises(rp.InputError, match="row 3"):
        rp.BayesianMLP().fit(x, np.where(np.arange(20) == 3, np.nan, y))


@pytest.mark.parametrize(("structure", "members"), [("dense", 1), ("kfac", 1), ("dense", 2)])
def test_a_saved_network_predicts_alike(structure, members, tmp_path):
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    net = rp.BayesianMLP(rp.StudentT(5.0), (6, 4), structure, members=members, max_iter=2).fit(x, y)
    net.save(tmp_path / "net")
    again = rp.load(tmp_path / "net").model
    for found, expected in zip(again.predict(x, return_std=True), net.predict(x, return_std=True), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert again.get_params()["hidden"] == (6, 4) and again.n_iter_ == 2
    np.testing.assert_array_equal(again.predict_interval(x)[0], net.predict_interval(x)[0])
    assert list(again.feature_names_in_) == list(x.columns)


@pytest.mark.parametrize("structure", ["kfac", "diagonal"])
def test_ten_classes_are_learned_with_an_approximate_structure(structure):
    x, y = load_digits(return_X_y=True)
    new = slice(1200, None)
    net = rp.BayesianMLP(rp.Categorical(), hidden=(20,), structure=structure).fit(x[:1200], y[:1200])
    # a logistic regression has -0.31 on these rows, written by others, at scikit-learn's penalty
    assert net.score(x[new], y[new]) > -0.31
    assert np.mean(net.predict(x[new]).argmax(1) == y[new]) > 0.9


def test_curvature_averaged_over_points_is_the_mean_of_those_at_the_points():
    g = torch.Generator().manual_seed(0)
    f, cloud = (torch.randn(*shape, 4, generator=g, dtype=torch.float64) for shape in ((5,), (6, 5)))
    for likelihood, y in (
        (rp.Categorical(), torch.tensor([0, 1, 2, 3, 0])),
        (rp.HeteroscedasticGaussian(), torch.randn(5, 2, generator=g, dtype=torch.float64)),
    ):
        averaged, packed = ExpectedCurvature.around(likelihood, y, cloud)
        expected = torch.stack([likelihood.fisher(f + moved, y).to_dense() for moved in cloud]).mean(0)
        torch.testing.assert_close(averaged.fisher(f, packed).to_dense(), expected)
        root = averaged.fisher_factor(f, packed).to_dense()
        torch.testing.assert_close(root @ root.mT, expected)
        torch.testing.assert_close(averaged.nll(f, packed), likelihood.nll(f, y))
        torch.testing.assert_close(averaged.gradient(f, packed), likelihood.gradient(f, y))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden", [3, 4], "parameter.0.weight"),
        ("activation", "swish", "activation"),
        ("bounds", "high", "bounds"),
        ("posterior", "{}", "no whole posterior"),
        ("names", ["one"], "names"),
    ],
)
def test_a_changed_file_is_refused(field, value, words):
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    net = rp.BayesianMLP(rp.Gaussian(), hidden=(6, 4), max_iter=1, steps=2).fit(x, y)
    params = {name: v for name, v in net.get_params().items() if name != "likelihood"}
    metadata, tensors = net.metadata(), net.state_dict()
    check_content("BayesianMLP", params, metadata)
    check_tensors("BayesianMLP", params, metadata, tensors)
    (params if field in params else metadata)[field] = value
    with pytest.raises(rp.InputError, match=words):
        check_content("BayesianMLP", params, metadata)
        check_tensors("BayesianMLP", params, metadata, tensors)
        rp.BayesianMLP.from_state(params, tensors, metadata)
