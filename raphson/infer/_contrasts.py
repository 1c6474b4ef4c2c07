"""Averages of the mean response over rows, and of its slopes, as functions of the coefficients; tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raphson.infer._estimates import Estimates, open_notes
from raphson.infer._mean import (
    MeanFunction,
    chunk_rows,
    mean_function,
    require_mean,
    row_curvature,
    row_jacobian,
    with_intercept,
)
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
        return Summary(self.title, facts, self.to_frame(level), open_notes(self.estimates), level)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def average_mean(
    likelihood: Likelihood, coef: Tensor, x: Tensor, share: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the average :math:`\sum_n w_n m(B \hat x_n + o_n)` ``(M,)`` and its Jacobian ``(M, C (D + 1))``.

    Coefficients B ``(C, D + 1)`` have the intercept first, which x ``(N, D)`` is without; w sums to one, ``(N,)``; o is
    ``(N, C)``.
    """
    mean, value, jacobian, chunks = chunked(likelihood, coef, x, share, offset)
    for rows, w, shift in chunks:
        xhat = with_intercept(rows)
        f = xhat @ coef.mT + shift
        require_mean(likelihood, f)
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

    where a dot is a derivative in t, ``x_slope`` ``(N, D)`` and ``offset_slope`` ``(N, C)``. A coefficient moves the
    gradient by the Hessian, and multiplies :math:`\dot x_n`. Shapes are those of ``average_mean``.
    """
    mean, value, jacobian, chunks = chunked(likelihood, coef, x, share, offset, x_slope, offset_slope)
    for rows, w, shift, dx, do in chunks:
        xhat = with_intercept(rows)
        f, df = xhat @ coef.mT + shift, dx @ coef[:, 1:].mT + do
        require_mean(likelihood, f)
        for entry in range(len(value)):
            gradient, (curved,) = row_curvature(mean, f, entry, df[None])
            value[entry] += w @ (gradient * df).sum(-1)
            jacobian[entry] += (w.unsqueeze(-1) * curved).mT @ xhat
            jacobian[entry, :, 1:] += (w.unsqueeze(-1) * gradient).mT @ dx
    return value, jacobian.flatten(1)


def chunked(
    likelihood: Likelihood, coef: Tensor, *parts: Tensor
) -> tuple[MeanFunction, Tensor, Tensor, Iterator[tuple[Tensor, ...]]]:
    """Return the mean, zeros for its average ``(M,)`` and the Jacobian, and the parts in chunks of rows."""
    mean, (c, width) = mean_function(likelihood), coef.shape
    m = mean(coef[:, 0]).shape[-1]
    size = chunk_rows(c * max(m, width))
    chunks = zip(*(torch.split(part, size) for part in parts), strict=True)
    return mean, coef.new_zeros(m), coef.new_zeros(m, c, width), chunks


def pairwise(estimates: Estimates, levels: Sequence[str]) -> Estimates:
    """Return the differences ``(class, "b - a")`` of all pairs of levels, each with a value in every class."""
    k, pairs = len(levels), torch.combinations(torch.arange(len(levels))).tolist()
    classes = [label[0] for label in estimates.labels[::k]]
    matrix = estimates.values.new_zeros(len(classes), len(pairs), len(classes), k)
    for i in range(len(classes)):
        for j, (low, high) in enumerate(pairs):
            matrix[i, j, i, high], matrix[i, j, i, low] = 1.0, -1.0
    labels = tuple((name, f"{levels[high]} - {levels[low]}") for name in classes for low, high in pairs)
    return estimates.transform(matrix.reshape(len(labels), -1), labels)
