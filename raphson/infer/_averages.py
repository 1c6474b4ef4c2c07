"""Averages of the mean response over rows, and of its slopes, as functions of the coefficients; tables of them."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raphson._errors import InputError
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
class AverageTable(abc.ABC):
    """Averages over rows with their covariance, labeled ``(class, name)``, class by class; it prints."""

    estimates: Estimates

    @abc.abstractmethod
    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """Return the table with intervals of that coverage."""

    @abc.abstractmethod
    def _heading(self) -> tuple[str, tuple[str, str]]:
        """Return the title, and over which rows the averages are."""

    def summary(self, level: float = 0.95) -> Summary:
        """Return the table for printing.

        Args:
            level: Coverage of the intervals.

        Returns:
            The summary.
        """
        from raphson.report import Summary

        title, rows = self._heading()
        facts = (rows, ("Covariance", self.estimates.kind))
        return Summary(title, facts, self.to_frame(level), open_notes(self.estimates), level)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


@dataclass(frozen=True)
class MeanTable(AverageTable):
    """Average predictions, or differences of them.

    Attributes:
        estimates: Values with their covariance, labeled ``(class, row)``, class by class.
        title: What the table shows.
        at: Which rows are averaged over.
        difference: Whether the values are differences, which are tested against zero.
    """

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

    def _heading(self) -> tuple[str, tuple[str, str]]:
        return self.title, ("Rows", self.at)


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


@dataclass(frozen=True)
class MarginsResult(AverageTable):
    """Average marginal effects.

    Attributes:
        estimates: Effects with their covariance, labeled ``(class, feature)``, class by class.
        at: ``"overall"`` (averaged over the rows) or ``"mean"`` (at the average row).
        kinds: For each feature, what the effect is: ``dy/dx``, ``1 vs 0``, or for a level of a factor ``b vs a``.
    """

    at: str
    kinds: tuple[str, ...]

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """Return the table of effects.

        Args:
            level: Coverage of the intervals.

        Returns:
            The columns of `Estimates.to_frame`, with ``effect`` for ``coef``, and ``kind``: see
            ``kinds``.
        """
        frame = self.estimates.to_frame(level).rename(columns={"coef": "effect"})
        return frame.assign(kind=list(self.kinds) * (len(frame) // len(self.kinds)))

    def _heading(self) -> tuple[str, tuple[str, str]]:
        where = {"overall": "averaged over rows", "mean": "at the means of the features"}.get(self.at, self.at)
        return "Marginal effects on the mean response", ("Effects", where)


def margins(
    likelihood: Likelihood,
    coefficients: Estimates,
    x: Tensor,
    *,
    mean_names: Sequence[Hashable] | None = None,
    weights: Tensor | None = None,
    offset: Tensor | None = None,
    binary: Tensor | None = None,
    at: str = "overall",
) -> MarginsResult:
    r"""Return average marginal effects with standard errors by the delta method.

    With outputs :math:`f(x) = B \hat x + o` and mean :math:`m(f)`, the effect of a feature is the weighted
    average of

    .. math:: \frac{\partial m}{\partial x_j} = \sum_c \frac{\partial m}{\partial f_c} B_{cj},
        \quad\text{or for a binary feature}\quad m(f(x; x_j = 1)) - m(f(x; x_j = 0)).

    Source: Greene (2018), Econometric Analysis, 8th edition, chapter 17; Stata's ``margins, dydx(*)``.

    Args:
        likelihood: Any likelihood with a mean.
        coefficients: All C (D + 1) coefficients, class by class, intercept first within a class.
        x: Features without the intercept, ``(N, D)``.
        mean_names: Names of the M entries of the mean; None takes the outputs' names where M = C.
        weights: Row weights, ``(N,)``.
        offset: Offset of the outputs, ``(N, C)``.
        binary: Features whose effect is the change from 0 to 1, bool ``(D,)``; None for derivatives
            throughout.
        at: ``"overall"`` averages over the rows; ``"mean"`` takes the one row of average features.

    Returns:
        The effects.

    Raises:
        InputError: ``at`` is unknown.
    """
    width = x.shape[1] + 1
    if at not in {"overall", "mean"}:
        raise InputError(f"at must be 'overall' or 'mean'; got {at!r}.")
    coef, n = coefficients.values.reshape(-1, width), x.shape[0]
    share = x.new_full((n,), 1 / n) if weights is None else weights / weights.sum()
    shift = x.new_zeros(n, coef.shape[0]) if offset is None else offset
    if at == "mean":
        x, shift, share = share.unsqueeze(0) @ x, share.unsqueeze(0) @ shift, x.new_ones(1)
    mask = torch.zeros(width - 1, dtype=torch.bool, device=x.device) if binary is None else binary
    effects, jacobian = average_marginal_effects(likelihood, coef, x, share, shift, mask)
    features = [label[1] for label in coefficients.labels[1:width]]
    outputs = [label[0] for label in coefficients.labels[::width]]
    if mean_names is None:
        mean_names = outputs if len(outputs) == len(effects) else list(range(len(effects)))
    labels = tuple((name, feature) for name in mean_names for feature in features)
    estimates = coefficients.propagate(effects.flatten(), jacobian, labels)
    return MarginsResult(estimates, at, tuple("1 vs 0" if switch else "dy/dx" for switch in mask.tolist()))


def average_marginal_effects(
    likelihood: Likelihood, coef: Tensor, x: Tensor, share: Tensor, offset: Tensor, binary: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the effects of ``margins`` ``(M, D)`` and their Jacobian ``(M D, C (D + 1))``, both row-major.

    Shapes are those of ``average_mean``; ``binary`` ``(D,)``.
    """
    smooth = torch.nonzero(~binary).flatten()
    slopes = coef[:, smooth + 1].mT
    mean, value, _, chunks = chunked(likelihood, coef, x, share, offset)
    (m, d), (c, width) = (len(value), x.shape[1]), coef.shape
    effects, jacobian = x.new_zeros(m, d), x.new_zeros(m, d, c, width)
    for rows, w, shift in chunks if len(smooth) else ():
        xhat = with_intercept(rows)
        f = xhat @ coef.mT + shift
        require_mean(likelihood, f)
        for entry in range(m):
            gradient, curvature = row_curvature(mean, f, entry, slopes)
            average = w @ gradient
            effects[entry, smooth] += slopes @ average
            # By the product rule: a coefficient moves the derivative of the mean, and multiplies it.
            jacobian[entry, smooth] += curvature.mT @ (w.unsqueeze(-1) * xhat)
            jacobian[entry, smooth, :, smooth + 1] += average
    for j in torch.nonzero(binary).flatten().tolist():
        for sign, setting in ((1.0, 1.0), (-1.0, 0.0)):
            moved = x.clone()
            moved[:, j] = setting
            average, change = average_mean(likelihood, coef, moved, share, offset)
            effects[:, j] += sign * average
            jacobian[:, j] += sign * change.view(m, c, width)
    return effects, jacobian.reshape(m * d, c * width)


def binary_columns(x: Tensor) -> Tensor:
    """Return which columns of ``(N, D)`` hold both 0 and 1 and nothing else, ``(D,)``."""
    zero, one = x == 0, x == 1
    return (zero | one).all(0) & zero.any(0) & one.any(0)
