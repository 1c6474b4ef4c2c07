"""Whether two fits can be compared by their likelihoods: the same rows, and one table within the other's columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._rows import Rows, dense

_WORK = 4e9
"""Multiplications up to which columns are projected; larger tables are taken at their word."""

_WITHIN = 1e-6
"""Share of a column that may be left beside the others: bases of splines keep nine digits."""


def check_nested(full: Any, restricted: Any) -> None:
    """Refuse two fitted models of other rows, or one with columns outside the span of the other's.

    A difference of their offsets counts as a column: a coefficient that is given is restricted. Rows that are not
    known, of saved models, are not looked at.

    Raises:
        InputError: They are not comparable; the message names the column.
    """
    kinds = [(type(model._likelihood()), getattr(model._likelihood(), "link", None)) for model in (full, restricted)]
    if kinds[0] != kinds[1]:
        names = [f"{kind.__name__}{f' ({link})' if link else ''}" for kind, link in kinds]
        raise InputError(
            f"The full model has the likelihood {names[0]} and the restricted one {names[1]}, but a "
            "likelihood-ratio test compares fits of one likelihood; to choose between likelihoods, compare aic_."
        )
    one, other = full._training, restricted._training
    if one is None or other is None:
        return
    _check_rows(one, other)
    columns = _unmatched(full, restricted)
    added = _offset_columns(one, other, centered=full._likelihood().differences_only)
    sought: list[str | None] = [*(name for name, _ in columns), *([None] * added.shape[1])]
    if not sought:
        return
    base = dense(one.x)
    if base.shape[0] * (base.shape[1] + 1) * (base.shape[1] + len(sought)) > _WORK:
        return
    wanted = torch.cat([*(column for _, column in columns), added], 1)
    left = _left_beside(base, wanted, bool(full._layout.output_map.intercept))
    if not bool((left > _WITHIN).any()):
        return
    worst = sought[int(left.argmax())]
    what = "The difference of the models' offsets" if worst is None else f"The restricted model's column '{worst}'"
    raise InputError(
        f"{what} is no combination of columns of the full model, so the two are not nested, and the statistic has no "
        "chi-square distribution. Fit both to the same rows in the same order, with the same offset, or compare aic_."
    )


def _check_rows(one: Rows, other: Rows) -> None:
    if len(one.y) != len(other.y):
        raise InputError(
            f"The full model was fitted to {len(one.y)} rows and the restricted one to {len(other.y)}; their "
            "likelihoods are not comparable. Drop rows with missing values first and fit both to the rest."
        )
    if one.y.shape != other.y.shape or not torch.equal(one.y, other.y):
        raise InputError("The two models were not fitted to the same targets, so they are not nested.")
    weights = [torch.ones(len(one.y)) if rows.weights is None else rows.weights for rows in (one, other)]
    if not torch.equal(weights[0].double(), weights[1].double()):
        raise InputError("The two models were not fitted with the same weights, so they are not nested.")


def _unmatched(full: Any, restricted: Any) -> list[tuple[str, Tensor]]:
    """Return the columns ``(n, 1)`` of the restricted model that the full one does not have by name and value."""
    mine, found = {name: j for j, name in enumerate(full._layout.columns)}, []
    for j, name in enumerate(restricted._layout.columns):
        column = _column(restricted._training.x, j)
        if name not in mine or not torch.equal(column, _column(full._training.x, mine[name])):
            found.append((name, column))
    if restricted._layout.output_map.intercept and not full._layout.output_map.intercept:
        found.append(("(intercept)", torch.ones(len(full._training.y), 1, dtype=torch.float64)))
    return found


def _column(x: Any, j: int) -> Tensor:
    return torch.from_numpy(x[:, [j]].toarray()) if sp.issparse(x) else x[:, j : j + 1]


def _offset_columns(one: Rows, other: Rows, *, centered: bool) -> Tensor:
    """Return the differences of offsets that are not zero, ``(n, m)``."""
    zero = torch.zeros(len(one.y), 1, dtype=torch.float64)
    difference = (zero if one.offset is None else one.offset) - (zero if other.offset is None else other.offset)
    if centered and difference.shape[1] > 1:
        difference = difference - difference[:, :1]
    return difference[:, (difference != 0).any(0)]


def _left_beside(base: Tensor, wanted: Tensor, intercept: bool) -> Tensor:
    """Return the share of the norm of each column ``(m,)`` that no combination of the base's columns has."""
    parts = []
    for table in (base, wanted):
        size = table.abs().amax(0).clamp_min(1e-300)
        table = table / size
        parts.append(table - table.mean(0) if intercept else table)
    known, columns = (part.numpy() for part in parts)
    norms = np.linalg.norm(columns, axis=0)
    small = norms <= 1e-12 * np.sqrt(len(columns))  # constant beside an intercept
    length = np.linalg.norm(known, axis=0)
    known = known[:, length > 1e-12 * np.sqrt(len(known))]
    if known.shape[1]:
        known = known / np.linalg.norm(known, axis=0)
        columns = columns - known @ np.linalg.lstsq(known, columns, rcond=1e-12)[0]
    left = np.linalg.norm(columns, axis=0) / np.where(small, 1.0, norms)
    return torch.from_numpy(np.where(small, 0.0, left))
