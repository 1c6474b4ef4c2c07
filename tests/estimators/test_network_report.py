"""The report of a network: it says what the network's own methods say, and sees what is wrong."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import raphson as rp
from raphson._errors import NotEstimableError
from tests.estimators.test_report import NEEDS_FIGURES, rows, verdicts


@pytest.fixture(scope="module")
def net():
    rng, x = rows(200)
    return rp.BayesianMLP(rp.Gaussian(), hidden=(6,)).fit(x, 50 + 10 * np.sin(2 * x["a"]) + 3 * rng.normal(size=200))


def test_three_forms_say_the_same(net, tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_FIGURES)
    for form in ("html", "md", "json"):
        report = net.report(tmp_path / f"net.{form}", command="raphson fit x.csv", notes=["A note."])
    made = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    page, text = (tmp_path / "net.html").read_text("utf-8"), (tmp_path / "net.md").read_text("utf-8")
    assert list(verdicts(report)) == [
        "Training",
        "Determined parameters",
        "Prior precisions",
        "Curvature spectrum",
        "Coverage of predictive intervals",
        "Distribution of the targets",
        "Dispersion",
        "Residuals against each column",
    ]
    assert set(verdicts(report).values()) <= {"pass", "look"}
    for check in made["checks"]:
        assert f"{check['number']}. **{check['verdict']}**: {check['name']}. {check['finding']}" in text
    assert '<h2 id="coefficients">Layers and priors</h2>' in page and "A note." in page and page.count("<figure>") == 5
    assert made["training"]["bounds"] == net.bounds_ and made["reproduce"]["Call"] == "raphson fit x.csv"
    table = net.layers()
    assert [row["determined"] for row in made["layers_and_priors"]] == table["determined"].tolist()
    assert table["parameters"].sum() == net.posterior_.n_parameters == 25
    eigenvalues = np.array(made["precision_eigenvalues"])
    # the same effective dimension from the spectrum: sum of 1 - 1 / eigenvalue
    assert np.sum(1 - 1 / eigenvalues) == pytest.approx(table["determined"].sum(), rel=1e-6)


def test_residuals_are_of_rows_as_if_left_out(net):
    z = net.residuals().to_numpy().ravel()
    assert stats.kstest(z, "norm").pvalue > 0.01 and 0.85 < z.std() < 1.15
    found = net.fitted_rows()
    assert found.observed["mean"].between(20, 80).all() and list(found.names) == ["a", "b"]
    response = net.residuals("response")["mean"]
    np.testing.assert_allclose(response, found.observed["mean"] - found.means["mean"], rtol=1e-9, atol=1e-9)
    inside, without = net.mean_log_densities()
    rng, x = rows(3000, 5)
    new = net.score(x, 50 + 10 * np.sin(2 * x["a"]) + 3 * rng.normal(size=3000))
    assert without < inside and abs(new - without) < 0.2


def test_against_fitting_again_without_a_row():
    """Few rows: what is predicted of each is close to what a network says that has not seen it."""
    rng, x = rows(40, 3)
    y = (np.sin(x["a"]) + 0.2 * rng.normal(size=40)).to_numpy()
    net = rp.BayesianMLP(rp.Gaussian(), hidden=(4,)).fit(x, y)
    means, kept = net.fitted_rows().means["mean"].to_numpy(), net.predict(x)
    again = []
    for i in range(0, 40, 4):
        rest = np.delete(np.arange(40), i)
        again.append(rp.BayesianMLP(rp.Gaussian(), hidden=(4,)).fit(x.iloc[rest], y[rest]).predict(x.iloc[[i]])[0])
    moved, expected = (means - kept)[::4], np.array(again) - kept[::4]
    assert np.corrcoef(moved, expected)[0, 1] > 0.7


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (rp.Ordinal(3), lambda rng, n: rng.integers(0, 3, n)),
        (rp.Categorical(), lambda rng, n: np.array(["u", "v", "w"])[rng.integers(0, 3, n)]),
        (rp.Bernoulli(), lambda rng, n: rng.integers(0, 2, n)),
        (rp.Poisson(), lambda rng, n: rng.poisson(2.0, n)),
        (rp.Weibull(censored=True), lambda rng, n: np.c_[rng.weibull(2, n), rng.random(n) < 0.7]),
        (None, lambda rng, n: rng.normal(size=n)),
        (rp.Multinomial(), lambda rng, n: rng.multinomial(5, [0.2, 0.3, 0.5], n)),
        (rp.MultivariateGaussian(), lambda rng, n: rng.normal(size=(n, 2))),
        (rp.Gaussian(), lambda rng, n: rng.normal(size=(n, 2))),
        (rp.StudentT(df=5), lambda rng, n: rng.standard_t(5, n)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_likelihood_has_a_report(likelihood, targets, tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_FIGURES)
    rng, x = rows(100)
    net = rp.BayesianMLP(likelihood, hidden=(3,), max_iter=4).fit(x, targets(rng, 100))
    report = net.report(tmp_path / "net.html")
    json.loads(report.to_json())
    if isinstance(likelihood, rp.MultivariateGaussian):  # whose training collapses on pure noise: that is seen
        assert verdicts(report)["Training"] == "look"
    else:
        assert "problem" not in verdicts(report).values(), report
    names = set(verdicts(report))
    assert ("Calibration" in names) != ("Coverage of predictive intervals" in names)


def test_weights_levels_saved_models_and_seeds(net, tmp_path):
    one, again, other = (net.report(None, generator=seed).to_json() for seed in (1, 1, 2))
    assert one == again
    assert json.loads(one)["reproduce"]["Seed of residuals and simulations"] == "1" and one != other
    assert "90%" in next(c.finding for c in net.report(None, level=0.9).checks if c.name.startswith("Coverage"))
    with pytest.raises(rp.InputError, match="level"):
        net.report(None, level=2)
    rp.save(net, tmp_path / "model")
    for loaded in (rp.load(tmp_path / "model").model, pickle.loads(pickle.dumps(net))):
        report = loaded.report(None)
        assert report.checks[-1].verdict.value == "look" and "saved" in report.checks[-1].finding
        assert loaded.summary().to_frame().equals(net.summary().to_frame())
        with pytest.raises(NotEstimableError, match="fit again"):
            loaded.residuals()
    rng, x = rows(60)
    y = rng.normal(size=60)
    weighted = rp.BayesianMLP(rp.Gaussian(), hidden=(3,), max_iter=2).fit(x, y, np.full(60, 2.0))
    twice = rp.BayesianMLP(rp.Gaussian(), hidden=(3,), max_iter=2).fit(pd.concat([x, x]), np.r_[y, y])
    np.testing.assert_allclose(weighted.residuals(), twice.residuals()[:60], rtol=1e-4, atol=1e-4)


def test_what_is_wrong_is_seen():
    rng, x = rows(300)
    heavy = rp.BayesianMLP(rp.Gaussian(), hidden=(3,)).fit(x, x["a"] + rng.standard_t(1.5, 300))
    found = verdicts(heavy.report(None))
    assert found["Distribution of the targets"] == found["Coverage of predictive intervals"] == "problem"
    short = rp.BayesianMLP(rp.Gaussian(), hidden=(3,), max_iter=1).fit(x, np.sin(3 * x["a"]))
    assert verdicts(short.report(None))["Training"] == "look"
    wide = rp.BayesianMLP(rp.Gaussian(), hidden=(30,), max_iter=3).fit(x[:25], np.sin(3 * x["a"][:25]))
    assert verdicts(wide.report(None))["Determined parameters"] == "look"


def test_probabilities_and_levels_have_no_unit():
    rng, x = rows(80)
    shares = rng.dirichlet([2.0, 3.0, 4.0], 80)
    net = rp.BayesianMLP(rp.Categorical(), hidden=(3,), max_iter=3).fit(x, shares)
    np.testing.assert_allclose(net.predict(x).sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(net.predict(x).mean(0), shares.mean(0), atol=0.05)
    levels = rp.BayesianMLP(rp.Ordinal(3), hidden=(3,)).fit(x, np.digitize(x["a"], [-0.5, 0.5]))
    assert np.mean(levels.predict(x).argmax(1) == np.digitize(x["a"], [-0.5, 0.5])) > 0.8
