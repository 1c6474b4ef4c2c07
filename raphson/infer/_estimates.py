"""Estimates with their covariance: standard errors, tests, intervals and linear maps of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError
from raphson.infer._covariance import covariance_root, of_root, symmetric_part
from raphson.linalg import Dense, DiagonalPlusLowRank, SymmetricOperator

if TYPE_CHECKING:
    import pandas as pd

Label = tuple[Hashable, Hashable]

NULL_RTOL = 1e-8
_NULL_ATOL = 1e-12
"""Entries of a null direction, and what is left where a contrast cancels one, that count as zero, relative to the
terms and to the largest entries: directions come from eigenvectors, known to about the root of the rounding."""


@dataclass(frozen=True, eq=False)
class Estimates:
    r"""Estimates :math:`\hat\theta` with covariance :math:`V` and a label for every entry.

    What the data do not determine is declared, never left to a nan: either entry by entry (``estimable``), or
    as directions :math:`n` along which the likelihood is flat (``null_space``), in which case a contrast
    :math:`r^T\theta` is estimable exactly when :math:`r^T n = 0` for all of them (Searle, Linear Models,
    1971, section 5.4). With a duplicated column, say, neither coefficient is estimable while their sum is.

    Attributes:
        values: Estimates, shape ``(p,)``; finite, arbitrary where not estimable.
        covariance: Covariance, shape ``(p, p)``; finite, ignored where not estimable.
        labels: One ``(output, feature)`` pair per entry.
        kind: Where the covariance comes from, for people: ``"observed information"``, ``"sandwich (HC1)"``.
        estimable: Which entries the data determine, bool of shape ``(p,)``; None means all but those that
            ``null_space`` touches.
        null_space: Directions the data leave open, shape ``(p, k)``.
        axis_names: Names of the two parts of a label.

    Examples:
        >>> from raphson.linalg import Diagonal
        >>> labels = (("y", "x"), ("y", "z"))
        >>> found = Estimates(torch.tensor([1.0, 2.0]), Diagonal(torch.tensor([0.25, 4.0])), labels, "given")
        >>> found.z
        tensor([2., 1.])
        >>> found.transform(torch.tensor([[1.0, 1.0]]), (("y", "sum"),)).standard_errors
        tensor([2.0616])
    """

    values: Tensor
    covariance: SymmetricOperator
    labels: tuple[Label, ...]
    kind: str
    estimable: Tensor = field(default=None)  # type: ignore[assignment]
    null_space: Tensor | None = None
    axis_names: tuple[str, str] = ("class", "feature")

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.values).all()):
            index = int(torch.nonzero(~torch.isfinite(self.values))[0])
            raise InputError(f"The estimate of {label_name(self.labels[index])} is not finite; the fit diverged.")
        estimable: Tensor | None = self.estimable
        if estimable is None:
            estimable = torch.ones_like(self.values, dtype=torch.bool)
        if self.null_space is not None:
            size = self.null_space.abs()
            estimable = estimable & ~(size > NULL_RTOL * size.amax(0, keepdim=True)).any(-1)
        object.__setattr__(self, "estimable", estimable)

    @cached_property
    def standard_errors(self) -> Tensor:
        """Square roots of the variances, shape ``(p,)``; nan exactly where not estimable.

        Raises:
            IndefiniteError: A variance is negative.
        """
        variances = self.covariance.diagonal()
        rounding = len(self.labels) * torch.finfo(variances.dtype).eps * variances.abs().amax() if len(variances) else 0
        negative = self.estimable & (variances < -rounding)
        if bool(negative.any()):
            index = int(torch.nonzero(negative)[0])
            raise IndefiniteError(
                f"The variance of {label_name(self.labels[index])} is negative "
                f"({float(variances[index]):.3g}), so the information it comes from is not that of a "
                "maximum. Fit until convergence."
            )
        return torch.where(self.estimable, variances.clamp(min=0).sqrt(), torch.nan)

    @property
    def z(self) -> Tensor:
        """Estimates over standard errors, ``(p,)``; nan where not estimable or fixed by a constraint."""
        return torch.where(self.standard_errors > 0, self.values / self.standard_errors, torch.nan)

    @property
    def p_values(self) -> Tensor:
        """Two-sided p-values of zero coefficients, shape ``(p,)``; nan where ``z`` is."""
        from scipy import special

        tail = special.ndtr(-self.z.abs().cpu().numpy())
        return torch.as_tensor(2 * tail, dtype=self.values.dtype, device=self.values.device)

    def confint(self, level: float = 0.95) -> Tensor:
        """Return Wald confidence intervals.

        Args:
            level: Coverage, between 0 and 1.

        Returns:
            Lower and upper bounds, shape ``(p, 2)``; nan where not estimable.
        """
        half = critical_value(level) * self.standard_errors
        return torch.stack([self.values - half, self.values + half], -1)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """Return the coefficient table.

        Args:
            level: Coverage of the interval.

        Returns:
            Rows indexed by ``(class, feature)``; columns ``coef``, ``std_err``, ``z``, ``p_value``, ``lower`` and
            ``upper``, nullable: ``<NA>`` where not estimable.
        """
        import pandas as pd

        lower, upper = self.confint(level).unbind(-1)
        columns = {
            "coef": torch.where(self.estimable, self.values, torch.nan),
            "std_err": self.standard_errors,
            "z": self.z,
            "p_value": self.p_values,
            "lower": lower,
            "upper": upper,
        }
        return pd.DataFrame({name: _nullable(column) for name, column in columns.items()}, index=self._index())

    def standard_errors_series(self) -> pd.Series:
        """Return the standard errors with labels, ``<NA>`` where not estimable: one column of ``to_frame``."""
        import pandas as pd

        return pd.Series(_nullable(self.standard_errors), index=self._index(), name="std_err")

    def covariance_frame(self) -> pd.DataFrame:
        """Return the covariance with labels on both axes, ``<NA>`` where not estimable."""
        import pandas as pd

        determined = self.estimable & self.estimable.unsqueeze(-1)
        matrix = torch.where(determined, self.covariance.to_dense(), torch.nan)
        frame = pd.DataFrame({i: _nullable(column) for i, column in enumerate(matrix.unbind(-1))}, index=self._index())
        return frame.set_axis(self._index(), axis="columns")

    def transform(self, matrix: Tensor, labels: tuple[Label, ...]) -> Estimates:
        r"""Return the estimates of :math:`M\theta`, with covariance :math:`M V M^T`.

        Args:
            matrix: Linear map M, shape ``(q, p)``.
            labels: Labels of the q new entries.

        Returns:
            The q new estimates; those that depend on what the data leave open are not estimable.
        """
        return self.propagate(matrix @ self.values, matrix, labels)

    def propagate(self, values: Tensor, jacobian: Tensor, labels: tuple[Label, ...]) -> Estimates:
        r"""Return the estimates of :math:`g(\theta)` by the delta method, with covariance :math:`J V J^T`.

        Args:
            values: :math:`g(\hat\theta)`, shape ``(q,)``.
            jacobian: :math:`J = \partial g / \partial\theta` at the estimate, shape ``(q, p)``.
            labels: Labels of the q new entries.

        Returns:
            The q new estimates; those that depend on what the data leave open are not estimable.
        """
        # by the root: what cancels does so before anything is squared
        known = self.covariance
        covariance = (
            of_root(jacobian @ covariance_root(known))
            if isinstance(known, DiagonalPlusLowRank)
            else Dense(symmetric_part(jacobian @ known.mm(jacobian.mT)))
        )
        return Estimates(
            values=values,
            covariance=covariance,
            labels=labels,
            kind=self.kind,
            null_space=_map_null_space(jacobian, self._open_directions()),
            axis_names=self.axis_names,
        )

    def _open_directions(self) -> Tensor:
        """Return ``null_space`` with a unit vector for every other entry that is not estimable."""
        unit = torch.eye(len(self.labels), dtype=self.values.dtype, device=self.values.device)
        if self.null_space is None:
            return unit[:, ~self.estimable]
        size = self.null_space.abs()
        clean = torch.where(size > NULL_RTOL * size.amax(0, keepdim=True), self.null_space, 0.0)
        return torch.cat([clean, unit[:, ~self.estimable & (clean == 0).all(-1)]], -1)

    def _index(self) -> pd.MultiIndex:
        import pandas as pd

        # levels and codes directly: from_tuples() sorts and hashes for milliseconds, more than a small fit takes
        levels, codes = [], []
        for names in zip(*self.labels, strict=True):
            places = {name: i for i, name in enumerate(dict.fromkeys(names))}
            levels.append(list(places))
            codes.append([places[name] for name in names])
        return pd.MultiIndex(levels, codes, names=self.axis_names, verify_integrity=False)


def critical_value(level: Any) -> float:
    """Return the quantile of the normal distribution at ``(1 + level) / 2``."""
    from scipy import special

    if isinstance(level, str) or not 0 < level < 1:
        raise InputError(f"A confidence level lies between 0 and 1, for example 0.95; got {level!r}.")
    return float(special.ndtri((1 + level) / 2))


def _map_null_space(matrix: Tensor, directions: Tensor) -> Tensor | None:
    product = matrix @ directions
    # A row that cancels a direction does so up to rounding; the bound follows the units of every coefficient.
    bound = NULL_RTOL * (matrix.abs() @ directions.abs())
    floor = _NULL_ATOL * matrix.abs().amax(-1, keepdim=True) * directions.abs().amax(0, keepdim=True)
    product = torch.where(product.abs() <= bound + floor, 0.0, product)
    product = product[:, (product != 0).any(0)]
    return product if product.shape[1] else None


def _nullable(column: Tensor) -> pd.arrays.FloatingArray:
    import pandas as pd

    array = column.detach().cpu().double().numpy().copy()
    return pd.arrays.FloatingArray(array, torch.isnan(column).cpu().numpy())


def label_name(label: Label) -> str:
    """Return a label as text for messages and tables."""
    output, feature = label
    return f"{feature} of {output}" if str(output) else str(feature)


def open_notes(estimates: Estimates) -> tuple[str, ...]:
    """Return what a table of averages says where some of them are not estimable."""
    if bool(estimates.estimable.all()):
        return ()
    return (
        "Not estimable: averages over rows in which a coefficient without a finite, or a unique, estimate has a part. "
        "Leave such rows out by values in at=, or fit with penalty='jeffreys' where targets are separated.",
    )
