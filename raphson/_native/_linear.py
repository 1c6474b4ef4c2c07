"""Sums over the examples of a linear model, as thin calls: tensors are checked and handed to the compiled module."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raphson._native import _module
from raphson._native._module import Memory, memory, own

_PART = 2.0**19
"""Multiplications that are worth a thread of their own (measured: starting one takes some ten microseconds)."""

_SCATTERED = 8
"""Multiplications that a nonzero of a sparse table takes the time of, at least: its column's numbers lie anywhere."""

_NO_EVALUATION = None, None, False, None, None
"""For the linear term, units, reference, probabilities and copy of an evaluation."""


@dataclass(frozen=True, eq=False)
class LinearModel:
    r"""What sums over examples need: features, weights, penalty. All tensors but a table are in double precision.

    Attributes:
        x: Standardized columns with the ones, ``(D', N)``; or where there are factors the rows as given, ``(N, D)``
            without the ones. Each row is contiguous, rows may be apart. Of a sparse table its nonzeros. In single
            precision it serves evaluations in place, of 32 columns and more.
        center: Subtracted from the columns of rows as given, ``(D,)``, or None.
        factor: By which they are then multiplied, ``(D,)``, or None.
        intercept: Whether a column of ones comes before the rows as given.
        weights: ``(N,)`` or None for 1 each.
        penalty_outputs: a and b, ``(2,)``: the penalty's matrix over outputs is :math:`a I + b 1 1^T`. Or None.
        penalty_columns: ``(D',)``, or None.
        n_outputs: C, the outputs with coefficients.
        scale: Multiplies sums over examples.
        exponential: Whether the log-partition function is the exponential of one output, not the log-sum-exp.
        in_place: Whether evaluations read rows as given in place and standardize coefficients and sums, which loses
            digits where means are large; else rows are standardized as they are read. Sparse tables always are.
        starts: Where the rows of a sparse table begin among its nonzeros, ``(N + 1,)`` int64; None for a dense one.
        columns: Those of the nonzeros, int32.
    """

    x: Tensor
    center: Tensor | None
    factor: Tensor | None
    intercept: bool
    weights: Tensor | None
    penalty_outputs: Tensor | None
    penalty_columns: Tensor | None
    n_outputs: int
    scale: float
    exponential: bool
    in_place: bool = False
    starts: Tensor | None = None
    columns: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the table.

        Raises:
            ValueError: If it has another element type or strides, or centers without factors.
        """
        x = self.x
        kind = torch.float32 if self.is_single else torch.float64
        fits = x.ndim == (2 if self.starts is None else 1) and x.dtype == kind and x.is_cpu
        if not fits or (x.shape[-1] > 1 and x.stride(-1) != 1):
            raise ValueError(
                f"'x' is a tensor {tuple(x.shape)} of {x.dtype} with strides {x.stride()} on {x.device}; compiled code "
                "needs a matrix of torch.float64 on the processor, each row contiguous."
            )
        if (self.center is None) != (self.factor is None) or (self.factor is None and self.starts is not None):
            raise ValueError("Rows as given are standardized by 'center' and 'factor' together.")

    @property
    def is_single(self) -> bool:
        """Whether the table is in single precision, and so are evaluations."""
        return self.in_place and self.starts is None and self.x.dtype == torch.float32

    @cached_property
    def n(self) -> int:
        """Number of rows, N."""
        if self.starts is not None:
            return self.starts.shape[0] - 1
        return self.x.shape[1 if self.factor is None else 0]

    @cached_property
    def d(self) -> int:
        """Number of columns, D'."""
        if self.factor is None:
            return self.x.shape[0]
        return (self.x.shape[1] if self.starts is None else self.factor.shape[0]) + self.intercept

    @cached_property
    def arguments(self) -> tuple[object, ...]:
        """What compiled functions take first; see ``take_model`` in ``module.c``."""
        x, c = self.x, self.n_outputs
        width = self.d - (self.intercept if self.factor is not None else 0)
        # all that lies from its first element on, so that C can tell whether the rows it reads are there
        extent = x.untyped_storage().nbytes() // x.itemsize - x.storage_offset() if x.numel() else 0
        extent = extent if self.starts is None else x.shape[0]

        def optional(
            name: str, tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float64
        ) -> Memory | None:
            return None if tensor is None else memory(name, tensor, *shape, dtype=dtype)

        return (
            self.n,
            width,
            x.stride(0),
            optional("factor", self.factor, width),
            optional("center", self.center, width),
            optional("starts", self.starts, self.n + 1, dtype=torch.int64),
            optional("columns", self.columns, len(x), dtype=torch.int32),
            (x.data_ptr(), extent, "f" if self.is_single else "d"),
            self.intercept,
            self.in_place,
            optional("weights", self.weights, self.n),
            c,
            optional("penalty_outputs", self.penalty_outputs, 2),
            optional("penalty_columns", self.penalty_columns, self.d),
            self.exponential,
            self.scale,
        )

    @property
    def evaluation_size(self) -> float:
        """Multiplications of an evaluation, an exponential counted as twenty."""
        return 2.0 * self.adjoint_size + 20.0 * self.n * (self.n_outputs + 1)

    @property
    def adjoint_size(self) -> float:
        """Multiplications of a sum of numbers times the features."""
        if self.starts is None:
            return float(self.n * self.d) * self.n_outputs
        return float(len(self.x)) * max(self.n_outputs, _SCATTERED)


