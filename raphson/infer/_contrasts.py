"""Averages of the mean response over rows, and of its slopes, as functions of the coefficients; tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raphson.infer._estimates import Estimates
from raphson.infer._mean import chunk_rows, mean_function, row_curvature, row_jacobian, with_intercept
from raphson.likelihoods import Likelihood

if TYPE_CHECKING:
    import pandas as pd

    from raphson.report import Summary


@dataclass(frozen=True)
class MeanTable:
    """Average predictions, or differences of them.

    Attributes:
        estimates: Values with their covariance, labeled ``(class, row)``, class by class.
        title: What the table shows.
        at: Which rows are averaged over.
        difference: Whether the values are differences, which are tested against zero.
    """

    estimates: Estimates
    title: str
    at: str
    difference: bool

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """Return the table.

        Args:
            level: Coverage of the delta-method intervals; they are not adjusted for the number of rows.

        Returns:
            Rows ``(class, row)``; columns ``contrast`` (``mean`` for predictions), ``std_err``, ``lower`` and
            ``upper``; of differences also ``z`` and ``p_value``.
        """
        frame = self.estimates.to_frame(level)
        if self.difference:
            return frame.rename(columns={"coef": "contrast"})
        return frame.rename(columns={"coef": "mean"})[["mean", "std_err", "lower", "upper"]]

    def summary(self, level: float = 0.95) -> Summary:
        """Return the table for printing.

        Args:
            level: Coverage of the intervals.

        Returns:
            The summary.
        """
        from raphson.report import Summary

        facts = (("Rows", self.at), ("Covariance", self.estimates.kind))
        return Summary(self.title, facts, self.to_frame(level), level=level)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def average_mean(
    likelihood: Likelihood, coef: Tensor, x: Tensor, share: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the average :math:`\sum_n w_n m(B \hat x_n + o_n)` and its Jacobian in the coefficients.

    Args:
        likelihood: Any likelihood with a mean.
        coef: Coefficients B, ``(C, D + 1)``, intercept first.
        x: Features without the intercept, ``(N, D)``.
        share: Weights w that sum to one, ``(N,)``.
        offset: Offsets o, ``(N, C)``.

    Returns:
        The average ``(M,)`` and its Jacobian ``(M, C (D + 1))``.
    """
    mean, (c, width) = mean_function(likelihood), coef.shape
    m = mean(coef[:, 0]).shape[-1]
    value, jacobian = x.new_zeros(m), x.new_zeros(m, c, width)
    size = chunk_rows(c * max(m, width))
    for rows, w, shift in zip(*(torch.split(t, size) for t in (x, share, offset)), strict=True):
        xhat = with_intercept(rows)
        f = xhat @ coef.mT + shift
        value += w @ mean(f)
        jacobian += torch.einsum("n,nmc,nk->mck", w, row_jacobian(mean, f), xhat)
    return value, jacobian.flatten(1)


def average_slope(
    likelihood: Likelihood,
    coef: Tensor,
    x: Tensor,
    share: Tensor,
    offset: Tensor,
    x_slope: Tensor,
    offset_slope: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return the average derivative of the mean along given derivatives of the features, and its Jacobian.

    With a variable t that moves several features (``x`` and ``x**2``), the chain rule gives

    .. math:: \sum_n w_n \, \nabla m(f_n)^\top \dot f_n, \qquad \dot f_n = B \dot x_n + \dot o_n,

    where a dot is a derivative in t. A coefficient moves the gradient by the Hessian, and multiplies
    :math:`\dot x_n`.

    Args:
        likelihood: Any likelihood with a mean.
        coef: Coefficients B, ``(C, D + 1)``, intercept first.
        x: Features without the intercept, ``(N, D)``.
        share: Weights w that sum to one, ``(N,)``.
        offset: Offsets o, ``(N, C)``.
        x_slope: Derivatives of the features, ``(N, D)``.
        offset_slope: Derivatives of the offsets, ``(N, C)``.

    Returns:
        The average ``(M,)`` and its Jacobian ``(M, C (D + 1))``.
    """
    mean, (c, width) = mean_function(likelihood), coef.shape
    m = mean(coef[:, 0]).shape[-1]
    value, jacobian = x.new_zeros(m), x.new_zeros(m, c, width)
    size = chunk_rows(c * max(m, width))
    pieces = (torch.split(t, size) for t in (x, share, offset, x_slope, offset_slope))
    for rows, w, shift, dx, do in zip(*pieces, strict=True):
        xhat = with_intercept(rows)
        f, df = xhat @ coef.mT + shift, dx @ coef[:, 1:].mT + do
        for entry in range(m):
            gradient, (curved,) = row_curvature(mean, f, entry, df[None])
            value[entry] += w @ (gradient * df).sum(-1)
            jacobian[entry] += (w.unsqueeze(-1) * curved).mT @ xhat
            jacobian[entry, :, 1:] += (w.unsqueeze(-1) * gradient).mT @ dx
    return value, jacobian.flatten(1)


def pairwise(estimates: Estimates, levels: Sequence[str]) -> Estimates:
    """Return the differences of all pairs of levels, the later less the earlier, within each class.

    Args:
        estimates: One value for each level, class by class.
        levels: Names of the levels.

    Returns:
        The differences, labeled ``(class, "b - a")``.
    """
    k, pairs = len(levels), torch.combinations(torch.arange(len(levels))).tolist()
    classes = [label[0] for label in estimates.labels[::k]]
    matrix = estimates.values.new_zeros(len(classes), len(pairs), len(classes), k)
    for i in range(len(classes)):
        for j, (low, high) in enumerate(pairs):
            matrix[i, j, i, high], matrix[i, j, i, low] = 1.0, -1.0
    labels = tuple((name, f"{levels[high]} - {levels[low]}") for name in classes for low, high in pairs)
    return estimates.transform(matrix.reshape(len(labels), -1), labels)
