r"""The likelihood times Jeffreys' prior: finite estimates where maximum likelihood has none (Firth 1993).

With the expected information :math:`I(\theta) = \sum_n w_n J_n^T F_n J_n` of the free parameters, :math:`F_n` (C x C)
being the row's in output space, what is maximized is :math:`\log L + \frac12 \log\det I`. With the leverages
:math:`M_n = J_n I^{-1} J_n^T` (C x C) the penalty's gradient is

.. math:: \tfrac12 \nabla \log\det I = \sum_n w_n J_n^T\, \nabla_{f_n} \tfrac12 \langle M_n, F_n(f_n) \rangle ,

which needs nothing of a likelihood but its expected information. Steps are by :math:`I` where the log-likelihood is
concave. Elsewhere a direction may be next to uninformed, a dispersion far down, and the penalty is what bends the
objective there: steps are by the observed Hessian with that of the penalty, by differences.

References:
    D. Firth (1993), Bias reduction of maximum likelihood estimates, Biometrika 80, 27-38.
    G. Heinze and M. Schemper (2002), A solution to the problem of separation in logistic regression, Stat. Med. 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError, TooLargeError
from raphson.likelihoods import Likelihood
from raphson.linalg import Dense, DenseForm
from raphson.linear import LinearObjective

_STEP = 1e-3
"""Step of the differences of fourth order, relative to the output: errors of about 1e-12."""

_ELEMENTS = 2**24
"""Changes of the outputs by all parameters are formed for so many numbers at a time."""

_DIFFERENCED = 60
"""Free parameters up to which the penalty's Hessian is had: every one takes a gradient, a hundred times its value."""

_SHARE = 1e-4
"""Step of its differences in standard errors: the square root of the gradient's accuracy, 1e-12, and a little more."""

_PARAMETERS = 2000
"""Free parameters up to which the penalty is had: every evaluation forms and inverts the information."""


class DenseEvaluation(NamedTuple):
    """A loss at one point, with its Hessian or what stands for it."""

    value: float
    gradient: Tensor
    norm: float
    hessian: Dense | Delayed | None


