r"""Estimates in which each random vector is tried on what the others leave over (Epperly, Tropp and Webber 2024).

From products :math:`Y = A \Omega` with k random vectors and a basis :math:`Q R = Y`, the range of Y without its i-th
column has the projector :math:`Q (I - s_i s_i^\top) Q^\top`, where :math:`s_i` is the i-th column of
:math:`R^{-\top}` at length one: no second factorization is needed. Every estimate is exact on that range, and samples
with :math:`\omega_i`, which is independent of it, what is outside.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raphson.linalg._estimate import multiply, random_columns
from raphson.linalg._operator import LinearOperator


class LeaveOneOut(NamedTuple):
    """A sketch of a square operator ``A`` and what it is without each of its vectors.

    Attributes:
        vectors: Random vectors, ``(n, k)``.
        basis: ``Q``, orthonormal, ``(n, k)``.
        triangle: ``R``, ``(k, k)``, with ``Q R = A Omega``.
        left_out: ``s``, ``(k, k)`` by column: what leaves the range when a vector does.
        products: ``A Q``, which a trace takes, or ``A^T Q``, which a diagonal takes, ``(n, k)``.
    """

    vectors: Tensor
    basis: Tensor
    triangle: Tensor
    left_out: Tensor
    products: Tensor

    @classmethod
    def of(
        cls, operator: LinearOperator, k: int, generator: torch.Generator | None, kind: Literal["signs", "normal"]
    ) -> LeaveOneOut:
        """Return the sketch by ``k`` vectors, ``k < n``, at the price of ``2 k`` products: normal for traces."""
        vectors = random_columns(operator, k, generator, kind)
        basis, triangle = torch.linalg.qr(multiply(operator, vectors))
        regular = triangle.clone()
        # of an operator of lower rank than k: any direction of no product will do, and this picks one
        pivots = regular.diagonal()
        floor = torch.finfo(pivots.dtype).eps * pivots.abs().max() + torch.finfo(pivots.dtype).tiny
        pivots.copy_(torch.where(pivots.abs() > floor, pivots, floor))
        eye = torch.eye(k, dtype=pivots.dtype, device=pivots.device)
        inverse = torch.linalg.solve_triangular(regular.mT, eye, upper=False)
        inverse = inverse / inverse.abs().amax(0)
        left_out = inverse / inverse.norm(dim=0)
        return cls(vectors, basis, triangle, left_out, multiply(operator, basis, transposed=kind == "signs"))

    def traces(self) -> Tensor:
        r"""Return the k unbiased estimates of the trace, ``(k,)``.

        :math:`\operatorname{tr} Q_i^\top A Q_i` plus the quadratic form of what of :math:`\omega_i` is outside
        :math:`Q_i`, scaled to its expected length. The vectors must be normal.
        """
        n, k = self.vectors.shape
        s, r = self.left_out, self.triangle
        h = self.basis.mT @ self.products
        w, t = self.basis.mT @ self.vectors, self.products.mT @ self.vectors
        x = w - s * _dot(s, w)
        inside = h.trace() - _dot(s, h @ s)
        outside = _dot(w - x, r) - _dot(t, x) + _dot(x, h @ x)
        length = (self.vectors.square().sum(0) - x.square().sum(0)).clamp_min(torch.finfo(x.dtype).tiny)
        return inside + outside * ((n - k + 1) / length)

    def diagonals(self) -> tuple[Tensor, Tensor]:
        r"""Return the mean of the k unbiased estimates of the diagonal and its standard error, ``(n,)`` each.

        :math:`\operatorname{diag}(Q_i Q_i^\top A) + \omega_i \odot (I - Q_i Q_i^\top) A \omega_i`, for signs.
        """
        outer, inner = self.basis @ self.left_out, self.products @ self.left_out
        own = _dot(self.left_out, self.triangle)
        known = (self.basis * self.products).sum(1)
        change = outer * (self.vectors * own - inner)
        return known + change.mean(1), shared_error(change)


def shared_error(samples: Tensor) -> Tensor:
    r"""Return the standard error of the mean of leave-one-out samples ``(..., k)``.

    Samples share their vectors. Each has mean zero given all vectors but its own, so in the decomposition of Hoeffding
    it consists of functions of sets of vectors with its own among them; a function of two vectors appears in two
    samples, and the variance of the mean is at most twice that of independent samples as long as pairs lead. Measured
    on nine spectra with 3 to 15 vectors, the error is 1.0 to 1.4 times that of independent samples (1.65 where the rank
    is just above k), and 95% intervals with ``degrees_of_freedom(k)`` cover 0.92 to 1.0, mostly 0.97. The jackknife
    over estimates without one vector, never too small in expectation (Efron and Stein 1981), covers 0.96 to 1.0 and is
    twice as wide.
    """
    error: Tensor = samples.std(-1) * (2 / samples.shape[-1]) ** 0.5
    return error


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)
