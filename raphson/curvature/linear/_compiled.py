r"""Softmax, logistic and Poisson models in compiled code: value and gradient in one call, the Hessian in another.

Through PyTorch an evaluation is some twenty calls and a dense Hessian another ten, each of two to six microseconds
whatever it does, and between the calls every intermediate travels through the cache. ``_kernel.c`` makes the same
numbers 256 examples at a time: linear predictors, probabilities, products of features and entries of the output
Hessians are made and consumed in the cache, sums are held in registers. Where it was not built (no compiler at
installation), or the model is not of this kind, everything goes through PyTorch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

try:
    from raphson.curvature.linear import _kernel
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
class CompiledFamily:
    r"""The penalized objective of a linear model in the natural parameter of an exponential family.

    .. math:: L(B) = s \sum_n w_n A(B x_n) - \langle T, B \rangle
        + \tfrac12 \langle B, Q B\, \mathrm{diag}(\lambda) \rangle

    The log-partition function A is :math:`\log \sum_k e^{f_k}`, or :math:`e^f` of one output. All tensors are
    contiguous and in double precision.

    Attributes:
        x: Features with the ones, ``(D', N)``.
        weights: ``(N,)`` or None for 1 each.
        linear: T, the targets' linear term, ``(C_free, D')``.
        reference: Whether one more output, the last one, is zero.
        penalty_outputs: Q, ``(C_free, C_free)``.
        penalty_columns: The penalties per column, ``(D',)``.
        scale: s, one over the total weight W, times the likelihood's multiple of A.
        exponential: Whether A is the exponential.
    """

    x: Tensor
    weights: Tensor | None
    linear: Tensor
    reference: bool
    penalty_outputs: Tensor
    penalty_columns: Tensor
    scale: float
    exponential: bool

    @cached_property
    def _model(self) -> tuple[int, int, int, int, int, int | None, int, int, float, bool]:
        (d, n), c = self.x.shape, self.linear.shape[0]
        weights = None if self.weights is None else self.weights.data_ptr()
        outputs, columns = self.penalty_outputs.data_ptr(), self.penalty_columns.data_ptr()
        return n, d, c, n, self.x.data_ptr(), weights, outputs, columns, self.scale, self.exponential

    def model(self, multiplications: float) -> tuple[int, int, int, int, int, int | None, int, int, float, bool, int]:
        """Return what every compiled function takes first, the number of threads last."""
        return *self._model, _threads(multiplications)

    @cached_property
    def single_x(self) -> Tensor:
        """The features in single precision."""
        return self.x.float()

    @property
    def multiplications(self) -> float:
        """Those of an evaluation."""
        return 2.0 * self.x.numel() * self.linear.shape[0]

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor, CompiledHessian]:
        """Return value, gradient ``(p,)`` and Hessian at the coefficients ``theta`` ``(p,)``."""
        coef = theta.double().contiguous()
        gradient = torch.empty_like(coef)
        p = self.x.new_empty(self.linear.shape[0] + self.reference, self.x.shape[1])
        at = coef.data_ptr(), self.linear.data_ptr(), self.reference
        value = _kernel.evaluate(*self.model(self.multiplications), *at, gradient.data_ptr(), p.data_ptr())
        return value, gradient, CompiledHessian(self, p)


@dataclass(frozen=True, eq=False)
class CompiledHessian:
    """The Hessian where the gradient of the log-partition function, probabilities or means, is ``p``, ``(C, N)``."""

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
        d, n = self.objective.x.shape
        model = self.objective.model(n * pairs.number * d * (d + 1) / 2)
        _kernel.hessian(*model, self.p.data_ptr(), *pairs[1:], blocks, single, out.data_ptr())
        return out

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v``, ``(C_free D',)``, in single or double precision as ``v`` is."""
        v, out = v.contiguous(), torch.empty_like(v)
        single = v.dtype == torch.float32
        x, p = (self.objective.single_x, self._single_p) if single else (self.objective.x, self.p)
        model = self.objective.model(self.objective.multiplications)
        _kernel.product(*model, x.data_ptr(), p.data_ptr(), v.data_ptr(), single, out.data_ptr())
        return out

    @cached_property
    def _single_p(self) -> Tensor:
        return without_subnormals(self.p.float())


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
    model = n, d, 1, x.stride(0), x.data_ptr(), None, None, None, 1.0, True, _threads(n * q * d * (d + 1) / 2)
    _kernel.hessian(*model, given.data_ptr(), *_own_pairs(q)[1:], True, False, out.data_ptr())
    return out


def is_compiled(n_columns: int, n_outputs: int) -> bool:
    """Return whether compiled code was built and is the faster one for a model of this width."""
    return _kernel is not None and n_columns + n_outputs <= _OUTPUTS_AND_COLUMNS
