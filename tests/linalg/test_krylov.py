from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson.linalg import CGStatus, Dense, Diagonal, cg, extreme_eigenvalues, lanczos


def positive_definite(n: int, seed: int = 0, condition: float = 100.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    return (q * torch.logspace(0, np.log10(condition), n, dtype=torch.float64)) @ q.T


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 12), k=st.integers(0, 4), seed=st.integers(0, 1000))
def test_cg_solves_every_column(n, k, seed):
    matrix = positive_definite(n, seed)
    b = torch.randn((n, k) if k else (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = cg(Dense(matrix), b, tol=1e-12)
    assert result.status is CGStatus.CONVERGED
    assert result.residual_norm.shape == b.shape[1:]
    torch.testing.assert_close(result.x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)


def test_cg_iterates_like_scipy():
    matrix, b = positive_definite(30), torch.ones(30, dtype=torch.float64)
    ours = cg(lambda v: matrix @ v, b, max_iter=7)
    theirs, _ = scipy.sparse.linalg.cg(matrix.numpy(), b.numpy(), maxiter=7, rtol=1e-12)
    assert ours.status is CGStatus.MAX_ITERATIONS
    assert ours.iterations == 7
    np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=1e-10)
    torch.testing.assert_close(ours.residual_norm, (b - matrix @ ours.x).norm(), rtol=1e-10, atol=0.0)


def test_cg_takes_as_many_iterations_as_distinct_eigenvalues():
    values = torch.tensor([1.0, 1.0, 5.0, 5.0, 9.0], dtype=torch.float64)
    result = cg(Diagonal(values), torch.arange(1.0, 6.0, dtype=torch.float64), tol=1e-10)
    assert result.iterations == 3


def test_cg_preconditioner_and_start():
    scale = torch.logspace(-3, 3, 40, dtype=torch.float64)
    matrix = scale[:, None] * positive_definite(40, condition=4.0) * scale
    b = torch.ones(40, dtype=torch.float64)
    plain = cg(Dense(matrix), b, tol=1e-10, max_iter=60)
    better = cg(Dense(matrix), b, tol=1e-10, preconditioner=Diagonal(1 / matrix.diagonal()), max_iter=60)
    assert plain.status is CGStatus.MAX_ITERATIONS
    assert better.status is CGStatus.CONVERGED
    torch.testing.assert_close(matrix @ better.x, b, rtol=1e-7, atol=1e-7)
    assert cg(Dense(matrix), b, x0=better.x, tol=1e-6).iterations == 0


def test_cg_reports_negative_curvature_with_its_direction():
    values = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    b = torch.ones(3, 2, dtype=torch.float64)
    b[2, 0] = 0  # The first column never sees the negative eigenvalue.
    result = cg(Diagonal(values), b)
    assert result.status is CGStatus.NEGATIVE_CURVATURE
    assert result.direction is not None
    d = result.direction[:, 1]
    assert not bool(result.direction[:, 0].any())
    torch.testing.assert_close(float(d @ (values * d) / (d @ d)), result.curvature)
    assert result.curvature is not None
    assert result.curvature <= 0


def test_cg_with_zero_right_hand_side_and_nan():
    assert cg(Diagonal(torch.ones(3)), torch.zeros(3)).status is CGStatus.CONVERGED
    start = cg(Diagonal(torch.ones(3)), torch.zeros(3), x0=torch.ones(3))
    assert start.status is CGStatus.CONVERGED
    torch.testing.assert_close(start.x, torch.zeros(3))
    assert cg(Diagonal(torch.ones(3)), torch.full((3,), torch.nan)).status is not CGStatus.CONVERGED


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_lanczos_relation(reorthogonalize):
    matrix = positive_definite(20)
    run = lanczos(Dense(matrix), torch.ones(20, dtype=torch.float64), 6, reorthogonalize=reorthogonalize)
    tridiagonal = torch.diag(run.alpha) + torch.diag(run.beta, 1) + torch.diag(run.beta, -1)
    rest = matrix @ run.basis - run.basis @ tridiagonal
    torch.testing.assert_close(rest[:, :-1], torch.zeros(20, 5, dtype=torch.float64), rtol=0.0, atol=1e-11)
    torch.testing.assert_close(rest[:, -1].norm(), run.residual, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(
        run.basis.T @ run.basis,
        torch.eye(6, dtype=torch.float64),
        rtol=0.0,
        atol=1e-12 if reorthogonalize else 1e-9,
    )


def test_lanczos_stops_at_an_invariant_space():
    values = torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    run = lanczos(Diagonal(values), torch.ones(5, dtype=torch.float64), 5)
    assert run.alpha.shape == (2,)
    assert float(run.residual) == 0.0
    tridiagonal = torch.diag(run.alpha) + torch.diag(run.beta, 1) + torch.diag(run.beta, -1)
    torch.testing.assert_close(torch.linalg.eigvalsh(tridiagonal), values[[0, -1]])


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), steps=st.integers(1, 40), seed=st.integers(0, 1000))
def test_extreme_eigenvalues_lie_within_their_errors(n, steps, seed):
    matrix = positive_definite(n, seed) - 20 * torch.eye(n, dtype=torch.float64)
    found = extreme_eigenvalues(Dense(matrix), steps=steps, generator=torch.Generator().manual_seed(seed))
    true = torch.linalg.eigvalsh(matrix)
    for value, error in ((found.smallest, found.smallest_error), (found.largest, found.largest_error)):
        assert float((true - value).abs().min()) <= error + 1e-10
    assert float(true[0]) - 1e-10 <= found.smallest <= found.largest <= float(true[-1]) + 1e-10
    if steps >= n:
        assert found.smallest == pytest.approx(float(true[0]), abs=1e-8)
        assert found.largest == pytest.approx(float(true[-1]), abs=1e-8)
