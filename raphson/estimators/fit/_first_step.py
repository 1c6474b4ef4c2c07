r"""What steps by gradients begin with: about the inverse Hessian, and how far to go along the first gradient.

Where outputs are the same in all rows, with residuals :math:`r_n = -\nabla\ell(f_0, y_n)` and the step
:math:`d = -M g`, the outputs that a step of length t leads to are, along the residuals, exactly

.. math:: f_n(t) = f_0 + t\, h\, r_n + t\, e_n, \qquad h = \frac{g^T M g}{\tfrac1N \sum_n \|r_n\|^2}, \qquad
    \sum_n r_n^T e_n = 0 ,

since :math:`\sum_n r_n^T (X d)_n = N g^T M g`. With more columns than rows, of which no few tell all, rows are nearly
orthogonal and :math:`e_n` is small: about the variance of :math:`\|d\|^2` that columns with a mean square of one give.
With fewer some rows tell it.
The minimum over t is then known without a pass over the table, the ridge included: where it is far off, rows are
separated, and a step of length one would have been the first of ten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.data import DenseDesign, SparseDesign
from raphson.estimators.fit._patience import TOLD
from raphson.likelihoods import Likelihood, partition_mean
from raphson.linear import LinearObjective, OutputMap

_LEAST_VARIANCE = 1e-3
"""Of a sparse column with a mean square of one: a column that hardly varies tells little."""

_TRIED = np.logspace(-1.5, 1.8, 24)
"""By how much the first step may move outputs, in residuals: one standard error of a row's, to what saturates them."""

_FURTHER, _SHARE = 1.6, 0.9
"""Times as far as the lowest point that a first step may go, and share of the tolerance that the penalty may take.

Evaluations without and with, l2 = 1e-6: 500 x 2000, 50 classes, noisy, 3 and 1, sparse 7 and 1, ten, 9 and 5; 5000 x
7000, 50, 7 and 5."""

_ROWS = 256
"""Rows of which outputs along the first direction are looked at: their mean square is then known to a tenth."""

_LOOKED_AT, _EACH = 400, 5
"""Residuals above which every fifth of those lengths is looked at first: 1600, of 50 classes, 0.4 ms for all."""

_TARGETS = 32
"""Targets of which the length of the first step is worked out, some where there are more."""


@dataclass(frozen=True, eq=False)
class RoughInverse:
    """About the product with the inverse Hessian.

    Attributes:
        shape: That of a table of coefficients, ``(C, D')``.
        diagonal: About that of the Hessian, ``(P,)``.
        means: Those of columns that are not centered, ``(D',)``, zero for the intercept that comes first: of the slopes
            of centered columns and the intercept that belongs to them, that of columns as they are is a combination.
            None where they are centered.
    """

    shape: tuple[int, int]
    diagonal: Tensor
    means: Tensor | None

    def astype(self, dtype: torch.dtype) -> RoughInverse:
        """Return the same for vectors of another element type."""
        return RoughInverse(self.shape, self.diagonal.to(dtype), None if self.means is None else self.means.to(dtype))

    def __call__(self, v: Tensor) -> Tensor:
        """Return the product with ``(P,)``."""
        if self.means is None:
            return v / self.diagonal
        table = v.view(self.shape)
        table = torch.addr(table, table[:, 0], self.means, alpha=-1.0).div_(self.diagonal.view(self.shape))
        table[:, 0] -= table @ self.means
        return table.view(-1)


def rough_inverse(objective: LinearObjective, theta: Tensor) -> RoughInverse:
    r"""Return about the inverse Hessian.

    Columns have a mean square of one, or another one, and outputs a mean curvature c, which that of an intercept is.
    With more columns than rows slopes stay in the span of the rows, in which

    .. math:: \left(\Lambda + \tfrac cN X^T X\right)^{-1} X^T = \Lambda^{-1} X^T
        \left(I + \tfrac cN X \Lambda^{-1} X^T\right)^{-1}

    with penalties :math:`\Lambda` (D, D), so that slopes are in the proportions of :math:`\Lambda^{-1} X^T` and have,
    of rows that are nearly orthogonal, the mean diagonal of :math:`\tfrac cN X \Lambda^{-1} X^T` for their curvature.
    """
    here, design, likelihood = objective.output_map, objective.design, objective.likelihood
    shape = here.shapes[0]
    f = theta.view(shape)[:, 0] if here.intercept else theta.new_zeros(shape[0])
    curvature = _curvature(likelihood, here.outputs(f[:, None], None).mT, objective.y[:1])
    penalties, ones = objective.ridge.diagonal.view(shape), int(here.intercept)
    mean = objective.means.clone() if isinstance(design, SparseDesign) and here.intercept else None
    if mean is not None:
        mean[0] = 0.0
    if len(design.scale) > objective.n_rows:
        in_span = float(torch.dot(design.scale, design.scale)) / objective.n_rows
        diagonal = penalties * (1.0 + curvature * in_span / objective.l2)
    elif mean is not None:
        diagonal = penalties + curvature * (1.0 - mean.square()).clamp_min(_LEAST_VARIANCE)
    else:
        diagonal = penalties + curvature * design.mean_square
    diagonal[:, :ones] = curvature
    return RoughInverse(shape, diagonal.view(-1), mean)


