r"""What makes coefficients infinite and what stays finite: the result of looking for directions of recession.

Where the likelihood rises for ever its supremum is that of a limit: rows that every direction
leaves as they are, with the coefficients that stay finite (Geyer 2009, section 3.10; Correia, Guimaraes and Zylkin
2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.estimators._names import listed
from raphson.estimators.separation._problem import ROUNDING
from raphson.estimators.separation._standardize import as_numpy

Array = NDArray[Any]


@dataclass(frozen=True)
class LimitingModel:
    """The model in the limit of all directions of recession, which has a finite optimum.

    Attributes:
        rows: ``(N,)`` boolean: rows whose likelihood the finite coefficients still decide; the others are predicted
            perfectly, or do not count.
        kept: ``(p,)`` boolean: parameters to fit. The others can be fixed at zero: nothing finite depends on them.
        offset: ``(N, C)`` to add to the outputs: classes, or levels, that a row can no longer have are far away; None
            where there is none.
    """

    rows: Tensor
    kept: Tensor
    offset: Tensor | None


@dataclass(frozen=True)
class Recession:
    """What makes coefficients infinite, and what stays finite.

    Attributes:
        kind: ``"complete"`` if every row is predicted perfectly in the limit, else ``"quasi-complete"``.
        rows: ``(N,)`` boolean: rows whose likelihood rises along the direction.
        labels: ``(output, column)`` of the p parameters.
        diverging: ``(p,)`` boolean: parameters without a finite estimate.
        direction: ``(p,)`` a direction of recession that every separated row gains by.
        span: ``(p, r)`` basis of all directions of recession, less those that change no output.
        ways: ``(p,)`` where each parameter goes: 1, -1, or 0 where it may go either way or it is not known.
        limit: The model of the limit; None where it is too large to work out.
        is_exact: Whether the linear program decided that nothing else is separated.
        statements: What is separated, in words.
        remedy: What to do about it.
    """

    kind: Literal["complete", "quasi-complete"]
    rows: Tensor
    labels: tuple[tuple[str, str], ...]
    diverging: Tensor
    direction: Tensor
    span: Tensor
    ways: Tensor
    limit: LimitingModel | None
    is_exact: bool
    statements: tuple[str, ...]
    remedy: str

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """``(output, column)`` of the coefficients without a finite estimate."""
        return tuple(label for label, far in zip(self.labels, self.diverging.tolist(), strict=True) if far)

    @property
    def n_rows(self) -> int:
        """Number of separated rows."""
        return int(self.rows.sum())

    def is_finite(self, contrast: Any) -> Tensor:
        """Return whether contrasts ``(p,)`` or ``(m, p)`` have a finite estimate: those orthogonal to the span."""
        rows = np.atleast_2d(as_numpy(contrast).astype(np.float64))
        span = self.span.numpy()
        far = np.abs(rows @ span) > ROUNDING * (np.abs(rows) @ np.abs(span))
        return torch.from_numpy(~far.any(1).reshape(np.shape(contrast)[:-1]))

    def sentences(self, limit: int = 5) -> list[str]:
        """Return what is separated, in at most so many statements, what diverges and the remedy."""
        found = list(self.statements[:limit])
        if len(self.statements) > limit:
            found.append(f"{len(self.statements) - limit} more such statements are not listed.")
        several = len({output for output, _ in self.labels}) > 1
        names = [f"{column} of {output}" if several else column for output, column in self.names]
        others = len(self.labels) - len(names)
        rest = "" if not others else "; the other is finite" if others == 1 else f"; the other {others} are finite"
        many = len(names) != 1
        found.append(
            f"The coefficient{'s' * many} of {listed(names)} {'have' if many else 'has'} no finite maximum likelihood "
            f"estimate{self._ways(names)}{rest}. Remedy: {self.remedy}."
        )
        return found

    def _ways(self, names: list[str]) -> str:
        """Return in brackets where the coefficients of these names go as the likelihood rises."""
        steps = self.ways[self.diverging].tolist()
        up = [name for name, step in zip(names, steps, strict=True) if step > 0]
        down = [name for name, step in zip(names, steps, strict=True) if step < 0]
        if len(names) == 1:
            return " (it goes to +inf)" if up else " (it goes to -inf)" if down else ""
        parts = [f"to {end}inf: {listed(part)}" for end, part in (("+", up), ("-", down)) if part]
        return f" ({'; '.join(parts)})" if parts else ""

    def sentence(self) -> str:
        """Return ``sentences()`` as one text."""
        return " ".join(self.sentences())
