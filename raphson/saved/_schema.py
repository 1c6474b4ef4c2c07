"""What the fields of a saved model must hold, checked before an estimator is made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson._json import (
    FINITE,
    FLAG,
    NONNEGATIVE,
    NUMBER,
    TEXT,
    WHOLE,
    Check,
    either,
    instance,
    list_of,
    map_of,
    maybe,
    one_of,
    record,
    refuse,
)
from raphson.likelihoods import from_description, to_description
from raphson.solve import Status
from raphson.table import Design

_TEXTS = list_of(TEXT)
_LABEL = instance("a text, a number or a truth value", str, float, bool)
_ROWS = list_of(list_of(FINITE))


def _design(value: Any, name: str) -> None:
    Design.from_json(value)


def _likelihood(value: Any, name: str) -> None:
    record({"class": TEXT, "fields": instance("a mapping", dict)})(value, name)
    try:
        again = to_description(from_description(value))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise InputError(f"the field '{name}' describes no likelihood ({error}); the file was changed.") from None
    if repr(again) != repr(value):
        refuse(name, "the description of a likelihood", value)


def _has_intercept(design: dict[str, Any]) -> bool:
    return Design.from_json(design).fit_intercept


def _classes(value: Any, name: str) -> None:
    record({"dtype": TEXT, "values": list_of(_LABEL)})(value, name)
    values, text = value["values"], value["dtype"]
    try:
        dtype = np.dtype(object if text.startswith(("object", "str")) else text)
        fine = str(dtype) == text or dtype.kind == "O"
        fine = fine and dtype.itemsize <= 1 << 20 and repr(np.array(values, dtype=dtype).tolist()) == repr(values)
    except (TypeError, ValueError, OverflowError):
        fine = False
    if not fine or len(values) < 2 or len(set(map(str, values))) < len(values):
        refuse(name, "two or more different labels of one type", value)


_CONSTRAINT = either(TEXT, _TEXTS, instance("a name, names or a matrix", np.ndarray, list, tuple))
_SETTINGS: dict[str, Check] = {
    "l2": NONNEGATIVE,
    "penalty": one_of("ridge", "jeffreys"),
    "fit_intercept": FLAG,
    "solver": one_of("auto", "newton", "newton-cg", "gradient-descent", "sgd"),
    "tol": NONNEGATIVE,
    "max_iter": WHOLE,
    "warm_start": FLAG,
    "progress": FLAG,
}
_METADATA: dict[str, Check] = {
    "names": _TEXTS,
    "named": FLAG,
    "facts": record({
        **dict.fromkeys(("loglik_", "loglik_null_"), NUMBER),
        **dict.fromkeys(("df_model_", "df_null_", "n_iter_", "n_features_in_", "n_rows_"), WHOLE),
        "n_obs_": instance("a number above 0", float, least=math.ulp(0.0)),
    }),
    "solution": record({
        "status": one_of(*Status.__members__),
        "value": NUMBER,
        "gradient_norm": NONNEGATIVE,
        "iterations": WHOLE,
        "method": TEXT,
    }),
    "refusal": maybe(TEXT),
    "notes": _TEXTS,
    "ridge": NONNEGATIVE,
    "fractional": FLAG,
    "covariance": maybe(record({"kind": one_of("observed", "expected", "sandwich"), "name": TEXT})),
    "formulas": maybe(
        record({"target": maybe(TEXT), "event": maybe(TEXT), "designs": map_of(_design)}),
    ),
}
_LAYOUT = record({
    "outputs": _TEXTS,
    "columns": _TEXTS,
    "intercepts": _ROWS,
    "matrices": list_of(_ROWS),
    "matrix_of_column": list_of(WHOLE),
})
SCHEMA: dict[str, tuple[Check, Check]] = {
    "MultinomialLogisticRegression": (
        record(
            {
                **_SETTINGS,
                "reference": maybe(_LABEL),
                "formula": maybe(TEXT),
                "class_weight": maybe(either(one_of("balanced"), map_of(NONNEGATIVE, _LABEL))),
            },
            optional=True,
        ),
        record({"classes": _classes, "reference_position": maybe(WHOLE), **_METADATA}),
    ),
    "VectorGLM": (
        record(
            {
                **_SETTINGS,
                "formula": maybe(either(TEXT, map_of(TEXT))),
                "constraints": maybe(either(map_of(_CONSTRAINT), _CONSTRAINT)),
            },
            optional=True,
        ),
        record({
            "likelihood": _likelihood,
            "layout": _LAYOUT,
            "columns": maybe(map_of(list_of(TEXT, (list, tuple)))),
            "levels": maybe(list_of(TEXT, (list, tuple))),
            **_METADATA,
        }),
    ),
    "BayesianMLP": (
        record(
            {
                "hidden": list_of(WHOLE, (list, tuple)),
                "structure": one_of("dense", "diagonal", "kfac", "ekfac", "low_rank"),
                "activation": one_of("tanh", "relu", "silu", "gelu"),
                "members": WHOLE,
                **dict.fromkeys(("max_iter", "steps"), maybe(WHOLE)),
                "tol": NONNEGATIVE,
                "random_state": maybe(WHOLE),
            },
            optional=True,
        ),
        record({
            "likelihood": _likelihood,
            "names": maybe(_TEXTS),
            "classes": maybe(_classes),
            "bounds": list_of(NUMBER),
            "converged": FLAG,
            "posterior": TEXT,
        }),
    ),
}
"""By class: its constructor's arguments, and its metadata."""


