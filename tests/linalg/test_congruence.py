"""``D A D`` and ``A + diag(v)`` against dense algebra, and the structure they keep."""

from __future__ import annotations

import pytest
import torch

from raphson._errors import TooLargeError
from raphson.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    EqualBlocks,
    EqualBlocksMatrix,
    Kronecker,
    Matrix,
    Scaled,
    ScaledColumns,
    ScaledRows,
    Sum,
    congruence,
    from_state_dict,
    plus_diagonal,
    scaled_rows,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(*shape: int, seed: int = 0) -> torch.Tensor:
    a = normal(*shape, shape[-1], seed=seed)
    return a + a.mT


LABELS = ("a", "b", "c", "d")
OPERATORS = [
    Dense(symmetric(3, 4), labels=LABELS),
    Diagonal(normal(3, 4), labels=LABELS),
    EqualBlocks(symmetric(3, 2, 2), labels=LABELS),
    DiagonalPlusLowRank(normal(3, 4), normal(3, 4, 2), -1, labels=LABELS),
    Scaled(EqualBlocks(symmetric(3, 2, 2)), -2.5, labels=LABELS),
    Scaled(Diagonal(normal(3, 4)), normal(3), labels=LABELS),
    Sum((Diagonal(normal(3, 4)), DiagonalPlusLowRank(normal(3, 4), normal(3, 4, 1))), labels=LABELS),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda op: type(op).__name__)
def test_the_structure_is_kept(operator):
    s, v = normal(3, 4, seed=1), normal(3, 4, seed=2)
    dense = operator.to_dense()
    rescaled, shifted = congruence(operator, s), plus_diagonal(operator, v)
    torch.testing.assert_close(rescaled.to_dense(), s[..., None] * dense * s[..., None, :], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(shifted.to_dense(), dense + torch.diag_embed(v), rtol=1e-13, atol=1e-13)
    assert type(rescaled) is type(operator)
    assert type(shifted) in {type(operator), Sum}
    assert rescaled.labels == shifted.labels == LABELS


@pytest.mark.parametrize(
    "operator",
    [
        BlockDiagonal((Dense(symmetric(1)), Dense(symmetric(3)))),
        Kronecker((Dense(symmetric(2)), Dense(symmetric(2, seed=3)))),
        Scaled(Diagonal(normal(4)), 0.0),
    ],
    ids=lambda op: type(op).__name__,
)
def test_what_has_no_structure_to_keep_is_right_all_the_same(operator):
    s, v = normal(4, seed=1), normal(4, seed=2)
    dense = operator.to_dense()
    torch.testing.assert_close(congruence(operator, s).to_dense(), s[:, None] * dense * s, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(plus_diagonal(operator, v).to_dense(), dense + torch.diag_embed(v))


def test_a_large_operator_is_not_made_dense():
    n = 100_000
    large = BlockDiagonal((Diagonal(torch.ones(n)),))
    with pytest.raises(TooLargeError):
        congruence(large, torch.ones(n))


@pytest.mark.parametrize(
    "operator",
    [
        Diagonal(normal(3, 4)),
        Matrix(normal(3, 4, 5)),
        EqualBlocksMatrix(normal(3, 2, 2, 3)),
        ScaledColumns(Matrix(normal(3, 4, 2)), normal(3, 2)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_scaled_rows(operator):
    s = normal(3, 4, seed=1)
    dense = s.unsqueeze(-1) * operator.to_dense()
    for product in (scaled_rows(operator, s), ScaledRows(operator, s)):
        assert product.shape == dense.shape
        assert (product.dtype, product.device) == (dense.dtype, dense.device)
        v, u = normal(3, dense.shape[-1], 2, seed=4), normal(3, 4, 2, seed=5)
        for actual, expected in (
            (product.to_dense(), dense),
            (product.mv(v[..., 0]), (dense @ v)[..., 0]),
            (product.rmv(u[..., 0]), (dense.mT @ u)[..., 0]),
            (product.mm(v), dense @ v),
            (product.rmm(u), dense.mT @ u),
            (from_state_dict(type(product).__name__, product.state_dict()).to_dense(), dense),
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
