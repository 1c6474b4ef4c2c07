"""Whether a saved state of K-FAC fits the optimizer that is to go on from it: looked at before anything is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.network import ParameterSpace
from raphson.optim._groups import OPTIONS

_REMEDY = "Nothing was loaded. Make the optimizer as it was made then, or begin anew with the parameters alone."


def refuse_other_state(
    state: Any, own: Mapping[str, Any], space: ParameterSpace, structure: str, averaging: bool
) -> None:
    """Refuse a state dictionary that is not one of an optimizer such as this one.

    Args:
        state: What was given.
        own: What ``state_dict`` returns now.
        space: The parameters.
        structure: How this one stores curvature.
        averaging: Whether it keeps an average of the iterates.

    Raises:
        InputError: It is that of another optimizer, network, likelihood, version or division into groups.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("kfac"), Mapping):
        raise InputError("This is not the state of a KFAC optimizer: it has no entry 'kfac'.")
    _check_groups(state.get("param_groups"), own["param_groups"])
    theirs, mine = state["kfac"], own["kfac"]
    _check_made_of(theirs, mine)
    _check_keys("", theirs, mine)
    for inner in ("length", "curvature"):
        _check_keys(f"{inner}: ", theirs[inner], mine[inner])
    for where, part, like in (("", theirs, mine), ("curvature: ", theirs["curvature"], mine["curvature"])):
        for name, value in part.items():
            _check_number(where + name, value)
            if name in {"count", "updates", "measured_at", "inverted_at", "averaged"} and type(value) is not type(
                like[name]
            ):
                raise InputError(
                    f"The saved '{where}{name}' is a {type(value).__name__}, not a whole number. {_REMEDY}"
                )
    dtype = space.dtype
    for name in ("previous", "gradient"):
        _check_tensor(name, theirs[name], (space.numel,), dtype, optional=True)
    if averaging:
        _check_average(theirs, space)
    curvature = theirs["curvature"]
    diagonal = curvature["diagonal"]
    if diagonal is not None:
        _check_tensor(
            "curvature: diagonal", diagonal, (diagonal.numel(),) if isinstance(diagonal, Tensor) else (), dtype
        )
    generator = curvature["generator"]
    if not isinstance(generator, Tensor) or generator.dtype != torch.uint8:
        raise InputError(f"The saved state of the generator is no tensor of bytes. {_REMEDY}")
    _check_blocks(curvature["blocks"], space, structure)


