r"""Softmax, logistic and Poisson models in compiled code: value and gradient in one call, the Hessian in another.

Through PyTorch an evaluation is some twenty calls and a dense Hessian another ten, each of two to six microseconds
whatever it does, and between the calls every intermediate travels through the cache. ``_kernel.c`` makes the same
numbers 256 examples at a time: linear predictors, probabilities, products of features and entries of the output
Hessians are made and consumed in the cache, sums are held in registers. Where it was not built (no compiler at
installation), or the model is not of this kind, everything goes through PyTorch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from raphson.data import DenseDesign, Design

try:
    from raphson.linear import _kernel
except ImportError:
    if not TYPE_CHECKING:
        _kernel = None

_OUTPUTS_AND_COLUMNS = 128
"""Outputs and columns together up to which 256 examples stay in the cache; beyond, matrix products are faster."""

_SMALLEST = 2.0**-60
"""Entries below this are zero in single precision: products of two of them stay normal numbers."""

_PART = 2.0**20
"""Multiplications that are worth a thread of their own."""


@dataclass(frozen=True, eq=False)
class Table:
    """Features in double precision: standardized columns, or the rows as given, standardized as they are read.

    Attributes:
        x: ``(D', N)`` with the ones; or where there are factors ``(N, D)`` without them, each row contiguous.
        center: Subtracted from the columns, ``(D,)``, or None.
        factor: By which they are then multiplied, ``(D,)``, or None.
        intercept: Whether a column of ones comes before the rows as given.
    """

    x: Tensor
    center: Tensor | None = None
    factor: Tensor | None = None
    intercept: bool = False

    @property
    def n(self) -> int:
        """Number of rows, N."""
        return self.x.shape[1 if self.factor is None else 0]

    @property
    def d(self) -> int:
        """Number of columns, D'."""
        return self.x.shape[0] if self.factor is None else self.x.shape[1] + self.intercept

    def rows(self, rows: slice) -> Table:
        """Return some of the rows."""
        return replace(self, x=self.x[:, rows] if self.factor is None else self.x[rows])

    @property
    def arguments(self) -> tuple[int, int, int, int, int | None, int | None, bool]:
        """What compiled functions take of it: N, D', the stride, and the rest."""
        center = None if self.center is None else self.center.data_ptr()
        factor = None if self.factor is None else self.factor.data_ptr()
        return self.n, self.d, self.x.stride(0), self.x.data_ptr(), center, factor, self.intercept

    @cached_property
    def single(self) -> Tensor:
        """Standardized columns in single precision, ``(D', N)``."""
        if self.factor is None:
            return self.x.float()
        assert self.center is not None
        columns = ((self.x - self.center) * self.factor).mT.float()
        ones = torch.ones(int(self.intercept), self.n, dtype=torch.float32)
        return torch.cat([ones, columns])


@dataclass(frozen=True, eq=False)
class CompiledFamily:
    r"""The penalized objective of a linear model in the natural parameter of an exponential family.

    .. math:: L(B) = s \sum_n w_n A(B x_n) - \langle T, B \rangle
        + \tfrac12 \langle B, Q B\, \mathrm{diag}(\lambda) \rangle

    The log-partition function A is :math:`\log \sum_k e^{f_k}`, or :math:`e^f` of one output. All tensors are
    contiguous and in double precision.

    Attributes:
        table: The features with the ones.
        weights: ``(N,)`` or None for 1 each.
        linear: T, the targets' linear term, ``(C_free, D')``.
        reference: Whether one more output, the last one, is zero.
        penalty_outputs: Q, ``(C_free, C_free)``.
        penalty_columns: The penalties per column, ``(D',)``.
        scale: s, one over the total weight W, times the likelihood's multiple of A.
        exponential: Whether A is the exponential.
    """

    table: Table
    weights: Tensor | None
    linear: Tensor
    reference: bool
    penalty_outputs: Tensor
    penalty_columns: Tensor
    scale: float
    exponential: bool

    @cached_property
    def _model(self) -> tuple[Any, ...]:
        weights = None if self.weights is None else self.weights.data_ptr()
        outputs, columns = self.penalty_outputs.data_ptr(), self.penalty_columns.data_ptr()
        n, d, *table = self.table.arguments
        return n, d, self.linear.shape[0], *table, weights, outputs, columns, self.scale, self.exponential

    def model(self, multiplications: float) -> tuple[Any, ...]:
        """Return what every compiled function takes first, the number of threads last."""
        return *self._model, _threads(multiplications)

    @property
    def multiplications(self) -> float:
        """Those of an evaluation, an exponential counted as twenty."""
        return self.table.n * (2.0 * self.table.d * self.linear.shape[0] + 20.0 * (self.linear.shape[0] + 1))

    def evaluate(self, theta: Tensor, element: torch.dtype | None) -> tuple[float, Tensor, CompiledHessian | None]:
        """Return value, gradient ``(p,)`` and Hessian at the coefficients ``theta`` ``(p,)``.

        Args:
            theta: Where, ``(p,)``.
            element: Element type in which the Hessian keeps probabilities; None for no Hessian.

        Returns:
            The three.
        """
        coef = theta.double().contiguous()
        gradient = torch.empty_like(coef)
        kept: list[int | None] = [None, None]
        hessian = None
        if element is not None:
            p = torch.empty(self.linear.shape[0] + self.reference, self.table.n, dtype=element)
            kept[element == torch.float32] = p.data_ptr()
            hessian = CompiledHessian(self, p)
        at = coef.data_ptr(), self.linear.data_ptr(), self.reference
        value = _kernel.evaluate(*self.model(self.multiplications), *at, gradient.data_ptr(), *kept)
        return value, gradient, hessian


@dataclass(frozen=True, eq=False)
class CompiledHessian:
    """The Hessian where the gradient of the log-partition function, probabilities or means, is ``p``, ``(C, N)``.

    In single precision ``p`` serves products; 1 - p has few digits then where p is nearly 1.
    """

    objective: CompiledFamily
    p: Tensor

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """Return the Hessian as ``(C_free D', C_free D')``, class by class."""
        c, d = self.objective.linear.shape
        return self._sums(_every_pair(c), torch.empty(c * d, c * d, dtype=dtype), blocks=False)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        """Return the diagonal blocks, one per free output, ``(C_free, D', D')``."""
        c, d = self.objective.linear.shape
        return self._sums(_own_pairs(c), torch.empty(c, d, d, dtype=dtype), blocks=True)

    def _sums(self, pairs: _Pairs, out: Tensor, *, blocks: bool) -> Tensor:
        single = out.dtype == torch.float32
        n, d = self.objective.table.n, self.objective.table.d
        model = self.objective.model(n * pairs.number * d * (d + 1) / 2)
        p = self.p.double()
        _kernel.hessian(*model, p.data_ptr(), *pairs[1:], blocks, single, out.data_ptr())
        return out

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v``, ``(C_free D',)``, in single or double precision as ``v`` is."""
        v, out = v.contiguous(), torch.empty_like(v)
        single = v.dtype == torch.float32
        p = self._single_p if single else self.p.double()
        x = self.objective.table.single.data_ptr() if single else None
        model = self.objective.model(self.objective.multiplications)
        _kernel.product(*model, x, p.data_ptr(), v.data_ptr(), single, out.data_ptr())
        return out

    @cached_property
    def _single_p(self) -> Tensor:
        return self.p if self.p.dtype == torch.float32 else without_subnormals(self.p.float())


def without_subnormals(values: Tensor) -> Tensor:
    """Return values whose products are zero or normal numbers: subnormal ones slow a product a hundredfold."""
    return torch.nn.functional.hardshrink(values, _SMALLEST)


class _Pairs(NamedTuple):
    """Pairs of outputs ``(2, q)`` with the addresses of their rows and their number."""

    pairs: Tensor
    first: int
    second: int
    number: int


def _pairs(pairs: Tensor) -> _Pairs:
    return _Pairs(pairs, pairs[0].data_ptr(), pairs[1].data_ptr(), pairs.shape[1])


@functools.lru_cache(maxsize=32)
def _every_pair(c: int) -> _Pairs:
    return _pairs(torch.triu_indices(c, c))


@functools.lru_cache(maxsize=32)
def _own_pairs(c: int) -> _Pairs:
    return _pairs(torch.arange(c).expand(2, c))


def _threads(multiplications: float) -> int:
    return min(torch.get_num_threads(), 1 + int(multiplications / _PART))


def is_built(x: Tensor) -> bool:
    """Return whether compiled code was built and can read features ``(d, rows)``."""
    return _kernel is not None and x.dtype == torch.float64 and x.stride(-1) == 1 and x.device.type == "cpu"


def pair_sums(x: Tensor, entries: Tensor) -> Tensor:
    r"""Return :math:`\sum_n a_{en}\, x_n x_n^T` for every row e of the entries of output Hessians.

    Args:
        x: Features ``(d, rows)`` for which ``is_built``.
        entries: ``(q, rows)`` in double precision.

    Returns:
        ``(q, d, d)``.
    """
    (d, n), q = x.shape, entries.shape[0]
    given, out = entries.contiguous(), torch.empty(q, d, d, dtype=torch.float64)
    threads = _threads(n * q * d * (d + 1) / 2)
    model = n, d, 1, x.stride(0), x.data_ptr(), None, None, False, None, None, None, 1.0, True, threads
    _kernel.hessian(*model, given.data_ptr(), *_own_pairs(q)[1:], True, False, out.data_ptr())
    return out


def adjoint(table: Table, weights: Tensor | None, t: Tensor) -> Tensor:
    r"""Return :math:`\sum_n w_n\, t_n \otimes \hat x_n`.

    Args:
        table: Features.
        weights: ``(N,)`` in double precision, or None for 1 each.
        t: ``(C, N)`` in double precision.

    Returns:
        ``(C, D')``.
    """
    (c, n), (_, d, *rest) = t.shape, table.arguments
    given, out = t.contiguous(), torch.empty(c, d, dtype=torch.float64)
    w = None if weights is None else weights.data_ptr()
    model = n, d, c, *rest, w, None, None, 1.0, True, _threads(n * c * d)
    _kernel.adjoint(*model, given.data_ptr(), out.data_ptr())
    return out


def table_of(design: Design, n_outputs: int) -> Table | None:
    """Return the rows of a design as compiled code reads them, or None where it cannot or is not the faster one."""
    if _kernel is None or design.n_columns + n_outputs > _OUTPUTS_AND_COLUMNS:
        return None
    if isinstance(design, DenseDesign) and design.is_raw and design.x.numel():  # nothing has no address
        factor = design.scale.reciprocal()
        if bool(factor.isfinite().all()):  # not for columns below 1e-308
            return Table(design.x, design.center, factor, design.intercept)
    whole = design.whole()
    return None if whole is None else Table(whole)
