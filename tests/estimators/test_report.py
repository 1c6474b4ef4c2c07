"""A report says what the model's own methods say, in three forms, and its checks see what is wrong."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import raphson as rp

NEEDS_FIGURES = "a page has figures: pip install 'raphson[plot]'"


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng, pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"])


def counts_model(n=400):
    rng, x = rows(n)
    return rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(np.exp(0.4 * x["a"] + 0.5)))


def classes_model(n=300):
    rng, x = rows(n, 1)
    utility = x.to_numpy() @ [[0, 1, -1], [0, 0.5, 0.5]] + rng.gumbel(size=(n, 3))
    return rp.MultinomialLogisticRegression().fit(x, np.array(["u", "v<w>", "w|"])[utility.argmax(1)])


def verdicts(report):
    return {check.name: check.verdict.value for check in report.checks}


class Page(HTMLParser):
    """What a reader of the page, or of its code, looks for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


@pytest.mark.parametrize("model", [counts_model(), classes_model()], ids=["counts", "classes"])
def test_three_forms_say_the_same(model, tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_FIGURES)
    for form in ("html", "md", "json"):
        model.report(tmp_path / f"fit.{form}", command="raphson fit x.csv", notes=["A note."])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fit.html", "fit.json", "fit.md"]
    made = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    markdown = (tmp_path / "fit.md").read_text(encoding="utf-8")
    page = Page((tmp_path / "fit.html").read_text(encoding="utf-8"))
    assert not page.open

    frame = model.summary().to_frame()
    np.testing.assert_array_equal([row["coef"] for row in made["coefficients"]], frame["coef"].to_numpy(dtype=float))
    np.testing.assert_array_equal([row["upper"] for row in made["coefficients"]], frame["upper"].to_numpy(dtype=float))
    assert made["solution"]["history"][-1]["gradient_norm"] == model.solution_.history[-1].gradient_norm
    assert len(made["hessian_eigenvalues"]) == len(frame) and made["reproduce"]["Call"] == "raphson fit x.csv"
    assert made["notes"][0] == "A note."
    for check in made["checks"]:
        assert f"{check['number']}. **{check['verdict']}**: {check['name']}. {check['finding']}" in markdown
        assert check["finding"] in page.text
        assert (check["verdict"] == "pass") == (check["remedy"] == "")
    coef = f"{frame['coef'].iloc[1]:#.5g}"
    assert coef in markdown and coef in page.text
    for name, value in model.summary().facts:
        assert str(value) in page.text and f"| {name} | {value} |" in markdown


def test_the_page_is_for_everybody(tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_FIGURES)
    model = classes_model()
    text = model.report(tmp_path / "fit.html").to_html()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7 and all(len(image["alt"]) > 40 for image in images)
    assert all(image["src"].startswith("data:image/") for image in images)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", text) and "<script" not in text
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "a":
            assert attributes["href"].lstrip("#") in ids
        for name in attributes.get("aria-labelledby", "").split():
            assert name in ids
    # names of the user's classes are text, never code
    assert "v<w>" in page.text and "v<w>" not in text
    for image in images:
        if image["src"].startswith("data:image/svg"):
            import base64

            ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2]))
    assert text == model.report(None).to_html()


