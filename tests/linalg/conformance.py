"""What every symmetric operator has to do, against dense linear algebra in float64.

A member of the contract supplies a builder of ``(operator, dense)``; ``check_contract`` does the rest.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from raphson._errors import IndefiniteError, InputError, RaphsonError
from raphson.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    EqualBlocks,
    Implicit,
    Kronecker,
    KroneckerEigen,
    Matrix,
    Permuted,
    Scaled,
    Sum,
    SymmetricOperator,
    from_state_dict,
)

RTOL = 1e-9


@dataclass(frozen=True)
class Draw:
    """Sizes, definiteness and a seed; the source of all random numbers of one example."""

    seed: int
    batch: tuple[int, ...]
    n: int
    m: int
    kind: str
    device: str = "cpu"

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        values = torch.randn((*self.batch, *shape), generator=generator, dtype=torch.float64)
        return values.to(self.device)

    def values(self, generator: torch.Generator, n: int, kind: str | None = None) -> Tensor:
        """Numbers with absolute value in [1/2, 2]: positive, of both signs, or with the first zero."""
        kind = kind or self.kind
        values = 2.0 ** (2 * torch.rand((*self.batch, n), generator=generator, dtype=torch.float64) - 1)
        if kind == "indefinite":
            values[..., ::2] *= -1
        if kind == "singular":
            values[..., 0] = 0
        return values.to(self.device)

    def matrix(self, generator: torch.Generator, n: int, kind: str | None = None) -> Tensor:
        """A symmetric matrix with such eigenvalues."""
        vectors = self.rotation(generator, n)
        matrix = (vectors * self.values(generator, n, kind).unsqueeze(-2)) @ vectors.mT
        return (matrix + matrix.mT) / 2

    def rotation(self, generator: torch.Generator, n: int) -> Tensor:
        return torch.linalg.qr(self.normal(generator, n, n)).Q


draws = st.builds(
    Draw,
    seed=st.integers(0, 2**31 - 1),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    n=st.integers(1, 5),
    m=st.integers(1, 4),
    kind=st.sampled_from(["definite", "indefinite", "singular"]),
)

Built = tuple[SymmetricOperator, Tensor]


def kron(a: Tensor, b: Tensor) -> Tensor:
    """Batched Kronecker product by loops over the batch, independent of the library."""
    if a.ndim == 2:
        return torch.kron(a, b)
    return torch.stack([kron(x, y) for x, y in zip(a, b, strict=True)])


def direct_sum(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim == 2:
        return torch.block_diag(a, b)
    return torch.stack([direct_sum(x, y) for x, y in zip(a, b, strict=True)])


def dense(d: Draw) -> Built:
    matrix = d.matrix(d.generator(), d.n)
    return Dense(matrix), matrix


def diagonal(d: Draw) -> Built:
    values = d.values(d.generator(), d.n)
    return Diagonal(values), torch.diag_embed(values)


def scaled(d: Draw) -> Built:
    matrix = d.matrix(d.generator(), d.n)
    return Scaled(Dense(matrix), 2.5), 2.5 * matrix


def scaled_by_batch(d: Draw) -> Built:
    g = d.generator()
    matrix, factor = d.matrix(g, d.n), d.normal(g).abs() + 0.5
    sign = -1 if d.kind == "indefinite" else 1
    return Scaled(Dense(matrix), sign * factor), sign * factor[..., None, None] * matrix


def sum_dense(d: Draw) -> Built:
    g = d.generator()
    matrix, values = d.matrix(g, d.n), d.values(g, d.n)
    first = Diagonal(-values if d.kind == "singular" else values)
    extra = torch.diag_embed(values) if d.kind == "singular" else torch.zeros_like(matrix)
    return Sum((Dense(matrix), first, Dense(extra))), matrix + first.to_dense() + extra


def sum_low_rank(d: Draw) -> Built:
    g = d.generator()
    (a, u), (b, v) = ((d.values(g, d.n), d.normal(g, d.n, 1)) for _ in range(2))
    c = d.values(g, d.n)
    operator = Sum((DiagonalPlusLowRank(a, u), Diagonal(c), DiagonalPlusLowRank(b, v)))
    return operator, torch.diag_embed(a + b + c) + u @ u.mT + v @ v.mT


def low_rank_plus(d: Draw) -> Built:
    g = d.generator()
    values, u = d.values(g, d.n), d.normal(g, d.n, d.m)
    return DiagonalPlusLowRank(values, u), torch.diag_embed(values) + u @ u.mT


def low_rank_minus(d: Draw) -> Built:
    g = d.generator()
    values, u = d.values(g, d.n), d.normal(g, d.n, d.m)
    return DiagonalPlusLowRank(values, u, -1), torch.diag_embed(values) - u @ u.mT


def softmax(d: Draw) -> Built:
    p = d.normal(d.generator(), d.n + 1).softmax(-1)
    return DiagonalPlusLowRank(p, p.unsqueeze(-1), -1), torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def kronecker(d: Draw) -> Built:
    g = d.generator()
    a, b = d.matrix(g, d.n), d.matrix(g, d.m, "definite")
    return Kronecker((Dense(a), Dense(b))), kron(a, b)


def kronecker_of_three(d: Draw) -> Built:
    g = d.generator()
    a, b, c = d.matrix(g, d.n), d.values(g, d.m, "definite"), d.matrix(g, 2, "definite")
    return Kronecker((Dense(a), Diagonal(b), Dense(c))), kron(kron(a, torch.diag_embed(b)), c)


def kronecker_eigen(d: Draw) -> Built:
    g = d.generator()
    q, r, w = d.rotation(g, d.n), d.rotation(g, d.m), d.values(g, d.n * d.m)
    vectors = kron(q, r)
    operator = KroneckerEigen((Matrix(q), Matrix(r)), w.reshape(*d.batch, d.n, d.m))
    return operator, (vectors * w.unsqueeze(-2)) @ vectors.mT


def block_diagonal(d: Draw) -> Built:
    first, a = kronecker(d)
    second, b = dense(Draw(d.seed + 1, d.batch, d.m, d.n, "definite", d.device))
    third, c = diagonal(Draw(d.seed + 2, d.batch, d.n, d.m, "definite", d.device))
    return BlockDiagonal((first, second, third)), direct_sum(direct_sum(a, b), c)


def equal_blocks(d: Draw) -> Built:
    g = d.generator()
    blocks = [d.matrix(g, d.n) for _ in range(d.m)]
    whole = blocks[0]
    for block in blocks[1:]:
        whole = direct_sum(whole, block)
    return EqualBlocks(torch.stack(blocks, -3)), whole


def permuted(d: Draw) -> Built:
    inner, whole = block_diagonal(d)
    index = torch.randperm(whole.shape[-1], generator=d.generator()).to(whole.device)
    matrix = torch.empty_like(whole)
    for i, a in enumerate(index.tolist()):
        for j, b in enumerate(index.tolist()):
            matrix[..., a, b] = whole[..., i, j]
    return Permuted(inner, index), matrix


def implicit(d: Draw) -> Built:
    matrix = d.matrix(d.generator(), d.n)
    function = lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)  # noqa: E731
    return Implicit(function, matrix.shape, matrix.dtype, matrix.device), matrix


BUILDERS: tuple[Callable[[Draw], Built], ...] = (
    *(
        dense,
        diagonal,
        scaled,
        scaled_by_batch,
        sum_dense,
        sum_low_rank,
        low_rank_plus,
        low_rank_minus,
        softmax,
    ),
    *(kronecker, kronecker_of_three, kronecker_eigen, block_diagonal, equal_blocks, permuted, implicit),
)


def close(actual: Tensor, expected: Tensor, scale: Tensor | float | None = None) -> None:
    """Assert equality to 1e-9 of the largest expected entry, or of a scale."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    size = float(expected.abs().max() if scale is None else torch.as_tensor(scale).abs().max())
    torch.testing.assert_close(actual, expected, rtol=RTOL, atol=RTOL * max(size, 1e-12))


