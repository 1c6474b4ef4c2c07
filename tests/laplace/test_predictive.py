"""Covariances of outputs, structure by structure, against dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import raphson as rp

from .laplace_cases import CASES, DTYPE, Case, jacobian

STRUCTURES = ["dense", "diagonal", "kfac", "ekfac", "low_rank"]


def reference(post: rp.Posterior, model: Any, x: Any) -> tuple[Tensor, Tensor]:
    """Return the outputs and the covariance of all of them, ``(N, ..., C, N, ..., C)``."""
    j = jacobian(model, x, list(post.objective.space.names))
    inverse = torch.linalg.inv(post.precision.to_dense())
    flat = j.reshape(-1, j.shape[-1])
    f = model(x).detach()
    return f, (flat @ inverse @ flat.mT).view(*f.shape, *f.shape)


def by_position(whole: Tensor, f: Tensor) -> Tensor:
    m, c = f.shape[:-1].numel(), f.shape[-1]
    own = whole.reshape(m, c, m, c).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return own.reshape(*f.shape, c)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_covariance_of_outputs(case: Case, structure: str) -> None:
    model, likelihood, data, x = case.make()
    post = rp.laplace(model, likelihood, data, structure=structure, prior_precision=0.3, rank=6)
    f, whole = reference(post, model, x)
    pred = post.predict(x)
    expected = by_position(whole, f)
    torch.testing.assert_close(pred.output_mean, f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pred.output_covariance, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
    joint = post.predict(x, joint=True)
    torch.testing.assert_close(
        joint.output_covariance, whole.reshape(f.numel(), f.numel()), rtol=1e-8, atol=1e-10 * float(whole.abs().max())
    )


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diagonal", "dense"])
def test_a_prior_for_each_tensor(structure: str) -> None:
    model, likelihood, data, x = CASES[0].make()
    prior = {name: 0.1 * (i + 1) for i, name in enumerate(dict(model.named_parameters()))}
    post = rp.laplace(model, likelihood, data, structure=structure, prior_precision=prior)
    assert post.prior_precision == pytest.approx(prior)
    flat = torch.cat([torch.full((p.numel(),), prior[name], dtype=DTYPE) for name, p in model.named_parameters()])
    torch.testing.assert_close(post.precision.diagonal() - post.curvature.diagonal(), flat)
    f, whole = reference(post, model, x)
    torch.testing.assert_close(post.predict(x).output_covariance, by_position(whole, f), rtol=1e-8, atol=1e-12)


def test_precision_is_total_weight_times_curvature_plus_prior() -> None:
    model, likelihood, (x, y), _ = CASES[0].make()
    weight = torch.arange(1.0, 1.0 + len(y), dtype=DTYPE) / 3
    objective = rp.Objective(model, likelihood, (x, y, weight))
    eye = torch.eye(objective.n_parameters, dtype=DTYPE)
    for structure, curvature in {
        "dense": rp.ggn(objective, "dense"),
        "diagonal": rp.ggn(objective, "diagonal"),
        "kfac": rp.kfac(objective),
        "ekfac": rp.ekfac(objective),
    }.items():
        post = rp.laplace(model, likelihood, (x, y, weight), structure=structure, prior_precision=0.5, temperature=2.0)
        expected = curvature.to_dense() * float(weight.sum()) / 2.0 + 0.5 * eye
        torch.testing.assert_close(post.precision.to_dense(), expected)


@pytest.mark.parametrize("subset", ["last_layer", ["2.weight", "0"]], ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_some_parameters(structure: str, subset: Any) -> None:
    model, likelihood, data, x = CASES[0].make()
    post = rp.laplace(model, likelihood, data, structure=structure, subset=subset, rank=5)
    names = ["4.weight", "4.bias"] if subset == "last_layer" else ["0.weight", "0.bias", "2.weight"]
    assert list(post.objective.space.names) == names
    f, whole = reference(post, model, x)
    torch.testing.assert_close(post.predict(x).output_covariance, by_position(whole, f), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("subset", ["largest_variance", "random"])
def test_a_subnetwork(subset: str) -> None:
    model, likelihood, data, x = CASES[0].make()
    post = rp.laplace(model, likelihood, data, structure="dense", subset=subset, size=9)
    assert post.entries is not None and post.n_parameters == 9
    objective = rp.Objective(model, likelihood, data)
    whole = rp.ggn(objective, "dense").to_dense() * objective.total_weight
    chosen = whole[post.entries][:, post.entries] + torch.eye(9, dtype=DTYPE)
    torch.testing.assert_close(post.precision.to_dense(), chosen)
    if subset == "largest_variance":
        variances = 1 / (whole.diagonal() + 1)
        assert set(post.entries.tolist()) == set(variances.topk(9).indices.tolist())
    j = jacobian(model, x, list(objective.space.names))[..., post.entries]
    expected = j @ torch.linalg.inv(chosen) @ j.mT
    torch.testing.assert_close(post.predict(x).output_covariance, expected, rtol=1e-8, atol=1e-12)
    assert post.sample(3).shape == (3, 9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_have_the_covariance(structure: str) -> None:
    model, likelihood, data, _ = CASES[1].make(40)
    post = rp.laplace(model, likelihood, data, structure=structure, prior_precision=1.0, rank=6)
    n = 40000
    draws = post.sample(n, torch.Generator().manual_seed(0)) - post.mean
    whitened = draws @ torch.linalg.cholesky(post.precision.to_dense())
    gap = whitened.mT @ whitened / n - torch.eye(post.n_parameters, dtype=DTYPE)
    # entries of a sample covariance of white noise have standard deviation 1 / sqrt(n), the diagonal sqrt(2 / n)
    assert float(gap.abs().max()) < 6 * (2 / n) ** 0.5
    torch.testing.assert_close(post.variance(), torch.linalg.inv(post.precision.to_dense()).diagonal())


@pytest.mark.parametrize("structure", ["kfac", "diagonal"])
def test_many_classes_keep_a_square_root(structure: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 520)).to(DTYPE)
    x, y = torch.randn(6, 3, dtype=DTYPE), torch.arange(6)
    post = rp.laplace(model, rp.Categorical(), (x, y), structure=structure, subset="last_layer")
    pred = post.predict(x[:2])
    assert pred.is_root
    f, whole = reference(post, model, x[:2])
    torch.testing.assert_close(pred.output_covariance, by_position(whole, f), rtol=1e-8, atol=1e-12)
    joint = post.predict(x[:2], joint=True, link="probit")
    torch.testing.assert_close(post.predict(x[:2], link="probit").mean, joint.mean)
    # averages over 100 samples, 1040 of them, are within six standard errors of those over many
    exact = rp.laplace(model, rp.Categorical(), (x, y), structure=structure, subset="last_layer").predict(
        x[:2], samples=4000
    )
    bound = 6 * (exact.epistemic / 100).sqrt()
    assert bool(((pred.mean - exact.mean).abs() < bound).all())


def test_a_layer_alone_is_the_last_one_and_functions_have_none() -> None:
    model, x = torch.nn.Linear(3, 2).to(DTYPE), torch.randn(5, 3, dtype=DTYPE)
    post = rp.laplace(model, rp.Gaussian(), (x, torch.zeros(5, 2, dtype=DTYPE)), subset="last_layer")
    assert post.objective.space.names == ("weight", "bias")
    params = {"w": torch.ones(3, 2, dtype=DTYPE)}
    options = {"data": (x, torch.zeros(5, 2, dtype=DTYPE)), "params": params, "structure": "dense"}
    post = rp.laplace(lambda p, x: x @ p["w"], rp.Gaussian(), **options)
    expected = torch.einsum("ni,ij,nj->n", x, torch.linalg.inv(x.mT @ x + torch.eye(3, dtype=DTYPE)), x)
    torch.testing.assert_close(post.predict(x).output_covariance[:, 0, 0], expected)
    with pytest.raises(rp.InputError, match="has no layers"):
        rp.laplace(lambda p, x: x @ p["w"], rp.Gaussian(), subset="last_layer", **options)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(dtype: torch.dtype, structure: str) -> None:
    model, likelihood, (x, y), new = CASES[0].make(40)
    exact = rp.laplace(model, likelihood, (x, y), structure=structure, prior_precision=0.1, rank=6).predict(new)
    model.to(dtype)
    post = rp.laplace(model, likelihood, (x.to(dtype), y), structure=structure, prior_precision=0.1, rank=6)
    found = post.tune_prior(per="layer").with_prior(0.1).predict(new.to(dtype))
    tol = 1e-2 if dtype is torch.float32 else 0.3
    torch.testing.assert_close(found.output_covariance.to(DTYPE), exact.output_covariance, rtol=tol, atol=tol)
    torch.testing.assert_close(found.mean.to(DTYPE), exact.mean, rtol=tol, atol=tol)
    tiny = post.with_prior(1e-6 if structure in {"kfac", "diagonal"} else 1e-2)
    assert bool(torch.isfinite(tiny.predict(new.to(dtype)).mean).all())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in {"attention", "tied table", "adapters"}], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_of_other_networks(case: Case, dtype: torch.dtype) -> None:
    model, likelihood, (x, y), new = case.make(40)
    exact = rp.laplace(model, likelihood, (x, y)).predict(new)
    model.to(dtype)
    x, new = (t.to(dtype) if t.is_floating_point() else t for t in (x, new))
    found = rp.laplace(model, likelihood, (x, y)).predict(new)
    tol = 1e-3 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(found.mean.to(DTYPE), exact.mean, rtol=tol, atol=tol)
    scale = float(exact.output_covariance.abs().max())
    torch.testing.assert_close(found.output_covariance.to(DTYPE), exact.output_covariance, rtol=tol, atol=tol * scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_posterior_on_a_gpu(case: Case, structure: str) -> None:
    model, likelihood, (x, y), new = case.make()
    exact = rp.laplace(model, likelihood, (x, y), structure=structure, rank=6).predict(new)
    post = rp.laplace(model.cuda(), likelihood, (x.cuda(), y.cuda()), structure=structure, rank=6)
    found = post.predict(new.cuda())
    assert found.output_covariance.is_cuda and post.sample(2).is_cuda
    if structure != "low_rank":  # whose random vectors are others there
        torch.testing.assert_close(found.output_covariance.cpu(), exact.output_covariance, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.mean.cpu(), exact.mean, rtol=1e-2, atol=1e-2)
    assert torch.isfinite(post.tune_prior(per="layer").log_marginal_likelihood())


def test_progress_is_shown_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    model, likelihood, data, new = CASES[0].make()
    post = rp.laplace(model, likelihood, data)
    quiet = post.predict(new).mean
    assert capsys.readouterr().err == ""
    torch.testing.assert_close(post.predict(new, progress=True).mean, quiet)
    assert "inputs" in capsys.readouterr().err
    _ = post.predict(new, method="sample", samples=3, progress=True)
    captured = capsys.readouterr()
    assert "samples" in captured.err and captured.out == ""
