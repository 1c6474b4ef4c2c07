"""Containers of other libraries as NumPy arrays, pandas objects or SciPy matrices, or one clear sentence.

Torch tensors of every type and layout, tables of Polars and Arrow, structured, masked and byte-swapped arrays; what
follows meets arrays of the machine's own numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from raphson._errors import InputError

_EXACT = {np.dtype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")}


def plain_table(x: Any) -> Any:
    """Return a table as an array, a pandas frame or a SciPy sparse matrix.

    Nothing is copied that is one of these already. Whether its entries are numbers is not looked at.

    Raises:
        InputError: It is no table.
    """
    if type(x) is np.ndarray and x.dtype in _EXACT:
        return x
    if isinstance(x, Tensor):
        x = _from_tensor(x, "X")
    elif isinstance(x, np.ma.MaskedArray):
        x = without_mask(x)
    elif hasattr(x, "columns"):
        return _from_frame(x)
    elif x is None or isinstance(x, str | bytes | int | float | set | frozenset | Iterator):
        raise InputError(
            f"X is {_kind(x)}, but a table has rows and columns: pass a frame, an array (N, D) or a sparse matrix."
        )
    elif isinstance(x, Mapping) and not sp.issparse(x):
        raise InputError(
            "X is a dictionary, but a table has rows and columns; if its values are columns, pass pandas.DataFrame(X)."
        )
    if isinstance(x, np.ndarray):
        if x.dtype.names is not None:
            return _from_fields(x)
        x = _native(np.asarray(x))
    return x


def plain_values(name: str, values: Any) -> Any:
    """Return targets, weights, offsets or labels as an array, a pandas object or a list; None and numbers as they are.

    Raises:
        InputError: They are a sparse matrix, a set, a dictionary, an iterator, or a tensor without values.
    """
    if values is None or (type(values) is np.ndarray and values.dtype in _EXACT):
        return values
    if isinstance(values, Tensor):
        values = _from_tensor(values, name)
    if sp.issparse(values):
        raise InputError(f"{name} is a sparse matrix; pass it as an array, {name}.toarray(), with one entry per row.")
    if isinstance(values, set | frozenset | Mapping | Iterator):
        raise InputError(
            f"{name} is {_kind(values)}, which has no entry for each row in their order; pass an array or a list."
        )
    module = type(values).__module__.partition(".")[0]
    if module in ("pyarrow", "polars") or (hasattr(values, "columns") and not hasattr(values, "iloc")):
        values = _to_pandas(values, name)
    if isinstance(values, np.ma.MaskedArray):
        values = without_mask(values)
    elif module != "pandas" and hasattr(values, "__array__"):
        values = np.asarray(values)
    if isinstance(values, np.ndarray):
        if values.dtype.names is not None:
            first = values.dtype.names[0]
            raise InputError(
                f"{name} is an array of records with the fields {', '.join(values.dtype.names[:12])}; pass one of "
                f"them, such as {name}['{first}']."
            )
        values = _native(np.asarray(values))
    return values


def without_mask(values: Any) -> Any:
    """Return an argument with what a masked array hides as NaN, so that it counts as missing; others as they are."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.names is not None:
        return values
    if not np.ma.getmaskarray(values).any():
        return np.asarray(values)
    return np.ma.filled(values.astype(np.float64 if values.dtype.kind in "biuf" else object), np.nan)


