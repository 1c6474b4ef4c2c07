"""Directions for many dampings, after one turn into the factors' eigenbasis, against the dense formula."""

import pytest
import torch

from raphson.network import Factors, KroneckerBlock, matmul
from raphson.optim._blocks import KroneckerState, balance
from raphson.optim._eigen import EigenState
from raphson.optim._preconditioner import due

ROWS, COLUMNS = 4, 6


def factor(n, seed):
    x = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.mT @ x / n).unsqueeze(0)


def block():
    return KroneckerBlock("w", ("w",), slice(0, ROWS * COLUMNS), None, (1, ROWS, COLUMNS), False)


def inverse_power(t, exponent):
    values, vectors = torch.linalg.eigh(t)
    return vectors * values.pow(-exponent) @ vectors.mT


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("exponent", [1.0, 0.7])
@pytest.mark.parametrize("damping", [1e-4, 2.0])
def test_those_of_the_damped_kronecker_product(exponent, damping, diagonal):
    left, right = factor(ROWS, 0), factor(COLUMNS, 1)
    right = right.diagonal(dim1=1, dim2=2) if diagonal else right
    state = KroneckerState(block())
    state.update(Factors(left, right, False), None, 0.0)
    v = torch.randn(1, ROWS, COLUMNS, dtype=torch.float64)
    pi = float(balance(left, right))
    dense_right = torch.diag(right[0]) if diagonal else right[0]
    product = torch.kron(
        left[0] + damping**0.5 / pi * torch.eye(ROWS).double(),
        dense_right + damping**0.5 * pi * torch.eye(COLUMNS).double(),
    )
    wanted = (inverse_power(product, exponent) @ v.reshape(-1)).view(1, ROWS, COLUMNS)
    torch.testing.assert_close(state.trials(v, exponent)(damping), wanted)
    state.refresh(damping, exponent, True)
    torch.testing.assert_close(state.solve(v), wanted)


@pytest.mark.parametrize("damping", [1e-4, 2.0])
def test_those_of_the_sum_in_the_eigenbasis(damping):
    left, right = factor(ROWS, 0), factor(COLUMNS, 1)
    state = EigenState(block())
    state.update(Factors(left, right, False), None, 0.0)
    state.refresh(0.0, 1.0, True)
    v = torch.randn(1, ROWS, COLUMNS, dtype=torch.float64)
    damped = torch.kron(left[0], right[0]) + damping * torch.eye(ROWS * COLUMNS).double()
    torch.testing.assert_close(
        state.trials(v, 0.7)(damping), (inverse_power(damped, 0.7) @ v.reshape(-1)).view(1, ROWS, COLUMNS)
    )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_those_of_matrices_whoever_makes_them(groups, transposed):
    a, b = torch.randn(groups, 200, 301), torch.randn(groups, 301, 199)
    b = b.mT.contiguous().mT if transposed else b
    torch.testing.assert_close(matmul(a, b).double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


def test_periods_grow_with_the_steps_so_far():
    last, found = -1, []
    for count in range(40):
        if due(count, last, 6):
            last = count
            found.append(count)
    assert found[:3] == [0, 1, 2]
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 6


def test_long_periods_are_there_after_a_hundred_steps():
    assert not due(100, 0, 101)
    assert due(101, 0, 101)
    assert not due(50, 0, 120)
    assert due(75, 0, 60)