def test_checks_see_what_is_wrong():
    rng, x = rows()
    good = verdicts(counts_model().report(None))
    assert set(good.values()) == {"pass"}
    assert list(good) == [
        "Convergence",
        "Finite estimates",
        "Collinearity",
        "Curvature and condition",
        "Convexity certificate",
        "Error certificate",
        "Rows per coefficient",
        "Distribution of the targets",
        "Dispersion",
        "Zeros",
        "Residuals against each column",
    ]
    assert set(verdicts(classes_model().report(None)).values()) == {"pass"}

    mean = np.exp(0.4 * x["a"] + 0.5)
    wild = rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(mean * rng.gamma(0.7, 1 / 0.7, len(x))))
    found = wild.report(None)
    assert verdicts(found)["Dispersion"] == verdicts(found)["Distribution of the targets"] == "problem"
    assert "NegativeBinomial" in next(c.remedy for c in found.checks if c.name == "Dispersion")

    bent = rp.VectorGLM(rp.Gaussian()).fit(x, x["a"] ** 2 + rng.normal(size=len(x)))
    check = bent.report(None).checks[-1]
    assert check.verdict.value == "problem" and check.remedy.startswith("let a") and "with a," in check.finding

    with pytest.warns(rp.CollinearityWarning):
        twice = rp.VectorGLM(rp.Gaussian()).fit(x.assign(c=2 * x["a"]), x["b"] + rng.normal(size=len(x)))
    check = twice.report(None).checks[2]
    assert check.verdict.value == "problem" and "'c'" in check.finding and check.remedy
    with pytest.warns(rp.SeparationWarning):
        parted = rp.VectorGLM(rp.Bernoulli()).fit(x, (x["a"] > 0).astype(int))
    check = parted.report(None).checks[1]
    assert check.verdict.value == "problem" and "a" in check.finding and "jeffreys" in check.remedy
    short = rp.VectorGLM(rp.Poisson(), max_iter=1).fit(x, rng.poisson(mean))
    check = short.report(None).checks[0]
    assert check.verdict.value == "problem" and "max_iter" in check.remedy
    near = x.assign(c=x["a"] + 1e-4 * rng.normal(size=len(x)))
    check = rp.VectorGLM(rp.Gaussian()).fit(near, x["b"]).report(None).checks[3]
    assert check.verdict.value == "look" and "a" in check.remedy and "c" in check.remedy
    few = rp.VectorGLM(rp.Gaussian()).fit(x.iloc[:12], x["b"].iloc[:12] ** 2).report(None)
    assert verdicts(few)["Rows per coefficient"] == "look"


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (rp.Ordinal(3), lambda rng, n: rng.integers(0, 3, n)),
        (rp.Binomial(), lambda rng, n: rng.multinomial(5, [0.4, 0.6], n)),
        (rp.Weibull(censored=True), lambda rng, n: np.c_[rng.weibull(2, n), rng.random(n) < 0.7]),
        (rp.HeteroscedasticGaussian(), lambda rng, n: rng.normal(size=n)),
        (rp.MultivariateGaussian(), lambda rng, n: rng.normal(size=(n, 2))),
        (rp.Multinomial(), lambda rng, n: rng.multinomial(5, [0.2, 0.3, 0.5], n)),
        (rp.Beta(), lambda rng, n: rng.beta(2, 3, n)),
        (rp.StudentT(), lambda rng, n: rng.standard_t(5, n)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_likelihood_has_a_report(likelihood, targets, tmp_path):
    pytest.importorskip("matplotlib", reason=NEEDS_FIGURES)
    rng, x = rows(150)
    report = rp.VectorGLM(likelihood).fit(x, targets(rng, 150)).report(tmp_path / "fit.html")
    assert report.figures and "problem" not in verdicts(report).values()
    json.loads(report.to_json())


def test_penalties_saved_models_and_seeds(tmp_path):
    rng, x = rows(60)
    y = (x["a"] > 0).astype(int)
    ridge = rp.VectorGLM(rp.Bernoulli(), l2=0.01).fit(x, y)
    check = ridge.report(None).checks[1]
    assert check.verdict.value == "look" and check.finding.startswith("Only the penalty")
    model = rp.MultinomialLogisticRegression(reference=None).fit(x, rng.integers(0, 3, 60))
    assert model.hessian().shape == (9, 9)
    one, again, other = (model.report(None, generator=seed).to_json() for seed in (1, 1, 2))
    assert one == again != other
    rp.save(classes_model(), tmp_path / "model")
    loaded = rp.load(tmp_path / "model").model.report(tmp_path / "fit.json")
    assert loaded.checks[-1].verdict.value == "look" and "saved" in loaded.checks[-1].finding


def test_the_hessian_is_that_of_the_reported_coefficients():
    """With standardized columns the second derivatives of the loss, by differences of the log-likelihood."""
    model = classes_model()
    rows = model.fitted_rows()
    columns = pd.DataFrame({name: rows.column(name) for name in rows.names})
    z = (columns - columns.mean()) / columns.std(ddof=0)
    again = rp.MultinomialLogisticRegression().fit(z, rows.observed.idxmax(axis=1))
    information = np.linalg.inv(again.covariance().to_numpy(dtype=float)) / len(z)
    np.testing.assert_allclose(model.hessian().to_dense(), information, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(again.hessian().to_dense(), information, rtol=1e-6, atol=1e-9)


def test_wide_sparse_tables():
    rng = np.random.default_rng(0)
    x = sp.random(300, 1500, 0.01, random_state=0, format="csr")
    model = rp.VectorGLM(rp.Gaussian(), l2=0.1).fit(x, rng.normal(size=300))
    report = model.report(None)
    assert verdicts(report)["Convergence"] == "pass" and "Curvature and condition" not in verdicts(report)
    assert model.fitted_rows().column("x3").sum() == x[:, 3].sum()
    with pytest.raises(rp.InputError, match="no column named 'z'"):
        model.fitted_rows().column("z")


def test_names_of_files_are_checked_first(tmp_path, monkeypatch):
    model = counts_model(50)
    with pytest.raises(rp.InputError, match=r"end in \.html, \.md or \.json"):
        model.report(tmp_path / "fit.pdf")
    with pytest.raises(rp.InputError, match="no directory"):
        model.report(tmp_path / "nowhere" / "fit.md")
    (tmp_path / "taken.md").mkdir()
    with pytest.raises(rp.InputError, match="something else"):
        model.report(tmp_path / "taken.md")
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(rp.RaphsonError, match=r"raphson\[plot\]"):
        model.report(tmp_path / "fit.html")
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(".*"))
    model.report(tmp_path / "fit.md")


def test_a_right_model_with_many_columns_is_no_problem():
    """The fit follows its own rows: fewer zeros, less dispersion, and probabilities closer than simulated ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 40))
    found = verdicts(rp.VectorGLM(rp.Poisson()).fit(x, rng.poisson(np.exp(0.3 * x[:, 0]))).report(None))
    assert "problem" not in found.values() and found["Rows per coefficient"] == "look"
    utility = x[:, :3] @ rng.normal(size=(3, 20)) + rng.gumbel(size=(400, 20))
    found = verdicts(rp.MultinomialLogisticRegression().fit(x[:, :3], utility.argmax(1)).report(None))
    assert found["Calibration"] == "pass"
