"""Saved models: a directory with ``model.json`` and ``tensors.safetensors``, and no pickle.

Loading runs no code from the files: classes come from a fixed list, tensors from safetensors, everything else
from JSON. Both files are checked by their SHA-256 sums, and a truncated or changed one is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch

import raphson
from raphson import _json
from raphson._errors import InputError
from raphson.table import Design

FORMAT = "raphson-model"
FORMAT_VERSION = 1
MODEL_FILE = "model.json"
TENSOR_FILE = "tensors.safetensors"

_CLASSES = {"MultinomialLogisticRegression": "raphson.estimators", "VectorGLM": "raphson.estimators"}


@dataclass(frozen=True)
class Saved:
    """What ``load`` returns.

    Attributes:
        model: The estimator, fitted.
        design: How a table becomes its matrix, or None if it was saved without.
    """

    model: Any
    design: Design | None


def save(model: Any, directory: str | Path, design: Design | None = None) -> None:
    """Save a fitted model; the directory appears whole or not at all.

    Args:
        model: A fitted raphson estimator.
        directory: Where to; a model that is already there is replaced, anything else is left alone.
        design: How a table becomes the model's matrix, so that it can predict from tables.

    Raises:
        InputError: If the directory holds something else or cannot be written, or the class is unknown.
    """
    target = check_target(directory)
    kind = type(model).__name__
    if kind not in _CLASSES:
        raise InputError(f"a {kind} cannot be saved; known are {', '.join(_CLASSES)}.")
    metadata = model.metadata()
    # A progress callback is a function of this session: it is left out, and the default takes its place. What is no
    # plain value (a likelihood) is described by the model itself.
    given = {name: value for name, value in model.get_params(deep=False).items() if name not in metadata}
    params = {name: value for name, value in given.items() if not callable(value)}
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "raphson": raphson.__version__,
        "class": kind,
        "params": _json.encode(params, f"a parameter of {kind}"),
        "metadata": _json.encode(metadata, f"the metadata of {kind}"),
        "design": None if design is None else design.to_json(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        safetensors.torch.save_file(tensors, part / TENSOR_FILE)
        content["tensors_sha256"] = _digest((part / TENSOR_FILE).read_bytes())
        content["sha256"] = _digest(_canonical(content))
        (part / MODEL_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        _put_in_place(part, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(directory: str | Path) -> Saved:
    """Load a model that ``save`` wrote.

    Args:
        directory: The directory.

    Returns:
        The fitted model and its design.

    Raises:
        InputError: If it is not a saved model, was changed or truncated, or has an unknown format.
    """
    folder = Path(directory)
    content = _read_model_file(folder / MODEL_FILE)
    kind = content["class"]
    if kind not in _CLASSES:
        raise InputError(f"{folder / MODEL_FILE}: the class {kind} is not known to raphson {raphson.__version__}.")
    tensor_file = folder / TENSOR_FILE
    try:
        data = tensor_file.read_bytes()
    except OSError as error:
        raise InputError(f"{tensor_file} cannot be read: {error.strerror}; save the model again.") from None
    if _digest(data) != content["tensors_sha256"]:
        raise InputError(f"{tensor_file} is not the file that was saved (truncated or changed); save the model again.")
    tensors = safetensors.torch.load(data)
    cls = getattr(import_module(_CLASSES[kind]), kind)
    model = cls.from_state(_json.decode(content["params"]), tensors, _json.decode(content["metadata"]))
    return Saved(model, None if content["design"] is None else Design.from_json(content["design"]))


def check_target(directory: str | Path) -> Path:
    """Return the directory as a path if a model may be saved there.

    Args:
        directory: Where a model is to be saved.

    Returns:
        The path, made absolute.

    Raises:
        InputError: If a file, or a directory that is neither empty nor a saved model, is there.
    """
    target = Path(directory).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; give a directory to save the model in.")
    if target.is_dir() and any(target.iterdir()) and not _holds_model(target):
        raise InputError(f"{target} holds files that are not a saved model; give a new directory.")
    return target


def _holds_model(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {MODEL_FILE, TENSOR_FILE}


def _read_model_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist; {file.parent} is not a saved model.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{file} is truncated or was changed; save the model again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not a raphson model file.")
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{file} has format version {content.get('format_version')}, this raphson reads "
            f"{FORMAT_VERSION}; load it with raphson {content.get('raphson')}."
        )
    claimed = content.pop("sha256", None)
    if claimed != _digest(_canonical(content)):
        raise InputError(f"{file} was changed after it was saved; save the model again.")
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _put_in_place(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``; a model already there moves aside, and back on failure."""
    if not target.exists():
        os.rename(part, target)
        return
    old = part.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(part, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)