def smallest(dense: Tensor) -> float:
    """The smallest absolute eigenvalue of any batch element, relative to the largest of that element."""
    w = torch.linalg.eigvalsh(dense).abs()
    return float((w.amin(-1) / w.amax(-1).clamp_min(1e-300)).min())


def well_posed(dense: Tensor) -> bool:
    """Whether the matrices are clearly singular or clearly not."""
    return not 1e-13 <= smallest(dense) <= 1e-4


def check_contract(op: SymmetricOperator, dense: Tensor, d: Draw) -> None:
    """Check every method of the contract against the dense form."""
    assert well_posed(dense)
    singular = smallest(dense) < 1e-13
    w, q = torch.linalg.eigh(dense)
    level = 1e-12 * w.abs().amax(-1, keepdim=True)
    w = torch.where(w.abs() < level, 0.0, w)
    nonnegative = bool((w >= 0).all())
    n = dense.shape[-1]
    g = torch.Generator().manual_seed(d.seed + 9)
    v, columns = d.normal(g, n), d.normal(g, n, 3)

    assert op.shape == dense.shape
    assert (op.dtype, op.device) == (dense.dtype, dense.device)
    check_products(op, dense, v, columns)
    close(op.diagonal(), dense.diagonal(dim1=-2, dim2=-1), dense)
    close(op.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), n * dense.abs().max())
    check_spectrum(op, dense, w)
    check_shift(op, dense, d)
    check_slogdet(op, dense, singular)
    check_solve(op, dense, v, columns, singular)
    check_powers(op, (w, q), v, columns, (singular, nonnegative))
    check_factor(op, dense, nonnegative)
    check_conversions(op, dense, v)
    check_copies(op, dense)
    check_numpy(op, dense, v, columns)


