"""Posteriors as one safetensors file: tensors, and a description in JSON beside them. No row of data, no code."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import tree_map
from raphson.laplace._evidence import Residuals
from raphson.laplace._prior import Prior
from raphson.likelihoods import Likelihood, from_description, to_description
from raphson.linalg import HALF, BlockDiagonal, Permuted, SymmetricOperator, from_state_dict
from raphson.network import KnownOrder, LayerOperator, Model, Objective

if TYPE_CHECKING:
    from raphson.laplace._posterior import Posterior

_FORMAT = "raphson-posterior"
_VERSION = 2


def tensors_of(post: Posterior) -> dict[str, Tensor]:
    """Return the tensors of a posterior by name."""
    found = {
        "mean": post.mean,
        "prior": post.prior.values,
        "group": post.prior.group,
        "gradient": post.gradient,
        **{f"curvature.{name}": t for name, t in post.curvature.state_dict().items()},
    }
    if post.entries is not None:
        found["entries"] = post.entries
    if post.factors is not None:
        found |= {f"factors.{name}": t for name, t in post.factors.state_dict().items()}
    inputs: dict[str, Tensor] = {}
    x = post.objective.example_inputs()
    _packed(x, inputs)
    values = post.objective.model.everything
    found["output"] = _outputs(post.objective, x)
    return found | inputs | {f"parameter.{name}": value for name, value in values.items()}


def without_data(objective: Objective) -> Objective:
    """Return the same network with made-up examples in place of its data: for predictions."""
    model, likelihood = objective.model, objective.likelihood
    return objective_of(model.function, likelihood, objective.example_inputs(), objective.space.names, model.everything)


def objective_of(
    model: Any, likelihood: Likelihood, x: Any, names: Iterable[str], params: Mapping[str, Tensor]
) -> Objective:
    """Return an objective of a few inputs alone, with targets drawn from the model.

    ``names`` are the parameters that are differentiated, ``params`` those of a function, all of them.
    """
    chosen: Any = list(names) if isinstance(model, nn.Module) else dict(params)
    made = Model(model, chosen)
    with torch.no_grad():
        f = made.call(None, x)
    y = likelihood.sample(f, torch.Generator(f.device).manual_seed(0))
    whole = Objective(model, likelihood, (x, y), params=chosen)
    return whole if isinstance(model, nn.Module) else whole.restricted(list(names))


def parameters_of(objective: Objective) -> list[str] | dict[str, Tensor]:
    """Return what tells an objective of other data which parameters are differentiated."""
    model = objective.model
    return list(objective.space.names) if model.module is not None else model.everything


def description_of(post: Posterior) -> dict[str, Any]:
    """Return the rest of a posterior as plain values."""
    objective, rest = post.objective, post.residuals
    try:
        likelihood = to_description(objective.likelihood)
    except InputError:  # made from code: whoever loads it has to bring it along
        likelihood = None
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "structure": post.structure,
        "parameters": list(objective.space.names),
        "likelihood": likelihood,
        "keys": list(post.prior.keys),
        "loss": post.loss,
        "total_weight": post.total_weight,
        "temperature": post.temperature,
        "bias": post.bias,
        "kind": post.kind,
        "residuals": None if rest is None else [rest.total, rest.count, rest.scale, rest.constant],
        "curvature": _kind(post.curvature),
        "factors": None if post.factors is None else _kind(post.factors),
        "x": _packed(objective.example_inputs(), {}),
    }


def _kind(operator: SymmetricOperator) -> dict[str, Any]:
    """Return what a state_dict leaves out of an operator."""
    if not isinstance(operator, LayerOperator):
        return {"kind": type(operator).__name__}
    return {
        "kind": type(operator.operator).__name__,
        "names": operator.names,
        "exact": operator.exact,
        "inputs": operator.inputs,
    }


def _operator(described: dict[str, Any], tensors: Mapping[str, Tensor], labels: tuple[str, ...] | None) -> Any:
    """Return the operator of tensors with a description."""
    made = from_state_dict(described["kind"], tensors, labels=labels)
    if "names" not in described:
        return made
    inner = made.operator if isinstance(made, Permuted) else made
    assert isinstance(inner, BlockDiagonal)
    order = made.index if isinstance(made, Permuted) else torch.arange(made.shape[-1], device=made.device)
    names, exact, inputs = (tuple(described[what]) for what in ("names", "exact", "inputs"))
    return LayerOperator(inner.blocks, names, exact, KnownOrder(order), inputs, labels=labels)


def _packed(x: Any, found: dict[str, Tensor]) -> Any:
    """Return the form of inputs as plain values, and put their tensors among those found."""
    if isinstance(x, Tensor):
        found[f"input.{len(found)}"] = x
        return {"tensor": f"input.{len(found) - 1}"}
    if isinstance(x, Mapping):
        return {"dict": {str(key): _packed(value, found) for key, value in x.items()}}
    if isinstance(x, tuple | list):
        return {"tuple": [_packed(value, found) for value in x]}
    return {"value": x}


def _unpacked(form: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in form:
        return tensors[form["tensor"]]
    if "dict" in form:
        return {key: _unpacked(value, tensors) for key, value in form["dict"].items()}
    return tuple(_unpacked(value, tensors) for value in form["tuple"]) if "tuple" in form else form["value"]


def save(post: Posterior, file: str | Path) -> None:
    """Write a posterior to a file."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors_of(post).items()}
    metadata = {"raphson": json.dumps(description_of(post))}
    try:
        safetensors.torch.save_file(tensors, str(file), metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description in a file; ``InputError`` if it holds no posterior."""
    try:
        with safetensors.safe_open(str(file), "pt") as opened:
            described = json.loads((opened.metadata() or {}).get("raphson", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} cannot be read as a posterior: {error}.") from None
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise InputError(f"{file} holds no posterior: it was not written by Posterior.save.")
    if described.get("version") != _VERSION:
        raise InputError(f"{file} has version {described.get('version')}, and this raphson reads {_VERSION}.")
    return tensors, described


def fields_of(
    tensors: dict[str, Tensor],
    described: dict[str, Any],
    model: nn.Module | Callable[..., Tensor],
    likelihood: Likelihood | None,
) -> dict[str, Any]:
    """Return the fields of a posterior from a file, by name.

    Args:
        tensors: Its tensors.
        described: Its description.
        model: The network that it is of; its parameters are taken from the file, in a copy.
        likelihood: For a likelihood that is made from code; None for one that the file describes.

    Raises:
        InputError: The model has other parameters, or the likelihood is missing.
    """
    if described["version"] != _VERSION:
        raise InputError(f"The posterior has version {described['version']}, and this raphson reads {_VERSION}.")
    if described["likelihood"] is not None:
        likelihood = from_description(described["likelihood"])
    if likelihood is None:
        raise InputError("This posterior's likelihood is made from code, which no file holds: give it as likelihood=.")
    params = _below("parameter", tensors)
    if isinstance(model, nn.Module):
        model = filled(model, params)
    x = _unpacked(described["x"], tensors)
    device = next(iter(model.parameters())).device if isinstance(model, nn.Module) else torch.device("cpu")
    x = tree_map(lambda t: t.to(device), x)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    objective = objective_of(model, likelihood, x, described["parameters"], params)
    entries = tensors.get("entries")
    labels = objective.space.labels()
    if labels is not None and entries is not None:
        labels = tuple(labels[i] for i in entries.tolist())
    factors, residuals = described["factors"], described["residuals"]
    n = objective.n_parameters if entries is None else len(entries)
    _refuse_other(tensors, described, objective, n)
    curvature = _operator(described["curvature"], _below("curvature", tensors), labels)
    if curvature.shape != (n, n):
        seen = tuple(curvature.shape)
        raise InputError(f"The posterior has a curvature of shape {seen} for {n} parameters. {_CHANGED}")
    return {
        "objective": objective,
        "structure": described["structure"],
        "curvature": curvature,
        "prior": Prior(tuple(described["keys"]), tensors["prior"], tensors["group"]),
        "mean": tensors["mean"],
        "loss": described["loss"],
        "gradient": tensors["gradient"],
        "total_weight": described["total_weight"],
        "temperature": described["temperature"],
        "bias": described["bias"],
        "kind": described["kind"],
        "versions": objective.model.versions(),
        "entries": entries,
        "residuals": None if residuals is None else Residuals(*residuals),
        "factors": None if factors is None else _operator(factors, _below("factors", tensors), labels),
        "complete": False,
    }


_CHANGED = "The file was changed, or is of another network or version."


def _outputs(objective: Objective, x: Any) -> Tensor:
    with torch.no_grad():
        return objective.model.call(None, x)


def _refuse_other(tensors: Mapping[str, Tensor], described: Mapping[str, Any], objective: Objective, n: int) -> None:
    """Refuse tensors that do not fit each other, and a network that computes something else than the one they are of.

    Args:
        tensors: The tensors.
        described: The description.
        objective: The network with the saved parameters.
        n: Number of parameters.

    Raises:
        InputError: They do not.
    """
    known = {"mean", "prior", "group", "gradient", "entries", "output"}
    for name, t in tensors.items():
        if name not in known and name.partition(".")[0] not in {"curvature", "factors", "input", "parameter"}:
            raise InputError(f"The posterior has a tensor '{name}', which this version does not know. {_CHANGED}")
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise InputError(f"The posterior's tensor '{name}' has entries that are not finite. {_CHANGED}")
    keys = described["keys"]
    for name, size in (("mean", n), ("gradient", n), ("group", n), ("prior", len(keys))):
        if tensors[name].shape != (size,):
            seen = tuple(tensors[name].shape)
            raise InputError(f"The posterior's '{name}' has shape {seen}, not ({size},). {_CHANGED}")
    group = tensors["group"]
    if group.is_floating_point() or not bool(((group >= 0) & (group < len(keys))).all()):
        raise InputError(f"The posterior's 'group' does not name one of {len(keys)} priors for each entry. {_CHANGED}")
    missing = [name for name in objective.model.everything if f"parameter.{name}" not in tensors]
    if missing:
        raise InputError(f"The posterior has no parameter '{missing[0]}', which the model has. {_CHANGED}")
    found, saved = _outputs(objective, _unpacked(described["x"], tensors)), tensors["output"]
    if found.shape != saved.shape or not bool((found - saved).abs().max() <= _SAME * saved.abs().max()):
        raise InputError(
            "With the parameters of the posterior the model gives other outputs than the one that it is of: it has "
            "other activations, buffers (running statistics are not in the file) or layers. Give that network."
        )


_SAME = 1e-2
"""Share of the largest output by which those of the same network may differ, on other devices or in other precision."""


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def filled(model: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with these parameters; ``InputError`` where it has none of a name or shape."""
    module = copy.deepcopy(model)
    if any(p.dtype in HALF for p in module.parameters()):  # a posterior of one is of its copy in single precision
        module = module.float()
    own = dict(module.named_parameters())
    for name, value in params.items():
        if name not in own or own[name].shape != value.shape:
            what = "has none of that name" if name not in own else f"has shape {tuple(own[name].shape)}"
            raise InputError(
                f"The posterior has a parameter '{name}' of shape {tuple(value.shape)}, and the model {what}: give the "
                "network that the posterior was made of."
            )
    with torch.no_grad():
        for name, value in params.items():
            own[name].copy_(value)
    return module
