r"""Softmax, logistic and Poisson models in compiled code: value and gradient in one call, the Hessian in another.

Through PyTorch an evaluation is some twenty calls and a dense Hessian another ten, each of two to six microseconds
whatever it does, and between the calls every intermediate travels through the cache. ``raphson._native`` makes the
same numbers 256 examples at a time: linear predictors, probabilities, products of features and entries of the output
Hessians are made and consumed in the cache, sums are held in registers. Where it was not built (no compiler at
installation), or the model is not of this kind, everything goes through PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson import _native
from raphson.data import DenseDesign, Design

_OUTPUTS_AND_COLUMNS = 128
"""Outputs and columns together up to which 256 examples stay in the cache; beyond, matrix products are faster."""

_ONE_OUTPUT_COLUMNS, _CACHED = 48, 2**18
"""Columns above which the Hessian of a single output is left to matrix products, unless the table has few entries.

5000 x 60: 1.0 ms, beside 1.75 in compiled code; 1000 x 120: 1.0, beside 0.7."""

_IN_PLACE_COLUMNS, _SEVERAL_COLUMNS = 24, 100
"""Columns from which evaluations read rows in place: of one or two outputs, and of more.

Microseconds in place, turned into columns, and by matrix products with a standardized copy: 5000 x 20, one output, 89,
86, 76; 5000 x 40, 94, 148, 103; two, 120, 148, 163; four, 205, 158, 239; 5000 x 120, three, 330, 360, 515; 1000 x 300,
156, 183, 266; 5000 x 2000, ten, 17300, 26000, 47900."""

_IN_PLACE_OUTPUTS = 16
"""Outputs above which matrix products are faster: 300 x 2000, 49 outputs: 8.3 ms in place, 3.6 by them."""

_SMALLEST = 2.0**-60
"""Entries below this are zero in single precision: products of two of them stay normal numbers."""


@dataclass(frozen=True, eq=False)
class Table:
    """Features in double precision: standardized columns, or the rows as given, standardized as they are read.

    Attributes:
        x: ``(D', N)`` with the ones; or where there are factors ``(N, D)`` without them, each row contiguous.
        center: Subtracted from the columns, ``(D,)``, or None.
        factor: By which they are then multiplied, ``(D,)``, or None.
        intercept: Whether a column of ones comes before the rows as given.
        in_place: Whether evaluations read them in place.
        has_hessians: Whether Hessians are made in compiled code, too.
    """

    x: Tensor
    center: Tensor | None = None
    factor: Tensor | None = None
    intercept: bool = False
    in_place: bool = False
    has_hessians: bool = True

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
        units: Those of gradients, ``(3, D')``; see ``GradientNorm``.
        negative: Whether B is minus the coefficients: a loss :math:`a e^{-f} + t f` is an exponential of -f.
    """

    table: Table
    weights: Tensor | None
    linear: Tensor
    reference: bool
    penalty_outputs: Tensor
    penalty_columns: Tensor
    scale: float
    exponential: bool
    units: Tensor
    negative: bool = False

    @cached_property
    def model(self) -> _native.LinearModel:
        """What every compiled function takes first."""
        table, penalty = self.table, (self.penalty_outputs, self.penalty_columns)
        given = table.x, table.center, table.factor, table.intercept, self.weights
        c, exponential = self.linear.shape[0], self.exponential
        return _native.LinearModel(*given, *penalty, c, self.scale, exponential, table.in_place)

    def at(self, theta: Tensor, kept: torch.dtype | None) -> _native.Point:
        """Evaluate at coefficients ``(p,)``; ``kept`` is the element type of the probabilities, None for none."""
        if not self.negative:
            return self._evaluator.at(theta, kept)
        point = self._evaluator.at(theta.neg(), kept)
        return point._replace(gradient=point.gradient.neg_())

    @cached_property
    def _evaluator(self) -> _native.Evaluator:
        """What evaluates it."""
        return _native.Evaluator(self.model, self.linear, self.reference, self.units)


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
        return self._sums(torch.empty(c * d, c * d, dtype=dtype), own=False)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        """Return the diagonal blocks, one per free output, ``(C_free, D', D')``."""
        c, d = self.objective.linear.shape
        return self._sums(torch.empty(c, d, d, dtype=dtype), own=True)

    def _sums(self, out: Tensor, *, own: bool) -> Tensor:
        return _native.hessian(self.objective.model, self.p.double(), out, own=own)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v``, ``(C_free D',)``, in single or double precision as ``v`` is."""
        single = v.dtype == torch.float32
        x, p = (self.objective.table.single, self._single_p) if single else (None, self.p.double())
        return _native.product(self.objective.model, x, p, v)

    @cached_property
    def _single_p(self) -> Tensor:
        return self.p if self.p.dtype == torch.float32 else without_subnormals(self.p.float())


def without_subnormals(values: Tensor) -> Tensor:
    """Return values whose products are zero or normal numbers: subnormal ones slow a product a hundredfold."""
    return torch.nn.functional.hardshrink(values, _SMALLEST)


def is_built(x: Tensor) -> bool:
    """Return whether compiled code is available and can read features ``(d, rows)``."""
    return x.dtype == torch.float64 and x.stride(-1) == 1 and x.is_cpu and _native.is_available()


def pair_sums(x: Tensor, entries: Tensor) -> Tensor:
    r"""Return :math:`\sum_n a_{en}\, x_n x_n^T` ``(q, d, d)`` of features ``(d, rows)`` and entries ``(q, rows)``."""
    d, q = x.shape[0], entries.shape[0]
    out = torch.empty(q, d, d, dtype=torch.float64)
    return _native.hessian(_sums(Table(x), None, 1, True), entries.contiguous(), out, own=True)


def adjoint(table: Table, weights: Tensor | None, t: Tensor) -> Tensor:
    r"""Return :math:`\sum_n w_n\, t_n \otimes \hat x_n`, ``(C, D')``, for t ``(C, N)``, weights ``(N,)``."""
    return _native.adjoint(_sums(table, weights, t.shape[0], False), t.contiguous())


def _sums(table: Table, weights: Tensor | None, c: int, exponential: bool) -> _native.LinearModel:
    """Return what plain sums over examples need: no penalty, a scale of one."""
    given = table.x, table.center, table.factor, table.intercept, weights
    return _native.LinearModel(*given, None, None, c, 1.0, exponential, table.in_place)


def has_compiled_hessians(n_columns: int, n_outputs: int) -> bool:
    """Return whether compiled code makes Hessians of so many columns and several outputs."""
    return n_columns + n_outputs <= _OUTPUTS_AND_COLUMNS


def suits_compiled(n_columns: int, n_outputs: int) -> bool:
    """Return whether compiled code is the faster way with dense tables of so many columns and outputs."""
    return n_outputs <= _IN_PLACE_OUTPUTS or has_compiled_hessians(n_columns, n_outputs)


def table_of(design: Design, n_outputs: int) -> Table | None:
    """Return the rows of a design as compiled code reads them, or None where it cannot or is not the faster one."""
    if not _native.is_available():
        return None
    d, small = design.n_columns, design.n_rows * design.n_columns <= _CACHED
    has_hessians = has_compiled_hessians(d, n_outputs) and (n_outputs > 1 or d <= _ONE_OUTPUT_COLUMNS or small)
    many = n_outputs <= _IN_PLACE_OUTPUTS and d > (_IN_PLACE_COLUMNS if n_outputs <= 2 else _SEVERAL_COLUMNS)
    if isinstance(design, DenseDesign) and design.is_raw and design.x.numel():  # nothing has no address
        in_place = many and design.sums_keep_digits
        factor = design.scale.reciprocal()
        if (has_hessians or in_place) and float(factor.max()) < math.inf:  # not for columns below 1e-308
            return Table(design.x, design.center, factor, design.intercept, in_place, has_hessians)
    whole = design.whole() if has_hessians else None
    return None if whole is None else Table(whole)
