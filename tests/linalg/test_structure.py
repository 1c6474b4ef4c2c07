"""What the conformance suite cannot see: conventions, limits of size, structure kept, hard numbers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson._errors import IndefiniteError, InputError, TooLargeError
from raphson.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    Implicit,
    ImplicitRectangular,
    Kronecker,
    KroneckerEigen,
    Matrix,
    Scaled,
    SideBySide,
    Sum,
    from_state_dict,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def test_identity_plus_low_rank_has_the_determinant_of_scipy():
    v = normal(8, 2)
    sign, logabsdet = np.linalg.slogdet(np.eye(8) + v.numpy() @ v.numpy().T)
    ours = DiagonalPlusLowRank(ones(8), v).slogdet()
    assert float(ours.sign) == sign
    assert float(ours.logabsdet) == pytest.approx(logabsdet, rel=1e-13)
    expected = np.linalg.slogdet(scipy.linalg.expm(np.zeros((8, 8))) + 4 * v.numpy() @ v.numpy().T)
    assert float(Sum((Diagonal(ones(8)), DiagonalPlusLowRank(0 * ones(8), 2 * v))).slogdet().logabsdet) == (
        pytest.approx(expected.logabsdet, rel=1e-12)
    )


def test_low_rank_solve_needs_no_dense_form():
    n = 200_000
    operator = DiagonalPlusLowRank(ones(n), normal(n, 3), -1).shift(2 * float(n))
    b = normal(n, seed=1)
    torch.testing.assert_close(operator.mv(operator.solve(b)), b, rtol=1e-9, atol=1e-9)
    with pytest.raises(TooLargeError, match=r"200000 x 200000 array of 320\.0 GB.*solve"):
        operator.to_dense()
    with pytest.raises(TooLargeError):
        operator.eigh()


@settings(max_examples=25, deadline=None)
@given(logit=st.floats(0, 800), k=st.integers(2, 6), damping=st.sampled_from([1e-8, 1e-3, 1.0]))
def test_damped_softmax_hessian_stays_solvable_when_saturated(logit, k, damping):
    f = torch.zeros(2, k, dtype=torch.float64)
    f[1, 0] = logit
    p = f.softmax(-1)
    operator = DiagonalPlusLowRank(p, p.unsqueeze(-1), -1).shift(damping)
    b = normal(2, k)
    x = operator.solve(b)
    residual = operator.mv(x) - b
    assert float(residual.abs().max()) <= 1e-13 * (1 + float(x.abs().max()))
    # The ones vector is an eigenvector of eigenvalue zero before damping.
    torch.testing.assert_close(operator.solve(ones(2, k)), ones(2, k) / damping, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("q", [0.3, 1e-6, 1e-12])
def test_softmax_hessian_without_damping_is_singular_however_small(q):
    p = torch.tensor([1 - q, q], dtype=torch.float64)
    with pytest.raises(IndefiniteError, match="singular"):
        DiagonalPlusLowRank(p, p.unsqueeze(-1), -1).solve(p)


def test_low_rank_solve_is_backward_stable_where_its_terms_cancel():
    u = 100 * normal(50, 3)
    operator = DiagonalPlusLowRank(1e-3 * (1 + normal(50, seed=1).abs()), u)
    b = u.sum(-1)
    x = operator.solve(b)
    size = torch.linalg.matrix_norm(operator.to_dense(), 2) * x.norm()
    assert float((b - operator.mv(x)).norm() / size) < 1e-12


def test_zeros_of_the_diagonal_are_solved_densely_in_their_batch_elements_only():
    diag = torch.tensor([[1.0, 2.0], [0.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    operator = DiagonalPlusLowRank(diag, ones(3, 2, 1))
    dense = torch.diag_embed(diag) + 1
    b = normal(3, 2, 2)
    torch.testing.assert_close(operator.solve(b), torch.linalg.solve(dense, b))
    torch.testing.assert_close(operator.slogdet().logabsdet, torch.linalg.slogdet(dense).logabsdet)


def test_kronecker_is_row_major():
    a, b, v = normal(2, 2), normal(3, 3, seed=1), normal(2, 3, seed=2)
    a, b = a + a.T, b + b.T
    product = Kronecker((Dense(a), Dense(b))).mv(v.flatten())
    torch.testing.assert_close(product.reshape(2, 3), a @ v @ b.T)


def test_kronecker_of_two_negative_factors_is_positive():
    a, b = Diagonal(torch.tensor([-1.0, -2.0])), Diagonal(torch.tensor([-4.0]))
    torch.testing.assert_close(Kronecker((a, b)).power_mv(torch.ones(2), 0.5), torch.tensor([4.0, 8.0]).sqrt())


def test_kronecker_keeps_products_of_small_eigenvalues_that_are_well_determined():
    small = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    operator = Kronecker((Dense(small), Dense(small)))
    expected = torch.tensor([1.0, 1e9, 1e9, 1e18], dtype=torch.float64).sqrt()
    torch.testing.assert_close(operator.power_mv(ones(4), -0.5), expected)


def test_kronecker_of_large_factors_stays_structured():
    diagonal = Diagonal(torch.linspace(1, 2, 20_000, dtype=torch.float64))
    operator = Kronecker((Dense(torch.eye(3, dtype=torch.float64) * 2), diagonal))
    shifted = operator.shift(1.0)
    assert isinstance(shifted, KroneckerEigen)
    expected = (2 * diagonal.values + 1).repeat(3)
    torch.testing.assert_close(shifted.diagonal(), expected)
    torch.testing.assert_close(shifted.solve(ones(60_000)), 1 / expected)
    torch.testing.assert_close(shifted.factor().mv(ones(60_000)), expected.sqrt())
    with pytest.raises(TooLargeError, match="60000 x 60000"):
        operator.to_dense()


def test_structures_survive_a_shift_and_keep_their_labels():
    labels = ("a", "b")
    values = ones(2)
    operators = (
        *(Dense(torch.diag(values), labels=labels), Diagonal(values, labels=labels)),
        DiagonalPlusLowRank(values, values.unsqueeze(-1), labels=labels),
        BlockDiagonal((Diagonal(values[:1]), Dense(ones(1, 1))), labels=labels),
        Scaled(Diagonal(values), 3.0, labels=labels),
        Sum((Diagonal(values), Dense(torch.diag(values))), labels=labels),
        Implicit(lambda v: v, 2, torch.float64, labels=labels),
    )
    for operator in operators:
        shifted = operator.shift(1.0)
        assert type(shifted) is type(operator)
        assert shifted.labels == labels
        assert shifted.to(dtype=torch.float32).labels == labels


def test_sum_refuses_to_form_a_large_dense_array_and_names_cg():
    n = 20_000
    operator = Sum((Diagonal(ones(n)), Implicit(lambda v: 2 * v, n, torch.float64)))
    torch.testing.assert_close(operator.mv(ones(n)), 3 * ones(n))
    for call in (operator.eigh, operator.slogdet, lambda: operator.solve(ones(n))):
        with pytest.raises(TooLargeError, match=r"3\.2 GB.*cg"):
            call()


def test_factor_of_a_sum_whose_summand_is_indefinite():
    operator = Sum((Diagonal(torch.tensor([3.0, 1.0])), Diagonal(torch.tensor([-1.0, 1.0]))))
    root = operator.factor().to_dense()
    torch.testing.assert_close(root @ root.T, torch.diag(torch.tensor([2.0, 2.0])))


def test_implicit_solve_reports_the_rayleigh_quotient():
    operator = Implicit(lambda v: -2 * v, 3, torch.float64)
    with pytest.raises(IndefiniteError, match=r"Rayleigh quotient -2\.000e\+00"):
        operator.solve(ones(3))


def test_implicit_uses_the_product_of_columns_and_blocks_of_the_identity():
    matrix = normal(150, 150)
    matrix = matrix + matrix.T
    widths = []

    def matmat(v):
        widths.append(v.shape[-1])
        return matrix @ v

    operator = Implicit(lambda v: matrix @ v, (150, 150), torch.float64, matmat=matmat)
    torch.testing.assert_close(operator.diagonal(), matrix.diagonal())
    torch.testing.assert_close(operator.to_dense(), matrix)
    assert widths == [64, 64, 22] * 2


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 2, 5)])
def test_implicit_rectangular(shape):
    matrix = normal(*shape)
    operator = ImplicitRectangular(
        lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1),
        lambda v: (matrix.mT @ v.unsqueeze(-1)).squeeze(-1),
        shape,
        torch.float64,
    )
    torch.testing.assert_close(operator.to_dense(), matrix)
    single = operator.to(dtype=torch.float32)
    torch.testing.assert_close(single.mm(torch.ones(*shape[:-2], shape[-1], 2)), (matrix @ ones(shape[-1], 2)).float())
    with pytest.raises(InputError, match="cannot be saved"):
        operator.state_dict()


def test_side_by_side():
    left, right = normal(3, 2), normal(3, 4, seed=1)
    operator = SideBySide((Matrix(left), Matrix(right)))
    dense = torch.cat([left, right], dim=1)
    v, u = normal(6, seed=2), normal(3, seed=3)
    torch.testing.assert_close(operator.mv(v), dense @ v)
    torch.testing.assert_close(operator.rmv(u), dense.T @ u)
    torch.testing.assert_close(operator.to_dense(), dense)


def test_products_broadcast_over_examples():
    matrix, v = normal(3, 3), normal(7, 3, seed=1)
    matrix = matrix + matrix.T
    for operator in (Dense(matrix), Sum((Dense(matrix), Diagonal(ones(3))))):
        torch.testing.assert_close(operator.mv(v), v @ operator.to_dense())


def test_shift_by_a_multiplier_of_zero_is_refused():
    with pytest.raises(IndefiniteError, match="multiplier 0"):
        Scaled(Diagonal(ones(2)), 0.0).shift(1.0)
    with pytest.raises(IndefiniteError, match="multiplier is zero"):
        Scaled(Diagonal(ones(2)), 0.0).solve(ones(2))


def two_kinds():
    return {"operator.Dense.matrix": ones(2, 2), "operator.Diagonal.values": ones(2)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dense(ones(2, 3)), r"square.*\(2, 3\)"),
        (lambda: DiagonalPlusLowRank(ones(2), ones(2, 1), 0), "sign"),
        (lambda: DiagonalPlusLowRank(ones(2), ones(3, 1)), r"\(2,\) and \(3, 1\)"),
        (lambda: Sum((Diagonal(ones(2)), Diagonal(ones(3)))), "same shape"),
        (lambda: Sum(()), "one or more"),
        (lambda: Kronecker((Diagonal(ones(2)),)), "two or more"),
        (lambda: BlockDiagonal((Diagonal(ones(2)), Diagonal(ones(3, 2)))), "batch"),
        (lambda: KroneckerEigen((Matrix(ones(2, 2)),), ones(3)), r"\(3,\)"),
        (lambda: Implicit(lambda v: v, (2, 3), torch.float64), "square"),
        (lambda: from_state_dict("os", {}), "no operator of kind 'os'"),
        (lambda: from_state_dict("Dense", {}), "lacks its part 'matrix'"),
        (lambda: from_state_dict("Dense", {"matrix": [1.0]}), "'matrix' of a Dense is a list"),
        (
            lambda: from_state_dict("Dense", {"matrix": ones(2, 2), "new": ones(2)}),
            "has 'new', and its parts are matrix",
        ),
        (lambda: from_state_dict("BlockDiagonal", {"blocks.1.Diagonal.values": ones(2)}), "lacks its operator 0"),
        (
            lambda: from_state_dict("Scaled", {"multiplier": ones(()), **two_kinds()}),
            "of several kinds, Dense, Diagonal",
        ),
        (lambda: from_state_dict("LayerOperator", {}), r"give type\(op.operator\).__name__"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_what_can_be_loaded_is_what_is_stored_as_tensors():
    expected = (
        "BlockDiagonal Dense Diagonal DiagonalPlusLowRank EqualBlocks Kronecker KroneckerEigen Permuted Scaled Sum "
        "BlockDiagonalMatrix EqualBlocksMatrix KroneckerMatrix Matrix PermutedRows ScaledColumns ScaledRows SideBySide"
    )
    with pytest.raises(InputError) as refusal:
        from_state_dict("Implicit", {})
    kinds = str(refusal.value).partition("the kinds are ")[2].partition(". ")[0].split(", ")
    assert kinds == sorted(expected.split())


def test_singular_diagonal_names_the_parameter():
    operator = Diagonal(torch.tensor([1.0, 0.0]), labels=("age", "income"))
    with pytest.raises(IndefiniteError, match=r"entry 1 \('income'\) is zero"):
        operator.solve(torch.ones(2))


def test_state_dict_of_nested_operators_is_flat_and_keeps_numbers_exactly():
    inner = Kronecker((Dense(normal(2, 2)), Diagonal(ones(3))))
    operator = BlockDiagonal((Scaled(inner, 0.1), DiagonalPlusLowRank(ones(2), ones(2, 1), -1)))
    state = operator.state_dict()
    assert sorted(state) == [
        "blocks.0.Scaled.multiplier",
        "blocks.0.Scaled.operator.Kronecker.factors.0.Dense.matrix",
        "blocks.0.Scaled.operator.Kronecker.factors.1.Diagonal.values",
        "blocks.1.DiagonalPlusLowRank.diag",
        "blocks.1.DiagonalPlusLowRank.low_rank",
        "blocks.1.DiagonalPlusLowRank.sign",
    ]
    again = from_state_dict("BlockDiagonal", state)
    assert torch.equal(again.to_dense(), operator.to_dense())


def test_an_operator_is_shown_in_one_line() -> None:
    kept = Kronecker((Dense(torch.eye(40)), Diagonal(torch.ones(30))))
    assert repr(kept) == "<Kronecker 1200 x 1200, torch.float32>"
    assert repr(Dense(torch.eye(2, dtype=torch.float64))) == "<Dense 2 x 2, torch.float64>"


@pytest.mark.parametrize("c", [float("nan"), float("inf"), "1", None, True, 1j, torch.ones(3), torch.tensor(1j)])
def test_a_shift_is_one_finite_number(c):
    for op in (Diagonal(ones(3)), Dense(torch.eye(3)), Kronecker((Dense(torch.eye(3)), Diagonal(ones(1))))):
        with pytest.raises(InputError, match="shift"):
            op.shift(c)


def test_a_shift_by_zero_leaves_a_singular_operator_singular():
    """In the eigenbasis of a Kronecker product rounding makes a small number of a zero, which has an inverse."""
    a = normal(3, 2)
    op = Kronecker((Dense(a @ a.mT), Dense(torch.eye(2, dtype=a.dtype))))
    for same in (op, op.shift(0), op.shift(0.0)):
        with pytest.raises(IndefiniteError, match="singular to working precision"):
            same.solve(torch.ones(6, dtype=a.dtype))