@dataclass(frozen=True, eq=False)
class Delayed(DenseForm):
    """A matrix ``(n, n)`` that is made when it is asked for.

    Attributes:
        n: Its size.
        make: Makes it.
    """

    n: int
    make: Callable[[], Tensor]

    @property
    def shape(self) -> torch.Size:
        """Shape ``(n, n)``."""
        return torch.Size((self.n, self.n))

    @property
    def dtype(self) -> torch.dtype:
        """Double precision."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """The processor."""
        return torch.device("cpu")

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with ``v`` ``(n,)``."""
        return self.to_dense() @ v

    def to_dense(self) -> Tensor:
        """Return the matrix, made anew."""
        return self.make()

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(n,)``."""
        return self.to_dense().diagonal()


@dataclass(frozen=True, eq=False)
class JeffreysObjective:
    """The average loss less half the log determinant of the expected information, per unit of weight.

    Attributes:
        base: The average loss, without a penalty.
    """

    base: LinearObjective

    def __post_init__(self) -> None:
        p = self.n_parameters
        if p > _PARAMETERS:
            raise TooLargeError(
                f"penalty='jeffreys' inverts the information of all {p} coefficients at every step; it is had for up "
                f"to {_PARAMETERS}."
            )

    @property
    def n_parameters(self) -> int:
        """Number of parameters, p."""
        return self.base.n_parameters

    def value(self, theta: Tensor) -> float:
        """Return the penalized average loss, which takes no derivatives of the information."""
        value = self.base.value(theta)
        if not math.isfinite(value):
            return value
        factor, info = torch.linalg.cholesky_ex(self.base.hessian(theta, "expected").to_dense())
        return math.inf if int(info) else self._penalized(value, factor)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the penalized average loss and its gradient ``(p,)``."""
        at = self.evaluate(theta, None)
        return at.value, at.gradient

    @property
    def differenced(self) -> bool:
        """Whether steps are by the Hessian, the penalty's part of it by differences."""
        return not self.base.likelihood.concave and self.n_parameters <= _DIFFERENCED

    @property
    def factor_cost(self) -> float:
        """What a matrix costs that steps go by, in evaluations."""
        return float(self.n_parameters) if self.differenced else 1.0

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> DenseEvaluation:
        """Return value, gradient and what steps go by: the expected information per unit of weight, or the Hessian."""
        total = self.base.total_weight
        at = self.base.evaluate(theta, None)
        information = self.base.hessian(theta, "expected").to_dense()
        factor, info = torch.linalg.cholesky_ex(information)
        if int(info):
            return DenseEvaluation(math.inf, torch.full_like(at.gradient, math.nan), math.nan, Dense(information))
        value = self._penalized(at.value, factor)
        penalty = self._penalty_gradient(theta, factor)
        gradient = at.gradient - penalty / total
        norm = self.gradient_norm(gradient)
        if hessian is None:
            return DenseEvaluation(value, gradient, norm, None)
        matrix = Delayed(len(theta), lambda: self._hessian(theta, factor, penalty, information))
        return DenseEvaluation(value, gradient, norm, matrix if self.differenced else Dense(information))

    def _hessian(self, theta: Tensor, factor: Tensor, penalty: Tensor, information: Tensor) -> Tensor:
        """Return the observed Hessian of the penalized average loss, or the information where there is none."""
        step, total = _SHARE / math.sqrt(self.base.total_weight), self.base.total_weight
        changes = []
        for direction in _inverse_root(factor).mT:
            there = theta + step * direction
            moved, info = torch.linalg.cholesky_ex(self.base.hessian(there, "expected").to_dense())
            if int(info):
                return information
            changes.append((self._penalty_gradient(there, moved) - penalty) / step)
        # by the directions of the root: its inverse is the factor
        found = torch.stack(changes, 1) @ factor.mT / total
        matrix = self.base.hessian(theta, "observed").to_dense() - 0.5 * (found + found.mT)
        return matrix if bool(torch.isfinite(matrix).all()) else information

    def _penalized(self, value: float, factor: Tensor) -> float:
        # the constant log det of W I_p is left out
        return value - float(factor.diagonal().log().sum()) / self.base.total_weight

    def hessian(self, theta: Tensor, kind: Any = "observed") -> Dense:
        """Return the expected information per unit of weight, whatever the kind asked for."""
        return Dense(self.base.hessian(theta, "expected").to_dense())

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the infinity norm of a gradient in the table's units."""
        return self.base.gradient_norm(gradient)

    def _penalty_gradient(self, theta: Tensor, factor: Tensor) -> Tensor:
        """Return the gradient of half the log determinant, given the Cholesky factor of the information / W."""
        half = _inverse_root(factor)
        base, here = self.base, self.base.output_map
        f, x = base.predictors(theta), torch.cat([b.features() for b in base.design.blocks(here.n_outputs)], 1)
        coef = here.expand(half.mT.contiguous())
        step = max(1, _ELEMENTS // max(1, len(theta) * here.n_outputs))
        parts = []
        for start in range(0, base.n_rows, step):
            rows = slice(start, start + step)
            moves = coef @ x[:, rows]
            leverage = torch.einsum("pcn,pdn->ncd", moves, moves)
            parts.append(information_gradient(base.likelihood, f[:, rows].mT, base.y[rows], leverage).mT / 2.0)
        g = torch.cat(parts, 1)
        g = g if base.weights is None else g * base.weights
        # W cancels: the leverages are those of I / W, the sum over rows is divided by W
        sums = g.sum(1) if here.has_constants else None
        return here.from_products(here.reduce(g) @ x.mT, sums) / base.total_weight


def _inverse_root(factor: Tensor) -> Tensor:
    """Return ``L^-T``: times its transpose it is the inverse of ``L L^T``."""
    inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
    return inverse.mT


def information_gradient(likelihood: Likelihood, f: Tensor, y: Tensor, matrices: Tensor) -> Tensor:
    r"""Return :math:`\nabla_{f_n} \langle M_n, F_n(f_n) \rangle`, ``(N, C)``, F being the expected information."""
    points = f.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            total = (matrices * likelihood.fisher(points, y).to_dense()).sum()
        if not total.requires_grad:
            return torch.zeros_like(f)
        return torch.autograd.grad(total, points)[0]
    except RuntimeError:  # what it is made of cannot be differentiated: a series, or arithmetic in place
        return _differences(likelihood, f, y, matrices)


def _differences(likelihood: Likelihood, f: Tensor, y: Tensor, matrices: Tensor) -> Tensor:
    """Return the same by differences of fourth order."""
    places = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=f.dtype)
    targets = torch.cat([y] * len(places))
    found = torch.empty_like(f)
    for c in range(f.shape[1]):
        h = _STEP * f[:, c].abs().clamp_min(1.0)
        moved = f.repeat(len(places), 1, 1)
        moved[..., c] += places[:, None] * h
        there = likelihood.fisher(moved.flatten(0, 1), targets).to_dense()
        near, opposite, far, far_opposite = (matrices * there.reshape(len(places), *matrices.shape)).sum((2, 3))
        found[:, c] = (8 * (near - opposite) - (far - far_opposite)) / (12 * h)
    return found


def check_penalty(penalty: Any, l2: float) -> bool:
    """Return whether the penalty is Jeffreys'; an unknown one, or both penalties, are an ``InputError``."""
    if penalty not in ("ridge", "jeffreys"):
        raise InputError(f"Unknown penalty {penalty!r}; choose 'ridge' (with l2) or 'jeffreys'.")
    if penalty == "jeffreys" and l2 > 0:
        raise InputError(f"penalty='jeffreys' does not go with l2={l2:g}; set l2=0, or penalty='ridge'.")
    return bool(penalty == "jeffreys")
