"""What a linear model's evaluation and its dense Hessian cost, from the shapes alone.

Operations and memory traffic are both counted as time on one ordinary machine; what matters is their ratio.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from raphson.likelihoods import Likelihood
from raphson.linear._output_map import OutputMap

_CALLS, _COMPILED_CALLS = 2e5, 3e4
"""Nanoseconds of the calls around an evaluation, whatever the size: PyTorch's, or one of compiled code."""

_FREE = 6e4
"""A dense Hessian below so many nanoseconds costs no more than what reusing an old one does."""

_EXPONENTIAL, _SPECIAL = 3.0, 60.0
"""Nanoseconds of an output's part in the loss of a row: an exponential, or gamma functions among others."""

_IN_PLACE, _IN_PLACE_OUTPUT = 0.1, 0.16
"""Nanoseconds of an entry of a table that is evaluated in place, and more for each output: 0.26 for 200 x 5000 and one,
0.52 for 1000 x 300 and three, 1.7 for 5000 x 2000 and ten. Matrix products: 0.7 and 0.04 and more."""

_NONZERO, _NONZERO_OUTPUT, _SUM = 0.8, 0.2, 1.8
"""Nanoseconds of a nonzero of a sparse table that compiled code evaluates, more for each output, and of every sum: 0.94
a nonzero for 500 x 2000 with 50,000 and one output, 1.4 with three, 3.0 with ten, 14 with 50."""

_STEP, _STEP_PARAMETER = 5e4, 20.0
"""Nanoseconds of a step of L-BFGS beside its evaluation, and of each parameter in ten pairs, which are read twice:
50 us for 300 parameters, 70 for 2001, 200 for 7001."""

_COMPILED_STEP, _COMPILED_STEP_PARAMETER, _CACHED_PARAMETERS = 1.5e4, 8.0, 6000
"""The same of a step that is one compiled call, and parameters up to which pairs stay in the second-level cache: 20 us
for 300 parameters, 2.3 ms for 98,000."""

_ROW_CALLS = 2e6
"""Nanoseconds of the calls of a fit in the span of 60 rows that goes on from one by gradients."""

_PASSES = 40.0
"""Evaluations and Hessian products that a fit takes, about."""


class Cost(NamedTuple):
    """Nanoseconds.

    Attributes:
        evaluation: Value and gradient: streams the columns, multiplies twice, takes each output's part in the loss.
        dense: A dense Hessian, which makes and multiplies pairs of outputs and of columns, and its factorization.
        product: A Hessian product.
        step: A step of L-BFGS with its evaluation.
        calls: What there is in an evaluation and in a dense Hessian whatever the size.
    """

    evaluation: float
    dense: float
    product: float
    step: float
    calls: float

    @classmethod
    def of(
        cls,
        output_map: OutputMap,
        n: int,
        likelihood: Likelihood,
        element: torch.dtype,
        *,
        in_place: bool = False,
        nonzeros: int | None = None,
        one_call: bool = False,
    ) -> Cost:
        """Count for ``n`` rows, for tables evaluated in place, dense or sparse, and steps that are one call."""
        c, d, q, p = output_map.n_outputs, output_map.n_columns, output_map.basis.shape[1], output_map.n_parameters
        each = _SPECIAL if likelihood.partition is None else _EXPONENTIAL
        calls = _CALLS if likelihood.partition is None else _COMPILED_CALLS
        passed = dense_pass(n * d, q, in_place=in_place) if nonzeros is None else sparse_pass(nonzeros, d, q)
        evaluation = passed + n * each * c + calls
        width = 2.0 if element == torch.float64 else 1.0
        if output_map.is_uniform:
            pairs, products = q * (q + 1) / 2, d * (d + 1) / 2
            half = pairs * products / 90 + 0.4 * (pairs + products)
            stacked = pairs * d * d / 90 + 0.5 * pairs * d
            rows = min(half, stacked)
        else:
            sizes = output_map.shapes
            work = sum(r * (r + 1) / 2 * w * w for r, w in sizes)
            work += sum(a[0] * b[0] * a[1] * b[1] for i, a in enumerate(sizes) for b in sizes[i + 1 :])
            rows = work / 90 + 0.5 * (c * c + d)
        product = n * (0.3 * d + 0.02 * q * d + 2.0 * q) + 1e5
        product = product if nonzeros is None else min(product, evaluation)
        step = evaluation + _STEP + _STEP_PARAMETER * c * d
        if one_call:
            each = _COMPILED_STEP_PARAMETER if c * d <= _CACHED_PARAMETERS else _STEP_PARAMETER
            step = evaluation - calls + _COMPILED_STEP + each * c * d
        return cls(evaluation, width * (n * rows + p**3 / 150), product, step, calls)

    @property
    def dense_in_evaluations(self) -> float:
        """Cost of a dense Hessian and its factorization in evaluations; zero where reusing an old one is no cheaper."""
        return 0.0 if self.dense < _FREE else (self.dense + self.calls) / self.evaluation


class RowCost(NamedTuple):
    """Nanoseconds of a fit in the span of the rows and of one in all columns.

    Attributes:
        basis: The products of all rows and their factor.
        passed: An evaluation, or a Hessian product, with all columns, calls aside.
        rotated: One with the coordinates of the rows, at best.
        evaluated: One read as the table is.
    """

    basis: float
    passed: float
    rotated: float
    evaluated: float

    @classmethod
    def of(cls, n: int, n_groups: int, q: int, passed: float, pairs: float, *, sparse: bool, in_place: bool) -> RowCost:
        """Return the costs for N rows, ``n_groups`` groups of columns in their span, and products of q outputs.

        A pass over the table takes ``passed``; the products of all rows are made of ``pairs`` of its entries.
        """
        square = n_groups * float(n) * n
        return cls(
            basis=pairs * (2.0 if sparse else 1 / 40) + square * n / 100,
            passed=passed,
            rotated=square * (0.2 + 0.03 * q),
            evaluated=square * _entry(q, in_place=in_place),
        )

    @property
    def gain(self) -> float:
        """What a fit in the span of the rows saves, negative where it does not pay."""
        return _PASSES * (self.passed - self.rotated) - self.basis

    @property
    def fit(self) -> float:
        """A fit in the span of the rows: its basis, two passes over all columns, and its own evaluations and calls."""
        return self.basis + 2.0 * self.passed + _PASSES * self.evaluated + _ROW_CALLS


def dense_pass(entries: float, q: int, *, in_place: bool) -> float:
    """Return the nanoseconds of a pass over so many entries of a dense table with q outputs."""
    return entries * _entry(q, in_place=in_place)


def sparse_pass(nonzeros: float, d: int, q: int, *, compiled: bool = True) -> float:
    """Return the nanoseconds of a pass over a sparse table of d columns, in compiled code or by sparse products."""
    if not compiled:
        return nonzeros * (1.0 + 0.5 * q)
    return nonzeros * (_NONZERO + _NONZERO_OUTPUT * q) + _SUM * d * q


def _entry(q: int, *, in_place: bool) -> float:
    """Return the nanoseconds of an entry of a dense table in an evaluation of q outputs."""
    return _IN_PLACE + _IN_PLACE_OUTPUT * q if in_place else 0.7 + 0.04 * q
