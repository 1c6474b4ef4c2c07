"""Tests of linear hypotheses about estimates (Wald)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raphson._errors import InputError, NotEstimableError
from raphson.infer._comparison import p_text
from raphson.infer._estimates import Estimates, Label, label_name
from raphson.infer._hypotheses import read_hypothesis

if TYPE_CHECKING:
    import pandas as pd

_DEPENDENT = 1e-11
"""Eigenvalues of a correlation matrix up to this many times its size are zero: rounding in R V R^T is far above that
of its own entries when V is ill conditioned."""

_LARGEST = 1e100
"""Of entries of restrictions, beyond which a variance may overflow."""

_CONTRADICTION = 1e-6
"""Share of the deviations that may lie along dependent restrictions, by rounding; beyond, these contradict."""


@dataclass(frozen=True)
class WaldResult:
    """A Wald test.

    Attributes:
        statistic: The chi-square statistic.
        df: Degrees of freedom of the hypothesis: its number of independent restrictions.
        p_value: Probability of a larger statistic under the hypothesis.
        rows: The restrictions one at a time: estimates of ``R beta - q`` with their covariance.
        note: What the reader should know about the degrees of freedom; empty if nothing.
    """

    statistic: float
    df: int
    p_value: float
    rows: Estimates
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """Return every restriction on its own: estimate, std_err, statistic, df and p_value."""
        rows = self.rows.to_frame()
        table = rows[["coef", "std_err"]].rename(columns={"coef": "estimate"})
        return table.assign(statistic=rows["z"] ** 2, df=1, p_value=rows["p_value"])

    def __str__(self) -> str:
        text = f"Wald test ({self.rows.kind}): chi2({self.df}) = {self.statistic:.4f}, {p_text(self.p_value)}"
        return f"{text}\n{self.note}" if self.note else text


def wald_test(estimates: Estimates, R: Any, q: Any = None) -> WaldResult:
    r"""Test :math:`H_0: R\beta = q` by :math:`(R\hat\beta - q)^T (R V R^T)^+ (R\hat\beta - q)`.

    The statistic is chi-square with :math:`\mathrm{rank}(R V R^T)` degrees of freedom, so that restrictions
    which repeat one another count once.

    Source: Wald (1943), Trans. AMS 54, 426-482; Moore (1977), JASA 72, 131-137, for the generalized inverse.

    Args:
        estimates: The estimates, with p entries.
        R: Restrictions, ``(r, p)`` or ``(p,)``; or names, each a feature, an output (class) or a ``(output,
            feature)`` pair, alone or in a list: all coefficients of that name; or equations of names, ``"x = z"`` and
            ``["x = z", "2*u - v = 1"]``, for each output that has them (``"x of b = 0"`` for the output b alone).
        q: Hypothesized values, ``(r,)`` or a number; None for zero.

    Returns:
        The test, joint and row by row.

    Raises:
        InputError: Wrong shape, unknown name, or restrictions that contradict one another.
        NotEstimableError: A restriction involves what the data do not determine.
    """
    matrix, labels, said = _restrictions(estimates, R)
    if said is not None and q is not None:
        raise InputError("The hypothesis says in its text what is equal to what; leave out q.")
    q = said if said is not None else q
    rows = estimates.transform(matrix, labels)
    if not bool(rows.estimable.all()):
        name = label_name(labels[int((~rows.estimable).int().argmax())])
        raise NotEstimableError(
            f"The restriction on {name} cannot be tested: the data do not determine it (collinear columns "
            "or a separated class). Test an estimable contrast; for separated classes use penalty='jeffreys'."
        )
    try:
        target = torch.as_tensor(0.0 if q is None else q, dtype=matrix.dtype, device=matrix.device)
    except (TypeError, ValueError, RuntimeError):
        target = matrix.new_full((), math.nan)
    if not bool(torch.isfinite(target).all()):
        raise InputError(f"q is {q!r:.80}; give a finite number, or one for each of {len(labels)} rows.")
    if target.ndim > 1 or (target.ndim == 1 and len(target) != len(labels)):
        raise InputError(
            f"q has shape {tuple(target.shape)}; give a number or one value for each of {len(labels)} rows."
        )
    rows = Estimates(rows.values - target, rows.covariance, labels, rows.kind, axis_names=rows.axis_names)
    chi2, df = _quadratic_form(rows)
    note = ""
    if df < len(labels):
        note = f"{len(labels)} restrictions, of which {df} are independent: tested on {df} degrees of freedom."
    from scipy import special

    return WaldResult(chi2, df, float(special.chdtrc(df, chi2)), rows, note)


def _quadratic_form(rows: Estimates) -> tuple[float, int]:
    """Return the statistic and its rank, from the eigenvalues of the rows' correlation matrix.

    Raises:
        InputError: The restrictions contradict one another, or hold whatever the coefficients are.
    """
    deviation = rows.standard_errors
    scale = torch.where(deviation > 0, deviation, 1.0).reciprocal()
    values, vectors = torch.linalg.eigh(rows.covariance.to_dense() * scale * scale.unsqueeze(-1))
    independent = values > len(values) * _DEPENDENT
    scores = vectors.mT @ (rows.values * scale)
    if bool((scores[~independent].abs() > _CONTRADICTION * scores.norm().clamp(min=1.0)).any()):
        raise InputError(
            "The restrictions contradict one another or a constraint of the model (for example coefficients "
            "that sum to zero): no coefficients satisfy all of them. Check R and q. Or there are as many as clusters, "
            "of which a clustered covariance takes one for itself: test fewer together."
        )
    if not bool(independent.any()):
        raise InputError("The restrictions hold for every coefficient of the model; there is nothing to test.")
    return float((scores[independent].square() / values[independent]).sum()), int(independent.sum())


def _restrictions(estimates: Estimates, R: Any) -> tuple[Tensor, tuple[Label, ...], Tensor | None]:
    """Return the matrix, a label for each row, and the hypothesized values where a text says them."""
    p = len(estimates.labels)
    names = _as_names(estimates, R)
    if names is not None:
        identity = torch.eye(p, dtype=estimates.values.dtype, device=estimates.values.device)
        if not any(_is_hypothesis(estimates, name) for name in names):
            index = list(dict.fromkeys(i for name in names for i in _find(estimates, name)))
            return identity[index], tuple(estimates.labels[i] for i in index), None
        parts = [
            read_hypothesis(name, estimates.labels)
            if _is_hypothesis(estimates, name)
            else (identity[(found := _find(estimates, name))], identity.new_zeros(len(found)))
            for name in names
        ]
        matrix, values = (torch.cat([part[i].to(identity) for part in parts]) for i in (0, 1))
        return matrix, tuple(_row_label(row, estimates.labels) for row in matrix), values
    _refuse_other_order(estimates, R)
    try:
        matrix = torch.as_tensor(
            R.to_numpy() if hasattr(R, "to_numpy") else R, dtype=estimates.values.dtype, device=estimates.values.device
        )
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"R is {R!r:.80}, which is neither numbers, with {p} in each row, nor names: a coefficient, a class, a "
            f"pair such as {estimates.labels[-1]!r}, or a list of them."
        ) from None
    matrix = matrix.unsqueeze(0) if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[1] != p or not matrix.shape[0]:
        raise InputError(
            f"R has shape {tuple(matrix.shape)}; with {p} coefficients it needs shape (r, {p}), one "
            "restriction a row, coefficients class by class with the intercept first."
        )
    if not bool(torch.isfinite(matrix).all()):
        raise InputError("R holds numbers that are not finite; a restriction is a sum of coefficients times numbers.")
    largest = matrix.abs().amax(1)
    if bool((largest > _LARGEST).any() | ((largest > 0) & (largest < 1 / _LARGEST)).any()):
        raise InputError(
            "The entries of a row of R are too large or too small to compute with; divide the row, and its value of q, "
            "by the largest: the restriction stays the same."
        )
    return matrix, tuple(_row_label(row, estimates.labels) for row in matrix), None


def _refuse_other_order(estimates: Estimates, R: Any) -> None:
    """Raise ``InputError`` for a frame whose columns are named as the coefficients, in another order."""
    names = list(getattr(R, "columns", ()))
    for labels in (list(estimates.labels), [column for _, column in estimates.labels]):
        if names != labels and len(names) == len(labels) and set(map(str, names)) == set(map(str, labels)):
            if [str(name) for name in names] == [str(label) for label in labels]:
                return
            at = next(i for i, (name, label) in enumerate(zip(names, labels, strict=True)) if str(name) != str(label))
            raise InputError(
                f"The columns of R are named as the coefficients, in another order: the first that differs is "
                f"{names[at]!r}, where {labels[at]!r} stands. Order them as estimates().to_frame() is, or pass "
                "R.to_numpy() if they are in that order as they stand."
            )


def _is_hypothesis(estimates: Estimates, name: Any) -> bool:
    """Whether a text is an equation, not a name that holds an equals sign."""
    return isinstance(name, str) and "=" in name and not any(name in map(str, label) for label in estimates.labels)


def _as_names(estimates: Estimates, R: Any) -> Sequence[Any] | None:
    """Return ``R`` as a list of names, or None when it is a matrix."""
    if isinstance(R, str) or (isinstance(R, tuple) and any(_is_label(label, R) for label in estimates.labels)):
        return [R]
    if isinstance(R, list | tuple) and R and all(isinstance(name, str | tuple) for name in R):
        rows = [name for name in R if isinstance(name, tuple) and not any(isinstance(part, str) for part in name)]
        return None if any(not any(_is_label(label, row) for label in estimates.labels) for row in rows) else R
    return None


def _is_label(label: Label, name: Hashable) -> bool:
    """Whether a coefficient has that name, in which a class that is a number may be one."""
    return label == name or (isinstance(name, tuple) and tuple(map(str, label)) == tuple(map(str, name)))


def _find(estimates: Estimates, name: Hashable) -> list[int]:
    for match in (
        [i for i, label in enumerate(estimates.labels) if _is_label(label, name)],
        [i for i, label in enumerate(estimates.labels) if str(label[1]) == name],
        [i for i, label in enumerate(estimates.labels) if str(label[0]) == name],
    ):
        if match:
            return match
    known = sorted({str(part) for label in estimates.labels for part in label})
    close = difflib.get_close_matches(str(name), known)
    hint = f"did you mean {', '.join(close)}?" if close else f"known names: {', '.join(known[:20])}."
    raise InputError(f"No coefficient is called {name!r}; {hint}")


def _row_label(row: Tensor, labels: tuple[Label, ...]) -> Label:
    index = [int(i) for i in torch.nonzero(row).flatten()]
    if len(index) == 1 and float(row[index[0]]) == 1.0:
        return labels[index[0]]
    terms = [f"{float(row[i]):+g} {label_name(labels[i])}" for i in index[:4]]
    return "", " ".join(terms) + (" + ..." if len(index) > 4 else "")