def _from_tensor(tensor: Tensor, name: str) -> Any:
    """Return a tensor as an array, of a sparse one with two axes as a SciPy matrix, in float64 what NumPy lacks."""
    given = type(tensor).__name__ if type(tensor) is not Tensor else f"tensor of layout {tensor.layout}"
    if tensor.is_meta:
        raise InputError(f"{name} is a tensor on the meta device, which has no values; pass one that has.")
    try:
        if tensor.is_nested:
            raise InputError(f"{name} is a nested tensor, whose rows have lengths of their own; pass one rectangle.")
        tensor = tensor.detach().cpu()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout is torch.sparse_coo:
            tensor = tensor.coalesce() if not tensor.is_floating_point() else tensor.double().coalesce()
        if tensor.layout is not torch.strided:
            if tensor.ndim == 2 and name == "X" and tensor.layout in _SPARSE and not tensor.dense_dim():
                return _from_sparse(tensor)
            tensor = tensor.to_dense()
        return _strided(tensor)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name} is a {given}, whose values cannot be read ({reason}); pass an ordinary tensor or an array."
        ) from None


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _from_sparse(tensor: Tensor) -> Any:
    shape = tuple(tensor.shape)
    values = _strided(tensor.values())
    if tensor.layout is torch.sparse_coo:
        return sp.coo_matrix((values, tensor.indices().numpy()), shape=shape)
    if tensor.layout is torch.sparse_bsc:
        return _from_sparse(tensor.to_dense().to_sparse())
    if tensor.layout is torch.sparse_csc:
        return sp.csc_matrix((values, tensor.row_indices().numpy(), tensor.ccol_indices().numpy()), shape=shape)
    build = sp.csr_matrix if tensor.layout is torch.sparse_csr else sp.bsr_matrix
    return build((values, tensor.col_indices().numpy(), tensor.crow_indices().numpy()), shape=shape)


def _strided(tensor: Tensor) -> Any:
    tensor = tensor.resolve_conj().resolve_neg()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and the types of eight bits, of which float64 holds each value
        return tensor.double().numpy()


def _from_frame(x: Any) -> Any:
    """Return a frame of any library as one of pandas, with columns that are sparse about zero or dense."""
    import pandas as pd

    if not isinstance(x, pd.DataFrame):
        x = _to_pandas(x, "X")
        if not isinstance(x, pd.DataFrame):
            raise InputError(f"X is a {type(x).__name__}, not a table; pass a pandas frame or an array.")
    kinds = list(x.dtypes)
    is_sparse = [isinstance(kind, pd.SparseDtype) for kind in kinds]
    if not any(is_sparse) or (all(is_sparse) and all(kind.fill_value == 0 for kind in kinds)):
        return x
    columns = [x.iloc[:, j].sparse.to_dense() if sparse else x.iloc[:, j] for j, sparse in enumerate(is_sparse)]
    return pd.concat(columns, axis=1)


def _to_pandas(x: Any, name: str) -> Any:
    convert = getattr(x, "to_pandas", None)
    if convert is None:
        what = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
        first = "collect() it first" if hasattr(x, "collect") else "compute() it first" if hasattr(x, "compute") else ""
        raise InputError(f"{name} is a {what}; {first or 'pass a pandas or Polars frame, or an array'}.")
    try:
        return convert()
    except ImportError as error:
        raise InputError(f"{name} is a {type(x).__name__}, which becomes a pandas object with a package that is not "
                         f"installed ({error}); pass {name}.to_numpy().") from None  # fmt: skip


def _from_fields(x: Any) -> Any:
    import pandas as pd

    odd = next((field for field in x.dtype.names if x[field].ndim != 1), None)
    if x.ndim != 1 or odd is not None:
        where = f"its field '{odd}' has several values a row" if odd is not None else f"its shape is {x.shape}"
        raise InputError(f"X is an array of records that is no table: {where}; pass a frame or an array of numbers.")
    return pd.DataFrame({field: _native(np.asarray(without_mask(x[field]))) for field in x.dtype.names})


def _native(array: Any) -> Any:
    """Return an array in the byte order of the machine, which pandas and torch need."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        return f"the text {value!r:.40}"
    if isinstance(value, int | float):
        return f"the number {value}"
    names = {"set": "a set", "frozenset": "a set", "generator": "a generator"}
    if isinstance(value, Mapping):
        return "a dictionary"
    return names.get(type(value).__name__, f"an iterator ({type(value).__name__})")
