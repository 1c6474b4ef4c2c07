"""Clusters of the training rows: labels, or the name of a column, to numbers from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators.input._aligned import check_index
from raphson.estimators.input._arrays import plain_values
from raphson.estimators.input._rows import Rows
from raphson.estimators.input._validate import check_length, missing_entries

_ENOUGH = 40
"""Clusters from which their standard errors are usually trusted (Cameron and Miller 2015, J. Human Resources 50)."""


def group_codes(groups: Any, rows: Rows) -> Tensor:
    """Return the cluster of each row that was fitted, ``(n,)``, from labels of all rows given or a column's name."""
    if isinstance(groups, str):
        values = _column(groups, rows)
    else:
        check_index(rows.index, groups, "groups")
        values = np.asarray(plain_values("groups", groups))
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise InputError(f"groups has shape {values.shape}; give one label per row, ({rows.n_given},).")
        check_length("groups", len(values), rows.n_given)
        values = values[rows.kept]
    missing = missing_entries(values)
    if missing.any():
        raise InputError(f"groups has {int(missing.sum())} missing labels; give each row a cluster.")
    codes = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)[1]
    if codes.max() < 1:
        raise InputError("groups holds a single cluster; a clustered covariance needs at least two.")
    return torch.as_tensor(codes)


def few_clusters(groups: Any, rows: Rows) -> list[str]:
    """Return what to say of standard errors by few clusters, which are too small; nothing of many."""
    count = int(group_codes(groups, rows).max()) + 1
    if count >= _ENOUGH:
        return []
    return [
        f"There are {count} clusters: standard errors by fewer than about {_ENOUGH} tend to be too small. Judge z by "
        f"Student's t with {count - 1} degrees of freedom."
    ]


def _column(name: str, rows: Rows) -> NDArray[Any]:
    if rows.frame is None:
        raise InputError(
            f"groups='{name}' names a column, and the model was fitted without a formula, so that the table is not "
            f"kept; pass the column itself, groups=frame['{name}']."
        )
    if name not in rows.frame.columns:
        raise InputError(f"The training table has no column '{name}' for groups.")
    values: NDArray[Any] = np.asarray(rows.frame[name])
    return values
