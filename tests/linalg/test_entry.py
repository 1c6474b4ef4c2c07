"""What every operator owes its callers: refusals by name, half precision, nothing made on the wrong device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raphson._errors import InputError
from raphson.linalg import (
    Dense,
    DenseForm,
    Diagonal,
    Implicit,
    ImplicitRectangular,
    Matrix,
    ScaledColumns,
    SymmetricOperator,
    all_finite,
    cg,
    cholesky,
    cholesky_solve,
    extreme_eigenvalues,
    lanczos,
    solve_symmetric,
)
from raphson.linalg._krylov import random_vector

from .conformance import BUILDERS, Built, Draw

DRAW = Draw(seed=1, batch=(), n=4, m=2, kind="definite")
BATCH = Draw(seed=1, batch=(3,), n=4, m=2, kind="definite")


def definite(build: Callable[[Draw], Built], d: Draw) -> SymmetricOperator:
    """The member, shifted where it is not positive definite by construction."""
    op, dense = build(d)
    return op if bool((torch.linalg.eigvalsh(dense) > 1e-9).all()) else op.shift(float(2 * dense.abs().sum(-1).max()))


every_member = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


@every_member
def test_a_wrong_right_hand_side_is_refused_in_one_sentence(build):
    op = definite(build, DRAW)
    n, name = op.shape[-1], type(op).__name__
    calls = (op.mv, op.rmv, lambda v: op @ v, op.solve, lambda v: op.power_mv(v, 0.5))
    for call in calls:
        for length in {1, n + 1} - {n}:
            with pytest.raises(InputError, match=rf"but there are {n} parameters: .*{name} of shape .*with n = {n}\."):
                call(torch.ones(length, dtype=torch.float64))
        with pytest.raises(InputError, match=f"{name} of .* has dtype torch.float64, .* torch.float32: .*v.to"):
            call(torch.ones(n))
        with pytest.raises(InputError, match=f"{name} of .* lives on cpu, .* on meta: .*v.to"):
            call(torch.ones(n, dtype=torch.float64, device="meta"))
        with pytest.raises(InputError, match="and got an array of complex128"):
            call(np.ones(n, dtype=complex))
    wrong = rf"The vector has 7 entries, .* shape \(3, 7\).*\(\.\.\., n\) with n = {n}"
    with pytest.raises(InputError, match=wrong):
        op.mv(torch.ones(3, 7, dtype=torch.float64))
    with pytest.raises(InputError, match="and got a list"):
        op @ [1.0] * n
    with pytest.raises(InputError, match=r"\(\.\.\., n, k\)"):
        op.mm(torch.ones(n + 1, 2, dtype=torch.float64))
    assert isinstance(op.solve(np.ones(n)), np.ndarray)
    assert isinstance(op.mv(np.ones(n, dtype=np.int64)), np.ndarray)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_member
def test_half_precision_is_decomposed_in_single(build, dtype):
    op = definite(build, BATCH).to(dtype=dtype)
    # the numbers that the half precision operator holds, without its rounding
    exact = Dense(op.to_dense().double()) if isinstance(op, Implicit) else op.to(dtype=torch.float64)
    b = torch.linspace(-1, 1, op.shape[-1]).expand(3, -1).to(dtype)
    rtol = 4 * torch.finfo(dtype).eps

    def near(actual: Tensor, expected: Tensor) -> None:
        assert actual.dtype == dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=rtol * scale)

    if isinstance(op, Implicit):  # conjugate gradients stop at a residual, which is all that such products can show
        residual = (op.to_dense().double() @ op.solve(b).double().unsqueeze(-1)).squeeze(-1) - b.double()
        assert bool((residual.norm(dim=-1) <= 2 * torch.finfo(dtype).eps ** (2 / 3) * b.double().norm(dim=-1)).all())
    else:
        near(op.solve(b), exact.solve(b.double()))
    near(op.power_mv(b, -0.5), exact.power_mv(b.double(), -0.5))
    near(op.slogdet().logabsdet, exact.slogdet().logabsdet)
    near(op.slogdet().sign, exact.slogdet().sign)
    near(op.eigh().eigenvalues.sort(-1).values, exact.eigh().eigenvalues.sort(-1).values)
    assert op.eigh().eigenvectors.dtype == dtype
    root = op.factor()
    assert root.dtype == dtype
    near(root.to_dense() @ root.to_dense().mT, exact.to_dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matrices_are_factored_and_solved_in_single(dtype):
    matrix = torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=dtype)
    b = torch.tensor([[1.0], [2.0]], dtype=dtype)
    lower = cholesky(matrix)
    assert torch.equal(lower, torch.tensor([[2.0, 0.0], [1.0, 2.0]], dtype=dtype))
    expected = torch.linalg.solve(matrix.double(), b.double()).to(dtype)
    torch.testing.assert_close(cholesky_solve(lower, b), expected)
    torch.testing.assert_close(solve_symmetric(matrix, b), expected)
    indefinite = matrix - 4.5 * torch.eye(2, dtype=dtype)
    expected = torch.linalg.solve(indefinite.double(), b.double()).to(dtype)
    torch.testing.assert_close(solve_symmetric(indefinite, b), expected)
    found = extreme_eigenvalues(Dense(matrix), generator=torch.Generator().manual_seed(0))
    assert found.largest == pytest.approx(6.5616, rel=0.02)
    assert isinstance(np.asarray(Dense(matrix)), np.ndarray)


class DeviceIsNamed(TorchFunctionMode):
    """Fails where a tensor is made without a device: it would lie on the processor, wherever the operator lives."""

    MAKE = frozenset({
        *(torch.zeros, torch.ones, torch.eye, torch.empty, torch.full, torch.arange, torch.linspace),
        *(torch.tensor, torch.rand, torch.randn, torch.randint, torch.randperm, torch.tril_indices, torch.triu_indices),
    })

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.MAKE or (func is torch.as_tensor and not isinstance(args[0], Tensor)):
            assert kwargs.get("device") is not None, f"{func.__name__} without a device"
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@every_member
def test_no_tensor_is_made_without_its_device(build, kind):
    op = definite(build, DRAW) if kind == "definite" else build(Draw(seed=1, batch=(), n=4, m=2, kind=kind))[0]
    b = torch.ones(op.shape[-1], dtype=torch.float64)
    columns = b.unsqueeze(-1).repeat(1, 2)
    generator = torch.Generator().manual_seed(0)
    with DeviceIsNamed():
        op.mv(b), op.mm(columns), op.to_dense(), op.diagonal(), op.trace(), op.eigh(), op.slogdet(), op.power_mv(b, 2)
        op.shift(1.0).mv(b), op.as_scipy(), op.to(dtype=torch.float32)
        extreme_eigenvalues(op, generator=generator), extreme_eigenvalues(op)
        if kind == "definite":
            op.solve(b), op.power_mv(b, 0.5), op.factor(), cg(op, b), cg(op, columns), lanczos(op, b, 3)
        if not isinstance(op, Implicit):
            op.state_dict()


@every_member
def test_results_lie_where_the_operator_does(build):
    if build.__name__ == "permuted":
        pytest.skip("a permutation is checked, and on the meta device there are no numbers to check")
    op, dense = build(BATCH)
    if build.__name__ == "implicit":
        matrix = dense.to("meta")
        op = type(op)(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), matrix.shape, matrix.dtype, "meta")
    op = op.to(device="meta")
    v = torch.ones_like(dense[..., 0], device="meta")
    columns = v.unsqueeze(-1).expand(-1, -1, 2)
    for result in (op.mv(v), op.mm(columns), op.to_dense(), op.diagonal(), op.trace(), op.eigh().eigenvalues):
        assert result.is_meta
        assert result.dtype == torch.float64


def test_random_vectors_are_drawn_where_the_generator_lives():
    op = Diagonal(torch.ones(5, device="meta"))
    drawn = random_vector(op, torch.Generator().manual_seed(0))
    assert (drawn.shape, drawn.device.type) == ((5,), "meta")
    on_processor = Diagonal(torch.ones(5))
    first, second = (random_vector(on_processor, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)


def test_scipy_finds_eigenvalues_of_an_operator():
    values = torch.linspace(1, 9, 50, dtype=torch.float64)
    largest = scipy.sparse.linalg.eigsh(Diagonal(values).as_scipy(), k=2, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), values[-2:].numpy(), rtol=1e-10)
    tall = ScaledColumns(Matrix(torch.eye(60, 50, dtype=torch.float64)), values)
    singular = scipy.sparse.linalg.svds(tall.as_scipy(), k=1, return_singular_vectors=False)
    np.testing.assert_allclose(singular, [9.0], rtol=1e-10)
    assert Diagonal(values.bfloat16()).as_scipy().dtype == np.float32


def test_scipy_takes_an_operator_itself():
    values = torch.linspace(1, 9, 50, dtype=torch.float64)
    for op in (Diagonal(values), Implicit(lambda v: values * v, 50, torch.float64)):
        largest = scipy.sparse.linalg.eigsh(op, k=2, return_eigenvectors=False)
        np.testing.assert_allclose(np.sort(largest), values[-2:].numpy(), rtol=1e-10)
        taken = scipy.sparse.linalg.aslinearoperator(op)
        assert taken.dtype == np.float64 and op.dtype is torch.float64
        np.testing.assert_allclose(taken @ np.ones((50, 2)), values.numpy()[:, None] * np.ones(2))


def test_rectangular_operators_take_numpy_and_refuse_pickling_with_the_remedy():
    import copy
    import pickle

    matrix = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    operator = ImplicitRectangular(lambda v: matrix @ v, lambda v: matrix.T @ v, (2, 3), torch.float64)
    np.testing.assert_array_equal(operator @ np.ones(3), [3.0, 12.0])
    np.testing.assert_array_equal(operator.rmm(np.ones((2, 1))), [[3.0], [5.0], [7.0]])
    with pytest.raises(InputError, match="with n = 2"):
        operator.rmv(torch.ones(3, dtype=torch.float64))
    assert torch.equal(copy.deepcopy(operator).to_dense(), matrix)
    with pytest.raises(TypeError, match=r"Pickle Matrix\(op.to_dense\(\)\) instead"):
        pickle.dumps(operator)
    # a function that pickle can find by its name is no obstacle
    again = pickle.loads(pickle.dumps(ImplicitRectangular(torch.neg, torch.neg, (3, 3), torch.float64)))
    assert torch.equal(again.to_dense(), -torch.eye(3, dtype=torch.float64))


def test_what_is_kept_as_data_is_decomposed_by_its_dense_form():
    class Squared(DenseForm):
        """The square of a symmetric matrix, by two products."""

        root = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        shape, dtype, device = root.shape, root.dtype, root.device

        def mv(self, v: Tensor) -> Tensor:
            return self.root @ (self.root @ v)

        def to_dense(self) -> Tensor:
            return self.root @ self.root

        def diagonal(self) -> Tensor:
            return self.root.square().sum(-1)

    op, dense = Squared(labels=("a", "b")), Dense(Squared.root @ Squared.root)
    b = torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(op.solve(b), dense.solve(b))
    torch.testing.assert_close(op.power_mv(b, 0.5), Squared.root @ b)
    torch.testing.assert_close(op.eigh().eigenvalues, dense.eigh().eigenvalues)
    torch.testing.assert_close(op.slogdet().logabsdet, dense.slogdet().logabsdet)
    torch.testing.assert_close(op.factor().to_dense(), dense.factor().to_dense())
    torch.testing.assert_close(op.state_dict()["matrix"], dense.matrix)
    shifted = op.shift(1.0)
    assert shifted.labels == ("a", "b")
    torch.testing.assert_close(shifted.to_dense(), dense.matrix + torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_a_single_entry_that_is_not_finite_is_seen(bad):
    t = torch.ones(3, 5)
    assert all_finite(t)
    t[1, 2] = bad
    assert not all_finite(t)
    t[2, 2] = -bad
    assert not all_finite(t)


def test_finite_entries_whose_sum_overflows_are_finite():
    assert all_finite(torch.full((4,), torch.finfo(torch.float32).max))
    assert all_finite(torch.empty(0))


@pytest.mark.parametrize(
    "use", [lambda a: a.eigh(), lambda a: a.solve(torch.ones(3, dtype=a.dtype)), lambda a: a.factor()]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_symmetric_is_not_factorized(use: Callable[..., Any], dtype: torch.dtype) -> None:
    matrix = 3.0 * torch.eye(3, dtype=dtype)
    matrix[0, 2] = 1.0
    with pytest.raises(InputError, match=r"not symmetric: entries \(0, 2\) and \(2, 0\) differ by 1"):
        use(Dense(matrix))
    with pytest.raises(InputError, match=r"not symmetric: entries \(0, 2\)"):
        Dense(torch.stack([torch.eye(3, dtype=dtype), matrix])).eigh()
    matrix[2, 0] = 1.0 + torch.finfo(dtype).eps  # of rounding
    eigenvalues = Dense(matrix).eigh().eigenvalues
    torch.testing.assert_close(eigenvalues, torch.tensor([2.0, 3.0, 4.0], dtype=dtype))