def _check_groups(theirs: Any, mine: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(theirs, list | tuple) or not all(isinstance(g, Mapping) and "params" in g for g in theirs):
        raise InputError(f"The saved state has no 'param_groups', which every torch optimizer's has. {_REMEDY}")
    for i, group in enumerate(theirs):
        for option in OPTIONS:
            if option not in group:
                raise InputError(f"Group {i} of the saved state has no '{option}'. {_REMEDY}")
            _check_number(f"{option} of group {i}", group[option])
    counts = [[len(group["params"]) for group in groups] for groups in (theirs, mine)]
    if counts[0] != counts[1]:
        raise InputError(
            f"This is the state of another network, or of other parameter groups: of {counts[0]} parameters by group, "
            f"where these have {counts[1]}. {_REMEDY}"
        )


def _check_made_of(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Compare the parameters and the likelihood, where the state says which they were."""
    if not {"parameters", "shapes"} <= theirs.keys():
        return
    pairs = [[(name, tuple(s)) for name, s in zip(x["parameters"], x["shapes"], strict=False)] for x in (theirs, mine)]
    other = next((pair for pair in zip(*pairs, strict=False) if pair[0] != pair[1]), None)
    if other is not None:
        (name, shape), (own, own_shape) = other
        raise InputError(
            f"This is the state of another network: it has a parameter '{name}' of shape {shape} where this one has "
            f"'{own}' of shape {own_shape}. {_REMEDY}"
        )
    if theirs.get("likelihood", mine["likelihood"]) != mine["likelihood"]:
        raise InputError(
            f"This is the state of another likelihood: its curvature is that of {theirs['likelihood']}, and here it is "
            f"{mine['likelihood']}. {_REMEDY}"
        )


def _check_keys(where: str, theirs: Any, mine: Mapping[str, Any]) -> None:
    if not isinstance(theirs, Mapping):
        raise InputError(f"The saved '{where.rstrip(': ')}' is a {type(theirs).__name__}, not a dictionary. {_REMEDY}")
    missing, unknown = sorted(mine.keys() - theirs.keys()), sorted(map(str, theirs.keys() - mine.keys()))
    if missing or unknown:
        parts = [f"lacks {', '.join(where + m for m in missing)}"] if missing else []
        parts += [f"has {', '.join(where + u for u in unknown)}, which this one does not know"] if unknown else []
        raise InputError(f"This is the state of another version of raphson: it {' and '.join(parts)}. {_REMEDY}")


def _check_number(name: str, value: Any) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    if isinstance(value, str) and name != "likelihood":
        raise InputError(f"The saved '{name}' is the text {value!r}, not a number. {_REMEDY}")
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        raise InputError(f"The saved '{name}' is {value}, which is not finite. {_REMEDY}")


def _check_tensor(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        seen = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"The saved '{name}' is {seen}, and a tensor {shape} of {dtype} belongs there. {_REMEDY}")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"The saved '{name}' has entries that are not finite. {_REMEDY}")


def _check_average(theirs: Mapping[str, Any], space: ParameterSpace) -> None:
    average = theirs["average"]
    if average is None:
        if theirs["count"]:
            raise InputError(
                "The saved state has no average of the iterates: it is of an optimizer with averaging=False, and this "
                f"one keeps one. {_REMEDY}"
            )
        return
    if not isinstance(average, list | tuple) or len(average) != len(space.names):
        raise InputError(f"The saved average of the iterates is not one of {len(space.names)} tensors. {_REMEDY}")
    for value, (name, tensor) in zip(average, space.tensors.items(), strict=True):
        _check_tensor(f"average of {name}", value, tuple(tensor.shape), space.dtype)


_MADE = {"kfac": "inverse", "ekfac": "vectors"}


def _check_blocks(blocks: Any, space: ParameterSpace, structure: str) -> None:
    """Look at what can be seen of blocks before a batch has shown which there are."""
    if not isinstance(blocks, Mapping):
        raise InputError(f"The saved factors are a {type(blocks).__name__}, not a dictionary by layer. {_REMEDY}")
    made = _MADE[structure]
    known = {f"{side}_{what}" for side in ("left", "right") for what in ("factor", made)} | {"moments"}
    for owner, block in blocks.items():
        if str(owner).partition(" (")[0] not in space.tensors or not isinstance(block, Mapping):
            raise InputError(
                f"The saved state has factors of '{owner}', which is no parameter of this network. {_REMEDY}"
            )
        other = sorted(block.keys() - known)
        if other or not {"left_factor", "right_factor"} <= block.keys():
            kind = next((kind for kind, word in _MADE.items() if kind != structure and f"left_{word}" in other), None)
            why = f"it was saved with structure='{kind}', and this optimizer has '{structure}'"
            if kind is None:
                why = f"it has {', '.join(map(str, block)) or 'nothing'}"
            raise InputError(f"The saved factors of '{owner}' are none of this optimizer: {why}. {_REMEDY}")
        for key, value in block.items():
            _check_tensor(
                f"{key} of {owner}", value, tuple(value.shape) if isinstance(value, Tensor) else (), space.dtype
            )


def refuse_other_factors(owner: str, shape: tuple[int, int, int], state: Mapping[str, Tensor]) -> None:
    """Refuse saved factors that do not fit the block of a layer.

    Args:
        owner: The weight of the layer.
        shape: ``(G, O, I)`` of its matrices, a bias included.
        state: The saved tensors.

    Raises:
        InputError: They are of another shape.
    """
    g, rows, columns = shape
    for key, value in state.items():
        n = rows if key.startswith("left") else columns
        fits = {(g, rows, columns)} if key == "moments" else {(g, n), (g, n, n)}
        if tuple(value.shape) not in fits:
            raise InputError(
                f"The saved state of the optimizer has for '{owner}' a {key} of shape {tuple(value.shape)}, which does "
                f"not fit its matrices {shape}: it is of another network, or of other options. Make the optimizer anew."
            )
