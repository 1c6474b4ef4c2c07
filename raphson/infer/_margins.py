"""Average marginal effects of features on the mean of the response, with delta-method standard errors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.infer._estimates import Estimates, open_notes
from raphson.infer._mean import chunk_rows, mean_function, require_mean, row_curvature, row_jacobian, with_intercept
from raphson.likelihoods import Likelihood

if TYPE_CHECKING:
    import pandas as pd

    from raphson.report import Summary


@dataclass(frozen=True)
class MarginsResult:
    """Average marginal effects.

    Attributes:
        estimates: Effects with their covariance, labeled ``(class, feature)``, class by class.
        at: ``"overall"`` (averaged over the rows) or ``"mean"`` (at the average row).
        discrete: For each feature, whether its effect is a change between values rather than a derivative.
        kinds: For each feature, what the effect is: ``dy/dx``, ``1 vs 0``, or for a level of a factor ``b vs a``.
    """

    estimates: Estimates
    at: str
    discrete: tuple[bool, ...]
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds:
            kinds = tuple("1 vs 0" if discrete else "dy/dx" for discrete in self.discrete)
            object.__setattr__(self, "kinds", kinds)

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

    def summary(self, level: float = 0.95) -> Summary:
        """Return the table of effects for printing.

        Args:
            level: Coverage of the intervals.

        Returns:
            The summary.
        """
        from raphson.report import Summary

        where = {"overall": "averaged over rows", "mean": "at the means of the features"}.get(self.at, self.at)
        facts = (("Effects", where), ("Covariance", self.estimates.kind))
        notes = open_notes(self.estimates)
        return Summary("Marginal effects on the mean response", facts, self.to_frame(level), notes, level)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


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
    """Return average marginal effects with standard errors by the delta method.

    Args:
        likelihood: Any likelihood with a mean.
        coefficients: All C (D + 1) coefficients, class by class, intercept first within a class.
        x: Features without the intercept, ``(N, D)``.
        mean_names: Names of the M entries of the mean; None takes the outputs' names where M = C.
        weights: Row weights, ``(N,)``.
        offset: Offset of the outputs, ``(N, C)``.
        binary: Features whose effect is the change from 0 to 1, bool ``(D,)``; None for derivatives
            throughout.
        at: ``"overall"`` or ``"mean"``.

    Returns:
        The effects.

    Raises:
        InputError: The number of coefficients does not fit ``x``.
    """
    width = x.shape[1] + 1
    if len(coefficients.labels) % width or not x.shape[1]:
        raise InputError(
            f"{len(coefficients.labels)} coefficients do not fit {x.shape[1]} features: {width} are needed "
            "for each output, the intercept among them (zero where there is none)."
        )
    mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device) if binary is None else binary
    effects, jacobian = average_marginal_effects(
        likelihood,
        coefficients.values.reshape(-1, width),
        x,
        weights=weights,
        offset=offset,
        binary=mask,
        at=at,
    )
    features = [label[1] for label in coefficients.labels[1:width]]
    outputs = [label[0] for label in coefficients.labels[::width]]
    if mean_names is None:
        mean_names = outputs if len(outputs) == len(effects) else list(range(len(effects)))
    labels = tuple((name, feature) for name in mean_names for feature in features)
    estimates = coefficients.propagate(effects.flatten(), jacobian, labels)
    return MarginsResult(estimates, at, tuple(mask.tolist()))


def average_marginal_effects(
    likelihood: Likelihood,
    coef: Tensor,
    x: Tensor,
    *,
    weights: Tensor | None = None,
    offset: Tensor | None = None,
    binary: Tensor | None = None,
    at: str = "overall",
) -> tuple[Tensor, Tensor]:
    r"""Return average marginal effects and their Jacobian in the coefficients.

    With outputs :math:`f(x) = B \hat x + o` and mean :math:`m(f)`, the effect of a feature is the weighted
    average of

    .. math:: \frac{\partial m}{\partial x_j} = \sum_c \frac{\partial m}{\partial f_c} B_{cj},
        \quad\text{or for a binary feature}\quad m(f(x; x_j = 1)) - m(f(x; x_j = 0)).

    Source: Greene (2018), Econometric Analysis, 8th edition, chapter 17; Stata's ``margins, dydx(*)``.

    Args:
        likelihood: Any likelihood with a mean.
        coef: Coefficients B, ``(C, D + 1)``, intercept first.
        x: Features without the intercept, ``(N, D)``.
        weights: Row weights, ``(N,)``.
        offset: Offset of the outputs, ``(N, C)``.
        binary: Features whose effect is the change from 0 to 1, bool ``(D,)``; None for derivatives
            throughout.
        at: ``"overall"`` averages over the rows; ``"mean"`` takes the one row of average features.

    Returns:
        Effects ``(M, D)`` and their Jacobian ``(M D, C (D + 1))``, both row-major.

    Raises:
        InputError: Unknown ``at``, or shapes that do not fit.
    """
    if at not in {"overall", "mean"}:
        raise InputError(f"at must be 'overall' or 'mean'; got {at!r}.")
    n, d = x.shape
    c = coef.shape[0]
    if coef.shape[1] != d + 1:
        raise InputError(f"coef has {coef.shape[1]} columns; {d} features and the intercept need {d + 1}.")
    share = x.new_full((n,), 1 / n) if weights is None else weights / weights.sum()
    outputs_offset = x.new_zeros(n, c) if offset is None else offset
    if at == "mean":
        x, outputs_offset = share.unsqueeze(0) @ x, share.unsqueeze(0) @ outputs_offset
        share = x.new_ones(1)
    mask = torch.zeros(d, dtype=torch.bool, device=x.device) if binary is None else binary
    smooth = torch.nonzero(~mask).flatten()
    slopes = coef[:, smooth + 1].mT
    mean = mean_function(likelihood)
    m = mean(coef[:, 0]).shape[-1]
    effects = x.new_zeros(m, d)
    jacobian = x.new_zeros(m, d, c, d + 1)
    size = chunk_rows(c * max(m, d))
    pieces = (torch.split(tensor, size) for tensor in (x, share, outputs_offset))
    for rows, w, shift in zip(*pieces, strict=True):
        xhat = with_intercept(rows)
        f = xhat @ coef.mT + shift
        require_mean(likelihood, f)
        for entry in range(m) if len(smooth) else ():
            gradient, curvature = row_curvature(mean, f, entry, slopes)
            average = w @ gradient
            effects[entry, smooth] += slopes @ average
            # By the product rule: a coefficient moves the derivative of the mean, and multiplies it.
            jacobian[entry, smooth] += curvature.mT @ (w.unsqueeze(-1) * xhat)
            jacobian[entry, smooth, :, smooth + 1] += average
        for j in torch.nonzero(mask).flatten().tolist():
            for sign, value in ((1.0, 1.0), (-1.0, 0.0)):
                moved = f + (value - rows[:, j : j + 1]) * coef[:, j + 1]
                xmoved = xhat.clone()
                xmoved[:, j + 1] = value
                effects[:, j] += sign * (w @ mean(moved))
                jacobian[:, j] += sign * torch.einsum("n,nmc,nk->mck", w, row_jacobian(mean, moved), xmoved)
    return effects, jacobian.reshape(m * d, c * (d + 1))


def binary_columns(x: Tensor) -> Tensor:
    """Return which columns of ``(N, D)`` hold both 0 and 1 and nothing else, ``(D,)``."""
    zero, one = x == 0, x == 1
    return (zero | one).all(0) & zero.any(0) & one.any(0)
