"""A new family is one class and one export: everything else finds it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import raphson as rp
from raphson import likelihoods as lk
from raphson.explain import explain_name
from raphson.linalg import Diagonal

from .test_every_family import check_member


@dataclass(frozen=True, eq=False)
class LogisticNoise(lk.Likelihood):
    """Responses with logistic noise of scale 1 about their location."""

    concave = True
    commands = (lk.Command("logistic-noise"),)

    @property
    def parameters(self):
        return ("location",)

    def nll(self, f, y):
        r = self._residual(f, y)
        return (r + 2 * torch.logaddexp(-r, r.new_zeros(()))).sum(-1)

    def gradient(self, f, y):
        return -torch.tanh(self._residual(f, y) / 2)

    def hessian(self, f, y):
        r = self._residual(f, y)
        return Diagonal(2 * torch.sigmoid(r) * torch.sigmoid(-r))

    def fisher(self, f, y=None):
        return Diagonal(torch.full_like(f, 1 / 3))

    def sample(self, f, generator=None):
        uniform = torch.rand(f.shape, dtype=f.dtype, generator=generator)
        return f.detach() + torch.logit(uniform, eps=torch.finfo(f.dtype).tiny)

    def mean(self, f):
        return f

    def variance(self, f):
        return torch.full_like(f, torch.pi**2 / 3)

    def definition(self):
        from raphson.likelihoods.formulas import Abbreviation, Convexity, Definition, real, sympy

        mu, y, r = real("mu y r")
        p = sympy.Symbol("p", positive=True)
        return Definition(
            likelihood=self,
            outputs=(mu,),
            targets=(y,),
            nll=r - 2 * sympy.log(p),
            abbreviations=(
                Abbreviation(r, y - mu, {mu: sympy.Integer(-1)}),
                Abbreviation(p, 1 / (1 + sympy.exp(-r)), {r: p * (1 - p)}),
            ),
            moments={p: sympy.Rational(1, 2), p**2: sympy.Rational(1, 3)},
            example=((0.3,), 1.5),
            convexity=Convexity("Strictly convex everywhere.", sympy.true),
            source="N. Balakrishnan (1992), Handbook of the Logistic Distribution.",
        )

    @staticmethod
    def _residual(f: Tensor, y: Tensor) -> Tensor:
        return (y.unsqueeze(-1) if y.shape == f.shape[:-1] else y).to(f) - f


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lk, "LogisticNoise", LogisticNoise, raising=False)


def test_without_an_export_it_is_code_of_ones_own() -> None:
    assert "LogisticNoise" not in lk.catalogue()
    with pytest.raises(rp.InputError, match="of your own code"):
        lk.to_description(LogisticNoise())


@pytest.mark.usefixtures("exported")
def test_the_conformance_tests_find_it() -> None:
    assert LogisticNoise in lk.catalogue().values()
    (member,) = LogisticNoise.examples()
    check_member(member)


@pytest.mark.usefixtures("exported")
def test_explain_finds_it_by_name_and_its_formulas_are_what_it_computes() -> None:
    explanation = explain_name("logistic-noise")
    assert explanation.title == "LogisticNoise()" and explanation.check.largest < 1e-12
    assert "logistic-noise" in str(pytest.raises(rp.InputError, explain_name, "zzz").value)


@pytest.mark.usefixtures("exported")
def test_a_description_makes_it_again_also_inside_another() -> None:
    for lik in (LogisticNoise(), lk.Linked(LogisticNoise(), "exp")):
        again = lk.from_description(lk.to_description(lik))
        assert type(again) is type(lik) and again.parameters == lik.parameters
    assert isinstance(again, lk.Linked) and isinstance(again.base, LogisticNoise)


@pytest.mark.usefixtures("exported")
def test_the_command_line_fits_it(tmp_path, monkeypatch, capsys) -> None:
    from raphson.cli import main

    assert lk.command_name("Logistic_Noise") == "logistic-noise"
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = 1 + 2 * x + rng.logistic(size=300)
    pd.DataFrame({"x": x, "y": y}).to_csv(tmp_path / "d.csv", index=False)
    arguments = ["fit", str(tmp_path / "d.csv"), "--target", "y", "--likelihood", "logistic-noise"]
    monkeypatch.setattr(sys, "argv", ["raphson", *arguments, "--save", str(tmp_path / "m")])
    assert pytest.raises(SystemExit, main).value.code == 0
    assert "location of y" in capsys.readouterr().out
    loaded = rp.load(tmp_path / "m").model
    assert isinstance(loaded.likelihood, LogisticNoise)
    assert np.ravel(loaded.coef_) == pytest.approx([2.0], abs=0.3)
