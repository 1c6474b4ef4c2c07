"""The training rows with variables set to values, and the derivatives of their columns and offsets in a variable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError, NotEstimableError
from raphson.estimators.input._rows import Rows
from raphson.infer import binary_columns
from raphson.table import Variable

Settings = Mapping[str, Any]

_STEPS = (1e-3, 1e-4, 1e-5)
"""Of numeric derivatives, in units of the variable's range, and in those of its value. Five points are exact for
polynomials of degree four; a smaller step straddles fewer knots of a spline, a larger one rounds less."""
_ERROR = 1e-6
"""Error of a numeric derivative, relative to the largest of its column, above which there is none: a jump."""
_CENTRAL = ((-2.0, 1 / 12), (-1.0, -8 / 12), (1.0, 8 / 12), (2.0, -1 / 12))
_FORWARD = ((0.0, -25 / 12), (1.0, 48 / 12), (2.0, -36 / 12), (3.0, 16 / 12), (4.0, -3 / 12))


@dataclass(frozen=True)
class Recoding:
    """The training rows as a function of values of the variables.

    Attributes:
        variables: What each variable is, by name; those whose effects can be asked for.
        settable: Names that may be set to a value.
        columns: Values of the variables in the training rows, by name.
        encode: From columns that replace those of the training rows to features ``(n, D)`` and offsets ``(n, C)``.
    """

    variables: dict[str, Variable]
    settable: tuple[str, ...]
    columns: Callable[[str], Any]
    encode: Callable[[Settings], tuple[Tensor, Tensor]]

    def means(self, share: Tensor) -> dict[str, float]:
        """Return the averages of the variables that are numbers, with weights that sum to one, ``(n,)``."""
        numbers = [name for name, variable in self.variables.items() if variable.levels is None]
        return {name: float(share.numpy() @ np.asarray(self.columns(name), dtype=np.float64)) for name in numbers}

    def check(self, name: str) -> None:
        """Raise ``InputError`` unless there is a variable of this name."""
        if name not in self.settable:
            known = ", ".join(f"'{other}'" for other in self.settable[:12])
            raise InputError(f"The model has no variable '{name}'; its variables are {known}.")

    def slope(self, name: str, settings: Settings) -> tuple[Tensor, Tensor]:
        """Return derivatives of the features ``(n, D)`` and the offsets ``(n, C)`` in a variable that is a number.

        Raises:
            NotEstimableError: If a column jumps where a row lies.
        """
        if self.variables[name].linear:
            high, low = (self.encode({**settings, name: value}) for value in (1.0, 0.0))
            return high[0] - low[0], high[1] - low[1]
        observed = np.asarray(self.columns(name), dtype=np.float64)
        n = len(observed)
        z = np.full(n, float(settings[name])) if name in settings else observed
        reach = float(observed.max() - observed.min()) or 1.0
        best, error = None, torch.empty(0)
        for step in (*(np.full(n, reach * s) for s in _STEPS), *(np.where(z == 0, reach, abs(z)) * s for s in _STEPS)):
            one, two = (self._difference(name, settings, z, step * part, observed) for part in (1.0, 0.5))
            found = (one - two).abs()
            if best is None:
                best, error = two, found
            best, error = torch.where(found < error, two, best), torch.minimum(found, error)
        assert best is not None
        bad = error > _ERROR * best.abs().amax(0).clamp_min(1e-300)
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0])
            raise NotEstimableError(
                f"The model's columns jump in '{name}' at {z[row]:g}, so that there is no derivative. Compare values "
                f"instead: model.contrasts('{name}', [{observed.min():g}, {observed.max():g}])."
            )
        width = best.shape[1] - self.encode(settings)[1].shape[1]
        return best[:, :width], best[:, width:]

    def _difference(
        self, name: str, settings: Settings, z: np.ndarray[Any, Any], step: np.ndarray[Any, Any], seen: Any
    ) -> Tensor:
        """Return a difference of fourth order, from points inside the observed range where the row is."""
        side = np.where(z + 2 * step > seen.max(), -1.0, np.where(z - 2 * step < seen.min(), 1.0, 0.0))
        side = np.where((z > seen.max()) | (z < seen.min()), 0.0, side)
        rows, total = torch.from_numpy(step), None
        base = torch.cat(self.encode({**settings, name: z}), 1)  # the factors sum to zero: what stays the same is exact
        for i, (place, factor) in enumerate(_FORWARD):
            central = _CENTRAL[i] if i < len(_CENTRAL) else (0.0, 0.0)
            places = np.where(side == 0, central[0], side * place)
            factors = torch.from_numpy(np.where(side == 0, central[1], side * factor))
            change = torch.cat(self.encode({**settings, name: z + places * step}), 1) - base
            part = change * (factors / rows)[:, None]
            total = part if total is None else total + part
        assert total is not None
        return total


def recode_columns(rows: Rows, names: list[str], n_outputs: int, discrete: bool) -> Recoding:
    """Return the recoding of a table whose columns are variables; those of zeros and ones are switches if asked."""
    x = rows.dense_x()
    offset = x.new_zeros(x.shape[0], n_outputs) if rows.offset is None else rows.offset
    position = {name: i for i, name in enumerate(names)}
    switches = binary_columns(x) if discrete else torch.zeros(len(names), dtype=torch.bool)

    def encode(settings: Settings) -> tuple[Tensor, Tensor]:
        moved = x.clone() if settings else x
        for name, value in settings.items():
            try:
                numbers = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                numbers = np.array(np.nan)
            if not np.isfinite(numbers).all():
                raise InputError(f"'{name}' is set to {value!r:.40}, which is no number.")
            moved[:, position[name]] = torch.from_numpy(numbers)
        return moved, offset

    variables = {
        name: Variable(name, (0.0, 1.0) if switch else None, True)
        for name, switch in zip(names, switches.tolist(), strict=True)
    }
    return Recoding(variables, tuple(names), lambda name: x[:, position[name]].numpy(), encode)


def recode_formulas(estimator: Any, rows: Rows, discrete: bool) -> Recoding:
    """Return the recoding of a table by formulas: the rows are coded anew from its columns."""
    import pandas as pd

    from raphson.estimators.input._rows import dense

    frame, formulas, c = rows.frame, estimator._formulas, len(estimator.intercept_)
    zeros = torch.zeros(len(frame), c, dtype=torch.float64)
    inside = estimator._whole_offset(frame, None, len(frame), c)
    passed = zeros if rows.offset is None else rows.offset - (zeros if inside is None else inside)

    def encode(settings: Settings) -> tuple[Tensor, Tensor]:
        moved = frame.copy(deep=False)
        for name, value in settings.items():
            column = pd.Series(value, index=frame.index)
            dtype = frame[name].dtype
            moved[name] = column.astype(dtype) if isinstance(dtype, pd.CategoricalDtype) else column
            _refuse_missing(name, moved[name], value)
        added = estimator._whole_offset(moved, None, len(moved), c)
        return dense(estimator._table(moved)), passed if added is None else passed + added

    variables = {}
    for name, found in formulas.variables(frame).items():
        levels = found.levels
        if levels is None and discrete and set(pd.to_numeric(frame[name]).unique()) == {0, 1}:
            levels = (0.0, 1.0)
        variables[name] = Variable(name, levels, found.linear and name not in formulas.offset_reads)
    return Recoding(
        variables, tuple(sorted(formulas.reads)), lambda name: pd.to_numeric(frame[name]).to_numpy(float), encode
    )


def _refuse_missing(name: str, column: Any, value: Any) -> None:
    if bool(column.isna().any()):
        if not hasattr(column, "cat"):
            raise InputError(f"'{name}' is set to {value}, which is a missing value; set it to a number or a level.")
        raise InputError(f"'{value}' is no level of '{name}'; its levels are {list(column.cat.categories)}.")


def shown_value(value: Any) -> str:
    """Return a value as labels show it."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
