"""Every likelihood, at drawn shapes, layouts and targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson.likelihoods import Categorical

from .conformance import CASES, DTYPE, check_contract, check_strides, draw

every_case = pytest.mark.parametrize("case", CASES, ids=repr)


@every_case
@pytest.mark.parametrize("leading", [(3,), (2, 2), ()], ids=str)
def test_contract(case, leading):
    check_contract(case, *draw(case, leading, 3, seed=1))


@every_case
@settings(max_examples=5, deadline=None)
@given(leading=st.lists(st.integers(1, 2), max_size=3).map(tuple), c=st.integers(1, 3), seed=st.integers(0, 99))
def test_contract_at_any_shape(case, leading, c, seed):
    check_contract(case, *draw(case, leading, c, seed))


@every_case
@pytest.mark.parametrize("leading", [(5,), (3, 4)], ids=str)
def test_strides(case, leading):
    check_strides(case, *draw(case, leading, 3, seed=2))


@every_case
def test_no_rows(case):
    f, y = draw(case, (0,), 3, seed=0)
    at = case.build(3).derivatives(f, y)
    assert at.nll.shape == (0,)
    assert at.gradient.shape == (0, 3)
    assert at.hessian is not None and at.hessian.shape == (0, 3, 3)


@every_case
@settings(max_examples=10, deadline=None)
@given(
    data=st.data(),
    logits=st.lists(st.one_of(st.floats(-1e4, 1e4), st.sampled_from([-1e4, 0.0, 1e4])), min_size=3, max_size=3),
)
def test_extreme_outputs_are_finite_and_bounded(case, data, logits):
    f = torch.tensor([logits], dtype=DTYPE)
    _, y = draw(case, (1,), 3, data.draw(st.integers(0, 99)))
    lik = case.build(3)
    at = lik.derivatives(f, y)
    assert at.hessian is not None
    dense = at.hessian.to_dense()
    for values in (at.nll, at.gradient, dense):
        assert bool(torch.isfinite(values).all())
    if "counts" not in case.name:
        assert float(torch.linalg.eigvalsh(dense).max()) <= lik.hessian_bound + 1e-12


@every_case
def test_float32_stays_float32_and_close(case):
    f, y = draw(case, (6,), 3, seed=3)
    lik = case.build(3)
    exact, single = lik.derivatives(f, y), lik.derivatives(f.float(), y)
    assert single.nll.dtype == single.gradient.dtype == torch.float32
    assert single.hessian is not None and single.hessian.dtype == torch.float32
    assert lik.fisher_factor(f.float(), y).dtype == torch.float32
    torch.testing.assert_close(single.nll.double(), exact.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.gradient.double(), exact.gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.is_model], ids=repr)
def test_fisher_is_the_mean_of_score_products_at_sampled_targets(case):
    """Within five standard errors of it at n and at 16 n, where the standard error is a quarter."""
    f = torch.tensor([0.5, -0.7, 0.2], dtype=DTYPE)
    lik = case.build(3)
    fisher = lik.fisher(f).to_dense()
    errors = []
    for n in (2_000, 32_000):
        rows = f.expand(n, 3)
        g = lik.gradient(rows, lik.sample(rows, torch.Generator().manual_seed(5)))
        products = g.unsqueeze(-1) * g.unsqueeze(-2)
        error = products.std(0) / n**0.5
        assert bool(((products.mean(0) - fisher).abs() <= 5 * error + 1e-12).all())
        errors.append(float(error.max()))
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.15)


@every_case
def test_fisher_is_the_mean_of_hessians_at_sampled_targets(case):
    f = torch.tensor([0.5, -0.7, 0.2], dtype=DTYPE)
    lik = case.build(3)
    fisher = lik.fisher(f).to_dense()
    n = 20_000
    rows = f.expand(n, 3)
    hessians = lik.hessian(rows, lik.sample(rows, torch.Generator().manual_seed(6))).to_dense()
    error = hessians.std(0) / n**0.5
    assert bool(((hessians.mean(0) - fisher).abs() <= 5 * error + 1e-10).all())


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_the_factor_of_the_softmax_is_never_formed(k, size):
    f = size * torch.randn(4, k, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    factor = Categorical().fisher_factor(f)
    assert factor.shape == (4, k, k - 1)
    p = torch.softmax(f, -1)
    dense = factor.to_dense()
    expected = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    torch.testing.assert_close(dense @ dense.mT, expected, rtol=0, atol=1e-15)
    # the root of every probability, times orthonormal directions: no accuracy is lost in classes of small probability
    basis = dense / p.sqrt().clamp_min(1e-300).unsqueeze(-1)
    kept = (p > 1e-290).all(-1)
    eye = torch.eye(k - 1, dtype=DTYPE).expand(4, -1, -1)
    torch.testing.assert_close((basis.mT @ basis)[kept], eye[kept], rtol=0, atol=1e-14)
    assert all(value.numel() == f.numel() for value in factor.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_case
def test_cuda_agrees(case):
    f, y = draw(case, (3, 2), 3, seed=7)
    lik = case.build(3)
    here, there = lik.derivatives(f, y), lik.derivatives(f.cuda(), y.cuda())
    torch.testing.assert_close(there.nll.cpu(), here.nll)
    torch.testing.assert_close(there.gradient.cpu(), here.gradient)
    assert here.hessian is not None and there.hessian is not None
    torch.testing.assert_close(there.hessian.to_dense().cpu(), here.hessian.to_dense())
    torch.testing.assert_close(lik.fisher_factor(f.cuda()).to_dense().cpu(), lik.fisher_factor(f).to_dense())
    lik.check(lik.sample(f.cuda(), torch.Generator("cuda").manual_seed(0)), 3)
    weights = lik.weight(y.cuda())
    assert weights is None or weights.is_cuda
