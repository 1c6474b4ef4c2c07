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


def group_codes(groups: Any, rows: Rows) -> Tensor:
    """Return the cluster of each row that was fitted, ``(n,)``, from labels of all rows given or a column's name."""
    if isinstance(groups, str):
        values = _column(groups, rows)
    else:
        groups = plain_values("groups", groups)
        check_index(rows.index, groups, "groups")
        values = np.asarray(groups)
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
