"""One linear relation between columns, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raphson.estimators._names import listed


@dataclass(frozen=True)
class Dependency:
    """One linear relation between columns, which holds in every row.

    Attributes:
        columns: Indices of the columns in it, ascending; the last is the one the relation is solved for.
        names: Their names.
        coefficients: The relation is ``constant + sum_j coefficients[j] * column_j = 0``, the last being 1.
        constant: Coefficient of the intercept; zero without one.
    """

    columns: tuple[int, ...]
    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    constant: float

    @property
    def kind(self) -> str:
        """``"zero"``, ``"constant"``, ``"duplicate"``, ``"total"`` (a constant sum) or ``"combination"``."""
        if len(self.columns) == 1:
            return "constant" if self.constant else "zero"
        if len(self.columns) == 2 and not np.isclose(self.coefficients[0], 1.0):
            return "duplicate"
        if self.constant and np.allclose(self.coefficients, 1.0, rtol=1e-6):
            return "total"
        return "duplicate" if len(self.columns) == 2 else "combination"

    def equation(self) -> str:
        """Return the relation solved for its last column, say ``c = a + b``."""
        terms = [(-c, f" {name}") for c, name in zip(self.coefficients[:-1], self.names[:-1], strict=True)]
        if self.constant or not terms:
            terms.append((-self.constant, ""))
        shown = terms if len(terms) <= 8 else terms[:7]
        text = ""
        for value, name in shown:
            size = f"{abs(value):.6g}"
            body = name.strip() if name and size == "1" else size + name
            text += (" - " if value < 0 else " + ") + body
        text = text[3:] if text.startswith(" + ") else "-" + text[3:]
        return f"{self.names[-1]} = {text}" + (f" + {len(terms) - 7} more terms" if shown is not terms else "")

    def sentence(self) -> str:
        """Return what was seen and the remedy, in whole sentences."""
        last, names = self.names[-1], listed(self.names)
        if self.kind == "zero":
            return f"Column '{last}' is zero in every row: its coefficient is not determined. Remedy: drop it."
        if self.kind == "constant":
            return (
                f"Column '{last}' is constant ({-self.constant:.6g}) beside the intercept: only the sum of "
                f"the two effects is determined. Remedy: drop '{last}', or fit without an intercept."
            )
        if self.kind == "duplicate":
            up_to = " exactly" if self.coefficients[0] == -1 and not self.constant else " up to scale"
            up_to += " and shift" if self.constant else ""
            return (
                f"Column '{last}' duplicates '{self.names[0]}'{up_to} ({self.equation()}): only their "
                "combined effect is determined. Remedy: drop one of the two; the fit stays the same."
            )
        if self.kind == "total":
            return (
                f"Columns {names} add up to {-self.constant:.6g} in every row, which the intercept already "
                "carries (the dummy-variable trap). Remedy: drop one of them or the intercept; "
                "the fit stays the same."
            )
        return (
            f"Column '{last}' is a linear combination of others: {self.equation()}. "
            f"Remedy: drop one of {names}; the fit stays the same."
        )
