r"""The likelihood times Jeffreys' prior: finite estimates where maximum likelihood has none (Firth 1993).

With the expected information :math:`I(\theta) = \sum_n w_n J_n^T F_n J_n` of the free parameters, :math:`F_n` (C x C)
being the row's in output space, what is maximized is :math:`\log L + \frac12 \log\det I`. With the leverages
:math:`M_n = J_n I^{-1} J_n^T` (C x C) the penalty's gradient is

.. math:: \tfrac12 \nabla \log\det I = \sum_n w_n J_n^T\, \nabla_{f_n} \tfrac12 \langle M_n, F_n(f_n) \rangle ,

which needs nothing of a likelihood but its expected information. Steps are by :math:`I`.

References:
    D. Firth (1993), Bias reduction of maximum likelihood estimates, Biometrika 80, 27-38.
    G. Heinze and M. Schemper (2002), A solution to the problem of separation in logistic regression, Stat. Med. 21.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError, TooLargeError
from raphson.likelihoods import Likelihood
from raphson.linalg import Dense
from raphson.linear import LinearObjective

_STEP = 1e-3
"""Step of the differences of fourth order, relative to the output: errors of about 1e-12."""

_ELEMENTS = 2**24
"""Changes of the outputs by all parameters are formed for so many numbers at a time."""

_PARAMETERS = 2000
"""Free parameters up to which the penalty is had: every evaluation forms and inverts the information."""


class DenseEvaluation(NamedTuple):
    """A loss at one point, with its Hessian or what stands for it."""

    value: float
    gradient: Tensor
    norm: float
    hessian: Dense | None


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

    def evaluate(self, theta: Tensor, hessian: Any = "observed") -> DenseEvaluation:
        """Return value, gradient and the expected information per unit of weight, which steps go by."""
        total = self.base.total_weight
        at = self.base.evaluate(theta, None)
        information = self.base.hessian(theta, "expected").to_dense()
        factor, info = torch.linalg.cholesky_ex(information)
        if int(info):
            return DenseEvaluation(math.inf, torch.full_like(at.gradient, math.nan), math.nan, Dense(information))
        value = self._penalized(at.value, factor)
        half = torch.linalg.solve_triangular(factor, torch.eye(len(theta), dtype=theta.dtype), upper=False).mT
        gradient = at.gradient - self._penalty_gradient(theta, half) / total
        norm = self.gradient_norm(gradient)
        return DenseEvaluation(value, gradient, norm, None if hessian is None else Dense(information))

    def _penalized(self, value: float, factor: Tensor) -> float:
        # the constant log det of W I_p is left out
        return value - float(factor.diagonal().log().sum()) / self.base.total_weight

    def hessian(self, theta: Tensor, kind: Any = "observed") -> Dense:
        """Return the expected information per unit of weight, whatever the kind asked for."""
        return Dense(self.base.hessian(theta, "expected").to_dense())

    def gradient_norm(self, gradient: Tensor) -> float:
        """Return the infinity norm of a gradient in the table's units."""
        return self.base.gradient_norm(gradient)

    def _penalty_gradient(self, theta: Tensor, half: Tensor) -> Tensor:
        """Return the gradient of half the log determinant; ``half @ half.T`` is the inverse of the information / W."""
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

    def at(c: int, h: Tensor, k: float) -> Tensor:
        moved = f.clone()
        moved[:, c] += k * h
        return (matrices * likelihood.fisher(moved, y).to_dense()).sum((1, 2))

    found = torch.empty_like(f)
    for c in range(f.shape[1]):
        h = _STEP * f[:, c].abs().clamp_min(1.0)
        found[:, c] = (8 * (at(c, h, 1.0) - at(c, h, -1.0)) - (at(c, h, 2.0) - at(c, h, -2.0))) / (12 * h)
    return found


def check_penalty(penalty: Any, l2: float) -> bool:
    """Return whether the penalty is Jeffreys'; an unknown one, or both penalties, are an ``InputError``."""
    if penalty not in ("ridge", "jeffreys"):
        raise InputError(f"Unknown penalty {penalty!r}; choose 'ridge' (with l2) or 'jeffreys'.")
    if penalty == "jeffreys" and l2 > 0:
        raise InputError(f"penalty='jeffreys' does not go with l2={l2:g}; set l2=0, or penalty='ridge'.")
    return bool(penalty == "jeffreys")