def check_products(op: SymmetricOperator, dense: Tensor, v: Tensor, columns: Tensor) -> None:
    product = (dense @ v.unsqueeze(-1)).squeeze(-1)
    scale = dense.abs().max() * v.abs().max()
    for result in (op.mv(v), op.rmv(v), op @ v):
        close(result, product, scale)
    for result in (op.mm(columns), op.rmm(columns), op @ columns):
        close(result, dense @ columns, dense.abs().max() * columns.abs().max())
    close(op.to_dense(), dense)


def check_spectrum(op: SymmetricOperator, dense: Tensor, w: Tensor) -> None:
    eigenvalues, vectors = op.eigh()
    matrix = vectors.to_dense()
    close(eigenvalues.sort(-1).values, w, dense)
    close((matrix * eigenvalues.unsqueeze(-2)) @ matrix.mT, dense)
    close(
        matrix.mT @ matrix,
        torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device).expand_as(dense),
    )


def check_shift(op: SymmetricOperator, dense: Tensor, d: Draw) -> None:
    eye = torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
    close(op.shift(0.75).to_dense(), dense + 0.75 * eye)
    each = d.values(d.generator(), 1, "definite").squeeze(-1)
    close(op.shift(each).to_dense(), dense + each[..., None, None] * eye)


def check_slogdet(op: SymmetricOperator, dense: Tensor, singular: bool) -> None:
    sign, logabsdet = op.slogdet()
    if singular:
        determinant = sign * logabsdet.exp()
        close(determinant, torch.linalg.det(dense), dense.abs().max() ** dense.shape[-1])
        return
    expected = torch.linalg.slogdet(dense)
    close(sign, expected.sign)
    close(logabsdet, expected.logabsdet, 1.0)


def check_solve(op: SymmetricOperator, dense: Tensor, v: Tensor, columns: Tensor, singular: bool) -> None:
    if isinstance(op, Implicit) and (singular or bool((torch.linalg.eigvalsh(dense) < 0).any())):
        with pytest.raises(RaphsonError if singular else IndefiniteError, match="Shift it"):
            op.solve(v)
        return
    if singular:
        with pytest.raises(IndefiniteError, match="singular"):
            op.solve(v)
        return
    close(op.solve(v), torch.linalg.solve(dense, v.unsqueeze(-1)).squeeze(-1))
    close(op.solve(columns), torch.linalg.solve(dense, columns))


def check_powers(
    op: SymmetricOperator, eigh: tuple[Tensor, Tensor], v: Tensor, columns: Tensor, flags: tuple[bool, bool]
) -> None:
    w, q = eigh
    singular, nonnegative = flags

    def power(p: float, rhs: Tensor) -> Tensor:
        return q @ ((w**p).unsqueeze(-1) * (q.mT @ rhs))

    for p in (0, 1, 2, 3):
        close(op.power_mv(v, p), power(p, v.unsqueeze(-1)).squeeze(-1), 1 + w.abs().max() ** p)
    if not nonnegative:
        with pytest.raises(IndefiniteError, match="smallest eigenvalue is -"):
            op.power_mv(v, 0.5)
        return
    # The root of a zero eigenvalue that rounding made 1e-17 is 3e-9.
    close(op.power_mv(v, 0.5), power(0.5, v.unsqueeze(-1)).squeeze(-1), 100.0 if singular else None)
    close(op.power_mv(columns, 1.5), power(1.5, columns), 1 + w.max() ** 1.5)
    if singular:
        with pytest.raises(IndefiniteError, match="singular"):
            op.power_mv(v, -0.5)
        return
    close(op.power_mv(v, -0.5), power(-0.5, v.unsqueeze(-1)).squeeze(-1))
    close(op.power_mv(columns, -2), power(-2, columns))


