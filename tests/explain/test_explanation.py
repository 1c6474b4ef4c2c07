"""How explanations look: text, LaTeX, HTML and the command."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import raphson as rp
from raphson.explain import explain_name
from raphson.explain._check import check

from .test_formulas import ALL, definition_of


@pytest.fixture(scope="module")
def explanations() -> dict[str, rp.Explanation]:
    return {name: rp.Explanation(name, definition_of(name), check(definition_of(name))) for name in ALL}


def test_the_three_ways_agree_in_every_explanation(explanations: dict[str, rp.Explanation]) -> None:
    for name, explanation in explanations.items():
        # automatic differentiation inherits nine digits from torch's trigamma function
        assert explanation.check.largest < 5e-9, name
        assert all(row.symbolic <= 1e-8 * max(1.0, float(row.value.abs().max())) for row in explanation.check.rows)


@pytest.mark.parametrize("width", [80, 100])
def test_text_keeps_to_its_width_and_names_nothing_by_code(explanations: dict[str, rp.Explanation], width: int) -> None:
    for name, explanation in explanations.items():
        text = explanation.to_text(width)
        assert max(map(len, text.splitlines())) <= max(width, len(explanation.title)), name
        assert not re.search(r"polygamma|loggamma|Derivative|TODO|Abbreviation|\*\*", text), name
        assert "\u21aa" not in text, f"{name}: a formula is broken over lines"
        for heading in ("Gradient", "Observed Hessian", "Fisher information", "Convexity", "Shapes", "Numeric check"):
            assert heading in text


def test_the_text_of_the_gaussian_in_mean_and_scale() -> None:
    text = rp.explain(rp.HeteroscedasticGaussian("mean_scale")).to_text(80)
    assert (
        """\
           ⎛ 2    ⎞
          -⎝r  + 1⎠
  det H = ──────────
               4
              σ"""
        in text
    )
    assert (
        """\
      y - μ
  r = ─────
        σ"""
        in text
    )
    assert "Nowhere convex" in text


def test_latex(explanations: dict[str, rp.Explanation]) -> None:
    latex = explanations["mean_scale"].to_latex()
    assert r"$$ \frac{\partial \ell}{\partial \mu} = - \frac{r}{\sigma} $$" in latex
    assert r"\det H = - \frac{r^{2} + 1}{\sigma^{4}}" in latex
    for name, explanation in explanations.items():
        text = explanation._repr_latex_()
        assert text.count("$$") % 2 == 0
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}"), name
        assert not set(text) - set(map(chr, range(128))) - set("ö"), (name, set(text) - set(map(chr, range(128))))


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_no_network(explanations: dict[str, rp.Explanation], tmp_path: Path) -> None:
    for explanation in explanations.values():
        page = explanation.to_html(tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
        reader = _Balanced()
        reader.feed(page)
        assert not reader.open
        assert "<script" not in page and "src=" not in page
        formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
        assert len(formulas) > 5
        for formula in formulas:
            tree = ElementTree.fromstring(formula)
            words = {word.text for word in tree.iter() if word.tag.endswith("}mi")}
            assert not words & {"psi", "psiprime", "phi", "polygamma", "loggamma"}
        fragment = explanation._repr_html_()
        assert fragment.count("$$") % 2 == 0 and "<math" not in fragment


def test_names_in_any_spelling_and_a_hint_for_others() -> None:
    assert explain_name("Student_T", df=4.0).title == "StudentT(df=4.0)"
    assert explain_name("ordinal", link="probit").title == "Ordinal(n_levels=3, link='probit')"
    with pytest.raises(rp.InputError, match="Did you mean 'negative-binomial'"):
        explain_name("negative-binomal")
    with pytest.raises(rp.InputError, match="There are bernoulli, beta"):
        explain_name("zzz")
    with pytest.raises(rp.InputError, match="'gamma' has no option --df .given: 3.0.; it has --dispersion"):
        explain_name("gamma", df=3.0)


def test_a_torch_loss_is_explained_as_what_it_stands_for() -> None:
    assert rp.explain(torch.nn.BCEWithLogitsLoss(reduction="sum")).title.startswith("Bernoulli")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from raphson.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raphson", "explain", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    code, out, _ = call("heteroscedastic-gaussian", "--parametrization", "mean_scale")
    assert code == 0 and out.startswith("HeteroscedasticGaussian(parametrization='mean_scale')")
    code, out, _ = call("gamma", "--latex")
    assert code == 0 and r"\frac{\partial \ell}" in out
    page = tmp_path / "page.html"
    assert call("weibull", "--censored", "--html", str(page))[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    code, out, err = call("gama")
    assert (code, out) == (2, "") and "Did you mean 'gamma'?" in err
    code, _, err = call("heteroscedastic-gaussian", "--parametrization", "mean_sigma")
    assert code == 2 and "mean_scale" in err
    code, _, err = call("gamma", "--html", str(tmp_path / "nowhere" / "page.html"))
    assert code == 2 and "cannot write" in err


@pytest.mark.parametrize("name", ["explain", "diagnose", "laplace"])
def test_the_package_is_callable_with_the_signature_of_the_function(name: str) -> None:
    """Importing the package binds its name in raphson, where the function of that name is looked for."""
    package = importlib.import_module(f"raphson.{name}")
    assert isinstance(package, ModuleType) and callable(package)
    assert inspect.signature(package) == inspect.signature(vars(package)[name])


def test_the_package_does_what_the_function_does() -> None:
    package: Any = importlib.import_module("raphson.explain")
    assert package(rp.Poisson()).title == rp.explain(rp.Poisson()).title == "Poisson()"