class Point(NamedTuple):
    """The penalized objective at one point.

    Attributes:
        value: The objective.
        gradient: Its gradient, ``(C D',)``.
        norm: The gradient's largest entry in the units given, or zero.
        p: Probabilities or means, ``(C + reference, N)``, or None.
    """

    value: float
    gradient: Tensor
    norm: float
    p: Tensor | None


@dataclass(frozen=True, eq=False)
class Evaluator:
    r"""Evaluates a penalized objective.

    Attributes:
        model: The model, with a penalty.
        linear: The targets' linear term, ``(C, D')``.
        reference: Whether one more output, the last one, is zero.
        units: A gradient g ``(C, D')`` has the size :math:`|u_{1j} g_{cj} + u_{2j} g_{c1}| - u_{3j}`, ``(3, D')``.
    """

    model: LinearModel
    linear: Tensor
    reference: bool
    units: Tensor

    @cached_property
    def constants(self) -> tuple[int, tuple[int, int], int, Memory, Memory]:
        """Coefficients, shape of the probabilities, threads, linear term, units: worked out once, not at every step."""
        model, d = self.model, self.model.d
        linear, units = memory("linear", self.linear, model.n_outputs, d), memory("units", self.units, 3, d)
        threads = _module.threads(model.evaluation_size, _PART)
        return model.n_outputs * d, (model.n_outputs + self.reference, model.n), threads, linear, units

    def at(self, coef: Tensor, kept: torch.dtype | None, copy: Tensor | None = None) -> Point:
        """Return the objective at coefficients ``(C D',)`` of the table's element type.

        ``kept`` is the element type of the probabilities, None for none; ``copy`` is where the standardized rows of a
        table read in place go, ``(N, D)`` in single precision, or None.
        """
        size, shape, threads, linear, units = self.constants
        gradient = torch.empty(size, dtype=torch.float32 if self.model.is_single else torch.float64)
        p = None if kept is None else torch.empty(shape, dtype=kept)
        value, norm = _module.compiled().sums(
            self.model.arguments,
            threads,
            own(gradient),
            memory("coef", coef, size, dtype=gradient.dtype),
            None,
            None,
            linear,
            units,
            self.reference,
            None if p is None else memory("p", p, *shape, dtype=p.dtype),
            None if copy is None else memory("copy", copy, *self.model.x.shape, dtype=torch.float32),
        )
        return Point(value, gradient, norm, p)


def hessian(model: LinearModel, p: Tensor, out: Tensor, *, own: bool) -> Tensor:
    """Return ``out`` with sums of entries of output Hessians times products of two features.

    ``p`` are probabilities ``(C + reference, N)``, of which the entries are ``diag p - p p^T``, or where the model is
    exponential the entries themselves ``(q, N)``, in double precision. The sums, in single or double precision, are
    each output's own, ``(q, D', D')``, or those of every pair, the Hessian ``(C D', C D')``.
    """
    c, d = model.n_outputs, model.d
    q = c * (c + 1) // 2 if not own else p.shape[0] if model.exponential else c
    _module.compiled().hessian(
        model.arguments,
        _module.threads(model.n * q * d * (d + 1) / 2, _PART),
        memory("p", p, p.shape[0], model.n),
        own,
        memory("out", out, *((q, d, d) if own else (c * d, c * d)), dtype=out.dtype),
    )
    return out


def product(model: LinearModel, x: Tensor | None, p: Tensor, v: Tensor) -> Tensor:
    """Return the product of the Hessian with a vector; the Hessian is not formed.

    Args:
        model: The model, with a penalty.
        x: Standardized columns ``(D', N)`` of the vector's element type; None to read the model's table.
        p: Probabilities or means ``(C + reference, N)`` of that type.
        v: ``(C D',)`` in single or double precision.

    Returns:
        ``(C D',)``.
    """
    v, size, dtype = v.contiguous(), model.n_outputs * model.d, v.dtype
    out = torch.empty_like(v)
    _module.compiled().sums(
        model.arguments,
        _module.threads(model.evaluation_size, _PART),
        memory("out", out, size, dtype=dtype),
        memory("v", v, size, dtype=dtype),
        memory("p", p, p.shape[0], model.n, dtype=dtype),
        None if x is None else memory("x", x, model.d, model.n, dtype=dtype),
        *_NO_EVALUATION,
    )
    return out


def adjoint(model: LinearModel, t: Tensor) -> Tensor:
    r"""Return :math:`s \sum_n w_n\, t_n \otimes \hat x_n`, ``(C, D')``, for numbers t ``(C, N)``."""
    out = torch.empty(model.n_outputs, model.d, dtype=torch.float64)
    _module.compiled().sums(
        model.arguments,
        _module.threads(model.adjoint_size, _PART),
        memory("out", out, *out.shape),
        None,
        memory("t", t, model.n_outputs, model.n),
        None,
        *_NO_EVALUATION,
    )
    return out
