r"""How far a fit can be from the exact optimum, by generalized self-concordance (Sun and Tran-Dinh 2019, nu = 2).

Let g and H be gradient and Hessian at the point found, d the step to the optimum, and
:math:`|D^3 F(x)[v, u, u]| \le M \|v\| D^2 F(x)[u, u]` in the norm of H. With :math:`\lambda = \|g\|_{H^{-1}}`,
:math:`r = \|d\|` and :math:`t = M r`

.. math:: e^{-s t} H \preceq \nabla^2 F(\theta + s d) \preceq e^{s t} H, \qquad
    \lambda \ge \frac{1 - e^{-t}}{t} r, \qquad d = -\Big(\int_0^1 \nabla^2 F(\theta + s d)\, ds\Big)^{-1} g,

so that :math:`r \le -\ln(1 - M \lambda) / M` if :math:`M \lambda < 1` (the optimum then exists), and d differs from the
Newton step by at most :math:`(t / (1 - e^{-t}) - 1) \lambda`. A bound M that holds within a radius R of the point is
enough where r is at most R: along every ray the derivative is then positive at R, so that by convexity the optimum lies
within. Everything here is in the norm of :math:`B^{-1}` with a matrix B for which
:math:`(1 - \eta) I \preceq B H B^\top \preceq (1 + \eta) I` is verified, rounding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import NotEstimableError

_UNIT = 2.0**-53
_LARGEST_ETA = 0.5

Array = NDArray[np.float64]
Extended = NDArray[np.longdouble]


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """A bound on the distance of every reported coefficient from the exact optimum of its objective on its rows.

    Attributes:
        certified: Whether there is a bound.
        sentence: What it rests on, or why there is none.
        labels: Names ``(output, column)`` of the coefficients.
        coefficients: The bounds, ``(P,)``; None without.
        standard_errors: The bounds in units of a coefficient's standard error (of the observed information, with the
            penalty's if there is one), ``(P,)``; None without.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
        >>> bound = rp.VectorGLM(rp.Poisson()).fit(x, y).solution_.error_bound
        >>> bound.certified, bound.largest < 1e-6
        (True, True)
    """

    certified: bool
    sentence: str
    labels: tuple[tuple[str, str], ...]
    coefficients: Tensor | None = None
    standard_errors: Tensor | None = None

    @property
    def largest(self) -> float:
        """The largest bound in standard errors; infinite where nothing is certified."""
        return math.inf if self.standard_errors is None else float(self.standard_errors.max())

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""What a bound is worked out from, in the solver's ``p`` parameters.

    Attributes:
        hessian: As computed, ``(p, p)``.
        terms: What its diagonal would be if all terms were added up in absolute value, ``(p,)``: rounding is
            ``roundings`` units of :math:`\sqrt{t_i t_j}` in entry (i, j).
        roundings: Number of roundings of an entry of the Hessian.
        moved: Largest relative error of second derivatives from rounding of the outputs they were computed at.
        gradient: In extended precision, ``(p,)``.
        gradient_error: Bound on its rounding, ``(p,)``.
        row_size: The largest M of a row times the size of its outputs in a direction of length one, within a radius:
            given B ``(p, p)`` and the radius.
        to_reported: From the parameters to the P reported, ``(P, p)``.
        offset: How far reported coefficients are from any of the model, ``(P,)``: coefficients that should sum to zero.
        weight: Total weight, for standard errors.
    """

    hessian: Array
    terms: Array
    roundings: int
    moved: float
    gradient: Extended
    gradient_error: Array
    row_size: Callable[[Array, float], float]
    to_reported: Array
    offset: Array
    weight: float


def bound_error(evidence: Evidence) -> tuple[Array, Array]:
    """Return the bounds in units of coefficients and of standard errors, ``(P,)`` each.

    Args:
        evidence: What was computed at the point found.

    Returns:
        The bounds.

    Raises:
        NotEstimableError: Nothing can be certified; the message says why.
    """
    p = len(evidence.hessian)
    inverse, eta = _inverse_root(evidence)
    slack = 1 + 8 * (p + 8) * _UNIT
    wide = inverse.astype(np.longdouble)
    whitened = wide @ evidence.gradient
    abs_inverse = np.abs(inverse)
    loose = float(np.linalg.norm(abs_inverse @ evidence.gradient_error)) * slack
    # B g is itself computed in extended precision
    tiny = (p + 4) * float(np.finfo(np.longdouble).eps)
    loose += tiny * float(np.linalg.norm(abs_inverse @ np.abs(evidence.gradient).astype(np.float64))) * slack
    decrement = float(np.sqrt((whitened**2).sum())) * slack + loose
    radius = 2 * decrement / (1 - eta)
    size = evidence.row_size(inverse, radius)
    reached = size * decrement / (1 - eta)
    if not reached < 1:
        raise NotEstimableError(
            f"the Newton decrement {decrement:.1e} is not below {(1 - eta) / max(size, 1e-300):.1e}, the radius within "
            "which the curvature is under control: lower tol, or fit for longer"
        )
    t = -math.log1p(-reached)
    if t > size * radius:
        raise NotEstimableError(
            f"the optimum may be farther than {radius:.1e}, where curvature was looked at: lower tol"
        )
    low = -math.expm1(-t) / t if t > 1e-8 else 1 - t / 2
    high = math.expm1(t) / t if t > 1e-8 else 1 + t
    away = max(1 / ((1 - eta) * low) - 1, 1 - 1 / ((1 + eta) * high)) * decrement * slack
    rows = np.abs(evidence.to_reported)
    directions = evidence.to_reported @ inverse.T
    lengths = np.linalg.norm(directions, axis=1) * slack
    lengths += (p + 4) * _UNIT * np.linalg.norm(rows @ abs_inverse.T, axis=1)
    along = np.abs(evidence.to_reported.astype(np.longdouble) @ (wide.T @ whitened)).astype(np.float64)
    bounds = along * slack + lengths * (away + loose + 8 * (p + 4) * _UNIT * decrement) + evidence.offset
    return bounds, bounds * math.sqrt(evidence.weight) / np.linalg.norm(directions, axis=1)


def _inverse_root(evidence: Evidence) -> tuple[Array, float]:
    """Return B and eta."""
    hessian = evidence.hessian
    p = len(hessian)
    lower, info = torch.linalg.cholesky_ex(torch.from_numpy(hessian))
    if int(info):
        raise NotEstimableError("the Hessian is not positive definite beyond rounding")
    eye = torch.eye(p, dtype=torch.float64)
    inverse: Array = torch.linalg.solve_triangular(lower, eye, upper=False).numpy()
    size = np.abs(inverse)
    error = float(np.linalg.norm(inverse @ hessian @ inverse.T - np.eye(p)))
    error += 2 * (p + 2) * _UNIT * float(np.linalg.norm(size @ np.abs(hessian) @ size.T)) * 1.01
    unknown = (evidence.roundings * _UNIT + evidence.moved) * 1.01
    eta = error + unknown * float(np.square(size @ np.sqrt(evidence.terms)).sum())
    if not eta < _LARGEST_ETA:
        raise NotEstimableError(
            f"the Hessian is known to a relative {eta:.1e} only in its least determined direction (columns that are "
            "nearly collinear, or classes that are nearly separated)"
        )
    return inverse, eta