def check_factor(op: SymmetricOperator, dense: Tensor, nonnegative: bool) -> None:
    if not nonnegative:
        with pytest.raises(IndefiniteError):
            op.factor()
        return
    factor = op.factor()
    root = factor.to_dense()
    assert factor.shape == root.shape
    close(root @ root.mT, dense)
    v, u = torch.ones_like(root[..., 0, :]), torch.ones_like(root[..., 0])
    close(factor.mv(v), root.sum(-1), root)
    close(factor.rmv(u), root.sum(-2), root)


def check_conversions(op: SymmetricOperator, dense: Tensor, v: Tensor) -> None:
    single = op.to(dtype=torch.float32)
    assert single.dtype == torch.float32
    product = (dense @ v.unsqueeze(-1)).squeeze(-1).float()
    bound = 1e-5 * dense.shape[-1] * float(dense.abs().max() * v.abs().max())
    torch.testing.assert_close(single.mv(v.float()), product, rtol=1e-5, atol=max(bound, math.ulp(1.0)))
    if isinstance(op, Implicit):
        with pytest.raises(InputError, match="cannot be saved"):
            op.state_dict()
        return
    labels = tuple(f"p{i}" for i in range(dense.shape[-1]))
    again = from_state_dict(type(op).__name__, op.state_dict(), labels=labels)
    assert type(again) is type(op)
    assert isinstance(again, SymmetricOperator)
    assert again.labels == labels
    assert torch.equal(again.to_dense(), op.to_dense())
    assert again.shift(1.0).labels == labels


def check_copies(op: SymmetricOperator, dense: Tensor) -> None:
    """Copies and pickles are the same operator; one that is a function says why it cannot be pickled."""
    for again in (copy.copy(op), copy.deepcopy(op)):
        assert type(again) is type(op)
        close(again.to_dense(), dense)
    if isinstance(op, Implicit):
        with pytest.raises(TypeError, match=r"cannot be pickled. Pickle Dense\(op.to_dense\(\)\) instead"):
            pickle.dumps(op)
        return
    again = pickle.loads(pickle.dumps(op))
    assert type(again) is type(op)
    assert torch.equal(again.to_dense(), op.to_dense())


def check_numpy(op: SymmetricOperator, dense: Tensor, v: Tensor, columns: Tensor) -> None:
    """NumPy arrays in, NumPy arrays out; an operator without batch dimensions is one of SciPy's."""
    expected = dense.cpu()
    v, columns = v.cpu(), columns.cpu()
    product = (expected @ v.unsqueeze(-1)).squeeze(-1)
    scale = dense.abs().max() * v.abs().max()
    close(torch.from_numpy(np.asarray(op)), expected)
    for result in (op.mv(v.numpy()), op.rmv(v.numpy()), op @ v.numpy()):
        assert isinstance(result, np.ndarray)
        close(torch.from_numpy(result), product, scale)
    for result in (op.mm(columns.numpy()), op @ columns.numpy()):
        assert isinstance(result, np.ndarray)
        close(torch.from_numpy(result), expected @ columns, dense.abs().max() * columns.abs().max())
    if dense.ndim > 2:
        with pytest.raises(InputError, match="batch dimensions"):
            op.as_scipy()
        return
    scipy = op.as_scipy()
    assert scipy.shape == tuple(dense.shape)
    assert scipy.dtype == np.float64
    for result in (scipy.matvec(v.numpy()), scipy.rmatvec(v.numpy()), scipy.matvec(v.numpy()[:, None]).ravel()):
        close(torch.from_numpy(result), product, scale)
    for result in (scipy @ columns.numpy(), scipy.rmatmat(columns.numpy())):
        close(torch.from_numpy(result), expected @ columns, dense.abs().max() * columns.abs().max())