def _curvature(likelihood: Likelihood, f: Tensor, y: Tensor) -> float:
    """Return the mean expected curvature of outputs ``(1, C)``."""
    if likelihood.partition in ("softmax", "logistic") and likelihood.partition_multiple == 1.0:
        p, c = partition_mean(likelihood.partition, f.numpy()), f.shape[1]
        return float((p - p * p).mean()) * (c / (c - 1) if c > 1 else 1.0)  # of parameters that sum to zero
    return float(likelihood.fisher(f, y).diagonal().mean())


def first_length(
    objective: LinearObjective, theta: Tensor, gradient: Tensor, step: Tensor, tol: float = 0.0
) -> float | None:
    """Return about how many steps along the first direction lower the objective most; None where that is not known.

    Where a weak penalty leaves room below the tolerance, more of them: see ``further``.

    Args:
        objective: The objective.
        theta: Where outputs are the same in all rows, ``(P,)``.
        gradient: The gradient there, ``(P,)``.
        step: A direction of descent, ``(P,)``.
        tol: Bound on the norm of a gradient that ends the fit.
    """
    here, likelihood = objective.output_map, objective.likelihood
    y, share = _some(objective.y)
    target = likelihood.statistic(y, here.n_outputs)
    fall, partition = -float(gradient @ step), likelihood.partition
    if target is None or partition is None or not fall > 0.0:
        return None
    # of so few outputs NumPy's calls take a third of the time of PyTorch's
    f, multiple = here.outputs(theta.view(here.shapes[0])[:, :1], None)[:, 0].numpy(), likelihood.partition_multiple
    t = target.reshape(len(share), -1).numpy()
    residual = t - multiple * partition_mean(partition, f)
    per_residual = fall / float(share @ np.square(residual).sum(1))
    variance = objective.design.mean_square * float(torch.linalg.vector_norm(step.view(here.shapes[0])[:, 1:])) ** 2
    if isinstance(objective.design, DenseDesign) and here.n_columns <= TOLD * objective.n_rows:
        variance = max(_mean_square(objective.design, here, step) - fall * per_residual, 0.0)
    pull = objective.ridge.mv(step)
    own = float(step @ pull)

    def slopes(tried: NDArray[np.float64]) -> NDArray[np.float64]:
        mean = partition_mean(partition, f + tried[:, None, None] * residual)
        each = mean if partition == "exponential" else mean - mean * mean
        curvature = multiple * (each.mean(-1) @ share) * variance + own
        found: NDArray[np.float64] = tried / per_residual * curvature
        found += ((multiple * mean - t) * residual).sum(-1) @ share * per_residual
        return found

    # the minimum is where the slope changes its sign, between two of the lengths; of many outputs some are looked at
    # first, and those between two of them
    tried, first = _TRIED, 0
    if residual.size > _LOOKED_AT:
        first = max(0, _EACH * (int((slopes(tried[::_EACH]) < 0.0).sum()) - 1))
        tried = tried[first : first + _EACH + 1]
    found_slopes = slopes(tried)
    falling = int((found_slopes < 0.0).sum())
    if not 0 < falling < len(tried):
        return float(_TRIED[min(first + falling, len(_TRIED) - 1)]) / per_residual
    before, after = found_slopes[falling - 1 : falling + 1].tolist()
    near, far = tried[falling - 1 : falling + 1].tolist()
    found = float(near * (far / near) ** (before / (before - after))) / per_residual
    return found * further(tol, found * objective.gradient_norm(pull)) if math.isfinite(found) else None


def further(tol: float, norm: float) -> float:
    """Return how many times as far as to the lowest point along the first gradient to go.

    Of the loss of separated rows nearly nothing is left there, and less beyond: that may end a fit where the penalty's
    own gradient, whose norm at the lowest point is given, stays below the tolerance.
    """
    return max(1.0, min(_FURTHER, _SHARE * tol / norm)) if norm > 0.0 else 1.0


def _mean_square(design: DenseDesign, here: OutputMap, step: Tensor) -> float:
    """Return the mean squared change of outputs that a step in the slopes makes, by some of the rows."""
    rows = design.x[:: max(1, design.n_rows // _ROWS)][:_ROWS].double()
    slopes = step.view(here.shapes[0])[:, 1:]
    f = here.outputs(slopes @ ((rows - design.center) / design.scale).mT, None)
    return float(f.square().sum(0).mean())


def _some(y: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
    """Return targets ``(m, ...)`` and their shares of all rows, ``(m,)``: each value once, or some of many values."""
    n = y.shape[0]
    if y.numel() == n:  # NumPy's calls take a third of the time of PyTorch's
        flat = y.numpy().reshape(-1)
        values = np.array([flat.min(), flat.max()])
        counts = np.array([np.count_nonzero(flat == value) for value in values])
        if values[0] == values[1] or counts.sum() < n:
            values, counts = _counted(flat, *values)
        if len(values) <= _TARGETS:
            return torch.from_numpy(values).view(-1, *y.shape[1:]), counts / n
    y = y[:: -(-len(y) // _TARGETS)]
    return y, np.full(len(y), 1.0 / len(y))


def _counted(flat: NDArray[Any], least: Any, largest: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return distinct values and how often each occurs; labels are not sorted for that."""
    if flat.dtype.kind != "i" or least < 0 or largest > len(flat):
        return np.unique(flat, return_counts=True)
    counts = np.bincount(flat)
    values = np.flatnonzero(counts)
    return values, counts[values]
