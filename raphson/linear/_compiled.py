r"""Softmax, logistic and Poisson models in compiled code: value and gradient in one call, the Hessian in another.

Through PyTorch an evaluation is some twenty calls and a dense Hessian another ten, each of two to six microseconds
whatever it does, and between the calls every intermediate travels through the cache. ``raphson._native`` makes the
same numbers 256 examples at a time: linear predictors, probabilities, products of features and entries of the output
Hessians are made and consumed in the cache, sums are held in registers. A sparse table is read as it is: the nonzeros
of 256 rows serve the predictors and, while they are in the cache, the gradient. Where it was not built (no compiler at
installation), or the model is not of this kind, everything goes through PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson import _native
from raphson.data import DenseDesign, Design, SparseDesign

_OUTPUTS_AND_COLUMNS = 128
"""Outputs and columns together up to which 256 examples stay in the cache; beyond, matrix products are faster."""

_ONE_OUTPUT_COLUMNS, _CACHED = 48, 2**18
"""Columns above which the Hessian of a single output is left to matrix products, unless the table has few entries.

5000 x 60: 1.0 ms, beside 1.75 in compiled code; 1000 x 120: 1.0, beside 0.7."""

_IN_PLACE_COLUMNS, _COLUMNS_EACH = 24, 10
"""Columns from which evaluations read rows in place: of one or two outputs, and for each output of more.

Microseconds in place, turned into columns, and by matrix products with a standardized copy: 5000 x 20, one output, 89,
86, 76; 5000 x 40, 94, 148, 103; two, 120, 148, 163; 5000 x 120, three, 330, 360, 515; 1000 x 300, 156, 183, 266; 5000 x
2000, ten, 17300, 26000, 47900. In place and turned, with AVX-512: 5000 x 35, three, 75, 75; four, 87, 81;
5000 x 50, three, 89, 99; six, 148, 147; ten, 226, 199; 5000 x 90, three, 119, 162; ten, 318, 326."""

_IN_PLACE_OUTPUTS = 16
"""Outputs above which matrix products are faster: 300 x 2000, 49 outputs: 8.3 ms in place, 3.6 by them."""

_CACHED_SUMS, _SINGLE_WORK = 2**17, 2**23
"""Outputs times columns whose sums stay in the cache, and nonzeros times outputs from which single precision pays for
its copy of the table: a sparse table of more of both is left to sparse products, which lead in single precision.

Milliseconds compiled, by products in double and in single precision: 500 x 2000, two classes, 0.05, 0.11, 0.12; 50,
0.7, 1.2, 0.9; 50000 x 300, ten, 2.8, 7.6, 4.5; 50, 9.7, 31, 18; but 5000 x 7000, ten, 5.8, 7.2, 5.6; 50, 26, 21, 14.
Fits of ten, compiled, took 76, 186 and 73 ms, others 98, 170 and 97, and half of the memory."""

_DENSE_ENTRIES = 2**23
"""Entries up to which a sparse table has Hessians in compiled code, of a dense copy (64 MB) that is made for them.

