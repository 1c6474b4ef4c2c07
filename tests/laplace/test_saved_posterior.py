"""Posteriors in files and pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import raphson as rp

from .laplace_cases import CASES, DTYPE, Case

STRUCTURES = ["dense", "diagonal", "kfac", "ekfac", "low_rank"]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_file_predicts_alike(case: Case, structure: str, tmp_path: Path) -> None:
    model, likelihood, data, x = case.make()
    post = rp.laplace(model, likelihood, data, structure=structure, rank=4)
    post.save(tmp_path / "post.safetensors")
    again = rp.Posterior.load(tmp_path / "post.safetensors", case.build().to(DTYPE).eval())
    for copy in (again, pickle.loads(pickle.dumps(post))):
        assert torch.equal(copy.predict(x).output_covariance, post.predict(x).output_covariance)
        assert torch.equal(copy.predict(x).mean, post.predict(x).mean)
        assert copy.prior_precision == post.prior_precision
        assert float(copy.log_marginal_likelihood()) == float(post.log_marginal_likelihood())
        tuned, expected = copy.tune_prior(), post.tune_prior()
        assert tuned.prior_precision == expected.prior_precision
    assert {"mean", "prior"} <= set(post.state_dict())


def test_no_row_of_the_data_is_kept(tmp_path: Path) -> None:
    model, likelihood, (x, y), _ = CASES[0].make()
    x[3, 1] = 123.456
    post = rp.laplace(model, likelihood, (x, y))
    post.save(tmp_path / "post")
    needle = torch.tensor([123.456], dtype=DTYPE).numpy().tobytes()
    assert needle not in (tmp_path / "post").read_bytes() and needle not in pickle.dumps(post)


def test_other_files_and_models_are_refused(tmp_path: Path) -> None:
    model, _, data, _ = CASES[1].make()
    squares = rp.as_likelihood(lambda f, y: 0.5 * (f - y).square().sum(-1))
    post = rp.laplace(model, squares, data, structure="dense", kind="observed")
    post.save(tmp_path / "post")
    with pytest.raises(rp.InputError, match="made from code"):
        rp.Posterior.load(tmp_path / "post", model)
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(rp.InputError, match="cannot be read as a posterior"):
        rp.Posterior.load(tmp_path / "other", model)
    with pytest.raises(rp.InputError, match="parameter '0"):
        rp.Posterior.load(tmp_path / "post", nn.Sequential(nn.Linear(2, 3)), rp.Gaussian())


def test_a_model_that_is_trained_on_is_refused() -> None:
    model, likelihood, data, x = CASES[0].make()
    post = rp.laplace(model, likelihood, data)
    with torch.no_grad():
        model[0].weight += 1.0
    with pytest.raises(rp.RaphsonError, match="changed after"):
        post.predict(x)


def changed(tensors: dict[str, torch.Tensor], name: str, how: str) -> None:
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = tensors[name][..., :-1]
    else:
        tensors[name] = tensors[name] * float("nan")


@pytest.mark.parametrize("how", ["missing", "shape", "nan"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_changed_file_is_refused_whatever_is_wrong_with_it(structure: str, how: str) -> None:
    model, likelihood, data, _ = CASES[0].make()
    post = rp.laplace(model, likelihood, data, structure=structure, rank=4)
    for name, t in post.state_dict().items():
        # with a column less a low rank is another one
        if how == "shape" and (t.ndim == 0 or name.endswith(".low_rank")):
            continue
        tensors = post.state_dict()
        changed(tensors, name, how)
        with pytest.raises(rp.InputError):
            rp.Posterior.from_state(tensors, post.metadata(), model)
    with pytest.raises(rp.InputError, match="tensor 'new', which this version does not know"):
        rp.Posterior.from_state({**post.state_dict(), "new": torch.ones(1)}, post.metadata(), model)
    with pytest.raises(rp.InputError, match="version 1, and this raphson reads 2"):
        rp.Posterior.from_state(post.state_dict(), {**post.metadata(), "version": 1}, model)


def test_a_network_that_computes_something_else_is_refused() -> None:
    """Other activations and other running statistics have the same parameters."""
    torch.manual_seed(0)

    def net(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), activation, nn.Linear(4, 3)).to(DTYPE).eval()

    model, x = net(nn.Tanh()), torch.randn(20, 2, dtype=DTYPE)
    model[1].running_mean.fill_(0.5)
    post = rp.laplace(model, rp.Categorical(), (x, torch.arange(20) % 3))
    state = post.state_dict(), post.metadata()
    again = net(nn.Tanh())
    again[1].running_mean.fill_(0.5)
    assert torch.equal(rp.Posterior.from_state(*state, again).predict(x).mean, post.predict(x).mean)
    for other in (net(nn.Tanh()), net(nn.ReLU())):
        with pytest.raises(rp.InputError, match="the model gives other outputs"):
            rp.Posterior.from_state(*state, other)