def check_content(kind: str, params: Any, metadata: Any) -> None:
    """Check the arguments and metadata of a model; the first that is not as it must be is an ``InputError``."""
    if kind not in SCHEMA:
        return
    for check, value, name in zip(SCHEMA[kind], (params, metadata), ("params", "metadata"), strict=True):
        check(value, name)
    if kind == "BayesianMLP":
        return
    names = metadata["names"]
    _same("facts.n_features_in_", metadata["facts"]["n_features_in_"], len(names), "the number of names")
    if kind == "VectorGLM":
        layout, n_outputs = metadata["layout"], len(metadata["layout"]["outputs"])
        _same("layout.columns", layout["columns"], names, "the names")
        _same("layout.matrix_of_column", len(layout["matrix_of_column"]), len(names), "one for each name")
        if any(kind >= len(layout["matrices"]) for kind in layout["matrix_of_column"]):
            refuse("layout.matrix_of_column", "positions in layout.matrices", layout["matrix_of_column"])
        for matrix in (layout["intercepts"], *layout["matrices"]):
            if len(matrix) != n_outputs or len({len(row) for row in matrix}) > 1:
                refuse("layout", "matrices with a row for each output", matrix)
    else:
        if params.get("reference") not in (None, "first", "last", *metadata["classes"]["values"]):
            refuse("params.reference", "'first', 'last', null or a class", params["reference"])
        reference, n_classes = metadata["reference_position"], len(metadata["classes"]["values"])
        if (reference is None) != (params.get("reference", "first") is None) or (reference or 0) >= n_classes:
            refuse("reference_position", "the position of a class", reference)


def check_tensors(kind: str, params: Any, metadata: Any, tensors: dict[str, Tensor]) -> None:
    """Check names, types and shapes of a model's tensors against its metadata; a wrong one is an ``InputError``."""
    if kind not in SCHEMA:
        return
    if kind == "BayesianMLP":
        _check_network(params, metadata, tensors)
        return
    n_columns = len(metadata["names"])
    if kind == "VectorGLM":
        layout = metadata["layout"]
        n_outputs = len(layout["outputs"])
        widths = [len(matrix[0]) for matrix in layout["matrices"]]
        size = len(layout["intercepts"][0]) + sum(widths[i] for i in layout["matrix_of_column"])
    else:
        n_outputs = len(metadata["classes"]["values"])
        formulas = metadata["formulas"]
        left_out = formulas is not None and any(not _has_intercept(design) for design in formulas["designs"].values())
        intercept = params.get("fit_intercept", True) and not left_out
        size = (n_outputs - (params.get("reference", "first") is not None)) * (n_columns + intercept)
    shapes = {
        "coef": (n_outputs, n_columns),
        "intercept": (n_outputs,),
        "covariance_root": (size, size),
        "estimable": (size,),
        "null_space": (size, tensors["null_space"].shape[-1] if "null_space" in tensors else 0),
    }
    errors = set() if metadata["covariance"] is None else {"covariance_root", "estimable"}
    needed = {"coef", "intercept"} | errors
    if not errors:
        shapes = {name: shapes[name] for name in needed}
    if not needed <= set(tensors) <= set(shapes):
        refuse("tensors", f"{', '.join(shapes)}", sorted(tensors))
    for name, tensor in tensors.items():
        dtype = torch.bool if name == "estimable" else torch.float64
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype:
            refuse(f"tensors.{name}", f"of shape {shapes[name]} and {dtype}", (tuple(tensor.shape), tensor.dtype))


def _check_network(params: Any, metadata: Any, tensors: dict[str, Tensor]) -> None:
    """Check the columns and layers of a network, whose posterior checks itself."""
    columns = tensors.get("columns")
    if columns is None or columns.ndim != 2 or len(columns) != 2 or columns.dtype != torch.float64:
        refuse("tensors.columns", "means and standard deviations of the columns", columns)
    assert columns is not None
    if metadata["names"] is not None:
        _same("names", len(metadata["names"]), columns.shape[1], "one for each column")
    sizes = [columns.shape[1], *params.get("hidden", (50,))]
    members = params.get("members", 1)
    for member in range(members):
        prefix = "posterior." if members == 1 else f"posterior.{member}."
        for i, (inputs, outputs) in enumerate(zip(sizes, [*sizes[1:], None], strict=True)):
            layer = f"{prefix}parameter.{2 * i}"
            weight, bias = (tensors.get(f"{layer}.{name}") for name in ("weight", "bias"))
            if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
                refuse(f"tensors.{layer}", "a weight and a bias", sorted(tensors))
            assert weight is not None
            if weight.shape[1] != inputs or (outputs is not None and weight.shape[0] != outputs):
                refuse(f"tensors.{layer}.weight", f"of shape ({outputs}, {inputs})", tuple(weight.shape))


def check_width(design: Design, metadata: Any) -> None:
    """Check that a design makes as many columns as the model has; another number is an ``InputError``."""
    if metadata["names"] is not None:
        _same("design", len(design.names), len(metadata["names"]), "as many columns as the model has")


def _same(name: str, value: Any, expected: Any, what: str) -> None:
    if value != expected:
        refuse(name, f"{what} ({expected!r:.60})", value)