50000 x 50, 50 classes, l2 = 1e-6: 380 ms, 900 by sparse products."""

PAIRS = 10
"""Pairs of steps and changes of the gradient that L-BFGS holds in compiled code."""

_SMALLEST = 2.0**-60
"""Entries below this are zero in single precision: products of two of them stay normal numbers."""


@dataclass(frozen=True, eq=False)
class Table:
    """Features in double precision: standardized columns, or the rows as given, standardized as they are read.

    Attributes:
        x: ``(D', N)`` with the ones; or where there are factors ``(N, D)`` without them, each row contiguous. Of a
            sparse table its nonzeros.
        center: Subtracted from the columns, ``(D,)``, or None.
        factor: By which they are then multiplied, ``(D,)``, or None.
        intercept: Whether a column of ones comes before the rows as given.
        in_place: Whether evaluations read them in place.
        has_hessians: Whether Hessians are made in compiled code, too.
        starts: Where the rows of a sparse table begin among its nonzeros, ``(N + 1,)``, or None.
        columns: Those of the nonzeros, or None.
        design: Of a sparse table, whose dense rows are what Hessians are made of; or None.
        is_large: Whether it is a sparse one so large that sparse products in single precision lead, so that only single
            evaluations in double precision are made of it, which need no copies.
    """

    x: Tensor
    center: Tensor | None = None
    factor: Tensor | None = None
    intercept: bool = False
    in_place: bool = False
    has_hessians: bool = True
    starts: Tensor | None = None
    columns: Tensor | None = None
    design: SparseDesign | None = None
    is_large: bool = False

    def has_products(self, n_outputs: int) -> bool:
        """Return whether products with the Hessian are made in compiled code; those of many outputs leave the cache."""
        few = self.starts is not None and n_outputs <= _IN_PLACE_OUTPUTS
        return self.has_hessians or (few and not self.is_large)

    @property
    def for_hessians(self) -> Table:
        """The table of which Hessians are made, dense."""
        return self if self._dense is None else self._dense

    @cached_property
    def _dense(self) -> Table | None:
        if self.design is None:  # not this table itself, which would then wait for the garbage collector
            return None
        return Table(self.design.dense_rows, self.center, self.factor, self.intercept)

    def rows(self, rows: slice) -> Table:
        """Return some of the rows."""
        if self.starts is not None:
            return replace(self, starts=self.starts[rows.start : rows.stop + 1])
        return replace(self, x=self.x[:, rows] if self.factor is None else self.x[rows])

    def model(
        self,
        weights: Tensor | None,
        n_outputs: int,
        exponential: bool,
        scale: float = 1.0,
        penalty_outputs: Tensor | None = None,
        penalty_columns: Tensor | None = None,
    ) -> _native.LinearModel:
        """Return what compiled functions take first; plain sums over examples need no scale and no penalty."""
        given = self.x, self.center, self.factor, self.intercept, weights, penalty_outputs, penalty_columns
        return _native.LinearModel(
            *given, n_outputs, scale, exponential, self.in_place, starts=self.starts, columns=self.columns
        )

    @cached_property
    def single(self) -> Tensor:
        """Standardized columns in single precision, ``(D', N)``."""
        if self.factor is None:
            return self.x.float()
        assert self.center is not None
        columns = ((self.x - self.center) * self.factor).mT.float()
        ones = torch.ones(int(self.intercept), len(self.x), dtype=torch.float32)
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
        penalty_outputs: a and b, of which Q is :math:`a I + b 1 1^T`.
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
        """What compiled functions take first that make Hessians."""
        return self._of(self.table.for_hessians)

    @cached_property
    def read(self) -> _native.LinearModel:
        """What those take first that read the table as it is."""
        return self._of(self.table)

    def _of(self, table: Table) -> _native.LinearModel:
        return table.model(
            self.weights, self.linear.shape[0], self.exponential, self.scale, self.penalty_outputs, self.penalty_columns
        )

    def at(self, theta: Tensor, kept: torch.dtype | None, copy: Tensor | None = None) -> _native.Point:
        """Evaluate at coefficients ``(p,)``; see ``Evaluator.at``."""
        if not self.negative:
            return self.evaluator.at(theta, kept, copy)
        point = self.evaluator.at(theta.neg(), kept)
        return point._replace(gradient=point.gradient.neg_())

    def in_single(self, copy: Tensor) -> CompiledFamily:
        """Return the same for evaluations of standardized rows in single precision, ``(N, D)``, read in place."""
        d = copy.shape[1]
        zeros, ones = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
        return replace(self, table=Table(copy, zeros, ones, self.table.intercept, True, False))

    @cached_property
    def evaluator(self) -> _native.Evaluator:
        """What evaluates it."""
        return _native.Evaluator(self.read, self.linear, self.reference, self.units)


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
        return _native.hessian(self.objective.model, self._double_p, out, own=own)

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v``, ``(C_free D',)``, in single or double precision as ``v`` is."""
        objective = self.objective
        if not objective.table.has_hessians:
            return _native.product(objective.read, None, self._double_p, v.double()).to(v.dtype)
        single = v.dtype == torch.float32
        x, p = (objective.table.for_hessians.single, self._single_p) if single else (None, self._double_p)
        return _native.product(objective.model, x, p, v)

    @cached_property
    def _double_p(self) -> Tensor:
        return self.p.double()

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
    return _native.hessian(Table(x).model(None, 1, True), entries.contiguous(), out, own=True)


def adjoint(table: Table, weights: Tensor | None, t: Tensor) -> Tensor:
    r"""Return :math:`\sum_n w_n\, t_n \otimes \hat x_n`, ``(C, D')``, for t ``(C, N)``, weights ``(N,)``."""
    return _native.adjoint(table.model(weights, t.shape[0], False), t.contiguous())


def has_compiled_hessians(n_columns: int, n_outputs: int) -> bool:
    """Return whether compiled code makes Hessians of so many columns and several outputs."""
    return n_columns + n_outputs <= _OUTPUTS_AND_COLUMNS


def suits_compiled(n_columns: int, n_outputs: int) -> bool:
    """Return whether compiled code is the faster way with dense tables of so many columns and outputs."""
    return n_outputs <= _IN_PLACE_OUTPUTS or has_compiled_hessians(n_columns, n_outputs)


def has_compiled_steps(p: int) -> bool:
    """Return whether compiled code makes steps of L-BFGS of so many parameters, and is the faster one."""
    return _native.has_pairs(p, PAIRS)


def is_large_sparse(design: Design, n_outputs: int) -> bool:
    """Return whether a table is a sparse one of so many nonzeros that single precision pays."""
    return isinstance(design, SparseDesign) and n_outputs * len(design.x.data) >= _SINGLE_WORK


def table_of(design: Design, n_outputs: int) -> Table | None:
    """Return the rows of a design as compiled code reads them, or None where it cannot or is not the faster one."""
    if not _native.is_available():
        return None
    d, small = design.n_columns, design.n_rows * design.n_columns <= _CACHED
    has_hessians = has_compiled_hessians(d, n_outputs) and (n_outputs > 1 or d <= _ONE_OUTPUT_COLUMNS or small)
    if isinstance(design, SparseDesign):
        return _sparse_table(design, n_outputs, has_hessians=has_hessians and design.n_rows * d <= _DENSE_ENTRIES)
    many = n_outputs <= _IN_PLACE_OUTPUTS and d > (_IN_PLACE_COLUMNS if n_outputs <= 2 else _COLUMNS_EACH * n_outputs)
    if isinstance(design, DenseDesign) and design.is_raw and design.x.numel():  # nothing has no address
        in_place = many and design.sums_keep_digits
        factor = design.scale.reciprocal()
        if (has_hessians or in_place) and float(factor.max()) < math.inf:  # not for columns below 1e-308
            return Table(design.x, design.center, factor, design.intercept, in_place, has_hessians)
    whole = design.whole() if has_hessians else None
    return None if whole is None else Table(whole)


def _sparse_table(design: SparseDesign, n_outputs: int, *, has_hessians: bool) -> Table | None:
    large = n_outputs * design.n_columns > _CACHED_SUMS and is_large_sparse(design, n_outputs)
    if design.raw is None:
        return None
    starts, columns, values = design.raw
    given = design.center, design.factor, design.intercept
    return Table(values, *given, True, has_hessians and not large, starts, columns, design, large)
