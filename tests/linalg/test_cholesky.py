from __future__ import annotations

import pytest
import torch

from raphson._errors import IndefiniteError
from raphson.linalg import Dense, cholesky, cholesky_solve, solve_symmetric


def test_error_names_the_minor_its_pivot_and_the_parameter():
    matrix = torch.tensor([[4.0, 2.0, 0.0], [2.0, 0.5, 1.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    with pytest.raises(IndefiniteError, match=r"leading minor 2, parameter 'b', has pivot -5.000e-01"):
        cholesky(matrix, labels=("a", "b", "c"))


def test_error_names_the_batch_element():
    matrices = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])])
    with pytest.raises(IndefiniteError, match=r"batch element 1.*leading minor 2 has pivot -3.000e\+00"):
        cholesky(matrices)


def test_factor_and_solution():
    matrix = torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=torch.float64)
    lower = cholesky(matrix)
    torch.testing.assert_close(lower, torch.tensor([[2.0, 0.0], [1.0, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(cholesky_solve(lower, matrix), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scales_of_columns_are_not_taken_for_collinearity(sign):
    correlation = torch.tensor([[1.0, 0.3, 0.1], [0.3, sign, 0.2], [0.1, 0.2, 1.0]], dtype=torch.float64)
    scale = torch.tensor([1e24, 1.0, 1e-24], dtype=torch.float64)
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64) / scale.unsqueeze(-1)
    matrix = scale.unsqueeze(-1) * correlation * scale
    # The right-hand side is formed in the scaled problem, where nothing cancels.
    b = scale.unsqueeze(-1) * (correlation @ (scale.unsqueeze(-1) * x))
    torch.testing.assert_close(solve_symmetric(matrix, b), x, rtol=1e-12, atol=0.0)


def test_collinear_parameters_are_named():
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :1] + x[:, 1:2]], dim=1) * torch.tensor([1e6, 1.0, 1.0, 1e-6], dtype=torch.float64)
    for ridge in (0.0, 1e-16):
        operator = Dense(x.T @ x + ridge * (x.T @ x).diagonal().diag(), labels=("a", "b", "c", "d"))
        with pytest.raises(IndefiniteError, match=r"singular to working precision, along a combination of a, b, d\."):
            operator.solve(torch.ones(4, dtype=torch.float64))


def test_matrix_with_nan_is_refused():
    with pytest.raises(IndefiniteError, match="NaN"):
        solve_symmetric(torch.full((2, 2), torch.nan), torch.ones(2, 1))


def test_exactly_singular_matrix_names_its_null_vector():
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[1:3, 1:3] = 1.0
    matrix[0, 3] = matrix[3, 0] = 5.0
    with pytest.raises(IndefiniteError, match=r"along a combination of b, c\."):
        Dense(matrix, labels=("a", "b", "c", "d")).solve(torch.ones(4, dtype=torch.float64))


def test_pivots_larger_than_the_smallest_eigenvalue_do_not_hide_a_singular_matrix():
    # Gram matrix of the Kahan matrix, scaled to a unit diagonal: Cholesky succeeds with smallest pivot 2e-5,
    # and the eigenvalues reach from 1e-14 to 21.
    n, c = 25, 0.6
    s = (1 - c * c) ** 0.5
    upper = torch.eye(n, dtype=torch.float64) - c * torch.ones(n, n, dtype=torch.float64).triu(1)
    upper = torch.diag(s ** torch.arange(n, dtype=torch.float64)) @ upper
    with pytest.raises(IndefiniteError, match="singular"):
        solve_symmetric(upper.T @ upper, torch.ones(n, 1, dtype=torch.float64))


@pytest.mark.parametrize("condition", [1e6, 1e10])
def test_an_ill_conditioned_matrix_is_still_solved(condition):
    q = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    w = torch.logspace(0, torch.tensor(condition).log10(), 50, dtype=torch.float64)
    matrix, x = (q * w) @ q.T, torch.ones(50, 1, dtype=torch.float64)
    torch.testing.assert_close(solve_symmetric(matrix, matrix @ x), x, rtol=1e-14 * condition, atol=0.0)
