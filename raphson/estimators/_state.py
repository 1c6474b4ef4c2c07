"""What is kept of a fitted estimator when it is saved or pickled: numbers and names, no rows and no code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError, NotEstimableError
from raphson.infer import Estimates
from raphson.linalg import Dense
from raphson.solve import Solution, Status

_COVARIANCE_COEFFICIENTS = 3000
"""The covariance is saved with the model up to this many coefficients (72 MB)."""

_FACTS = ("loglik_", "loglik_null_", "df_model_", "df_null_", "n_obs_", "n_iter_", "n_features_in_")


def state_dict(model: Any) -> dict[str, Tensor]:
    """Return the tensors that a fitted estimator consists of, by name."""
    state = {"coef": torch.from_numpy(model.coef_), "intercept": torch.from_numpy(model.intercept_)}
    if len(model._coefficient_labels()) <= _COVARIANCE_COEFFICIENTS:
        try:
            estimates = model.estimates()
        except NotEstimableError:
            return state
        state["covariance"] = estimates.covariance.to_dense().contiguous()
        state["estimable"] = estimates.estimable
        if estimates.null_space is not None:
            state["null_space"] = estimates.null_space.contiguous()
    return state


def metadata(model: Any) -> dict[str, Any]:
    """Return the names and facts of a fitted estimator, ready for JSON."""
    solution = model.solution_
    return {
        "names": list(model._names),
        "named": hasattr(model, "feature_names_in_"),
        "facts": {name: getattr(model, name) for name in _FACTS},
        "solution": {
            "status": solution.status.name,
            "value": solution.value,
            "gradient_norm": solution.gradient_norm,
            "iterations": solution.iterations,
            "method": solution.method,
        },
        "refusal": model._refusal,
        "notes": model._notes(),
        "penalty": model._penalty,
    }


def class_labels(classes: NDArray[Any]) -> dict[str, Any]:
    """Return labels of classes, ready for JSON."""
    return {"dtype": str(classes.dtype), "values": classes.tolist()}


def restore_classes(labels: dict[str, Any]) -> NDArray[Any]:
    """Return the labels that ``class_labels`` was given."""
    dtype = object if labels["dtype"].startswith(("object", "str")) else labels["dtype"]
    found: NDArray[Any] = np.array(labels["values"], dtype=dtype)
    return found


def restore(model: Any, tensors: dict[str, Tensor], facts: dict[str, Any], outputs: str) -> None:
    """Fill an unfitted estimator, whose outputs and columns are named, with what it was saved with.

    Args:
        model: The estimator.
        tensors: What ``state_dict`` returned.
        facts: What ``metadata`` returned.
        outputs: What a row of the coefficients belongs to, in the plural.

    Raises:
        InputError: If the two do not belong together.
    """
    shape = len(model._output_names()), len(model._names)
    if tuple(tensors["coef"].shape) != shape:
        raise InputError(
            f"The saved coefficients have shape {tuple(tensors['coef'].shape)}, but the model has "
            f"{shape[0]} {outputs} and {shape[1]} columns; the files do not belong together."
        )
    model.coef_, model.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
    for name in _FACTS:
        setattr(model, name, facts["facts"][name])
    if facts["named"]:
        model.feature_names_in_ = np.array(model._names, dtype=object)
    known = facts["solution"]
    model.solution_ = Solution(
        theta=torch.zeros(0),
        status=Status[known["status"]],
        value=known["value"],
        gradient_norm=known["gradient_norm"],
        iterations=known["iterations"],
        method=known["method"],
    )
    model._refusal, model._saved_notes, model._penalty = facts["refusal"], facts["notes"], facts["penalty"]
    model.separation_ = model.collinearity_ = None
    model._fitted = model._training = None
    model._estimates_cache = {}
    if "covariance" in tensors:
        model._estimates_cache["observed", None, "sampling"] = Estimates(
            values=torch.from_numpy(model._reported()).reshape(-1),
            covariance=Dense(tensors["covariance"]),
            labels=model._coefficient_labels(),
            kind="observed information",
            estimable=tensors["estimable"],
            null_space=tensors.get("null_space"),
            axis_names=model._axis_names,
        )
