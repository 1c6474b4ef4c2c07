"""Writing and reading a saved model: its two files, their checksums, and the classes that may be in them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

import raphson
from raphson import _json
from raphson._errors import InputError
from raphson.saved import _place
from raphson.saved._schema import SCHEMA, check_content, check_tensors, check_width
from raphson.table import Design

FORMAT = "raphson-model"
FORMAT_VERSION = 1
MODEL_FILE = "model.json"
TENSOR_FILE = "tensors.safetensors"

_FIELDS = {
    *("format", "format_version", "raphson", "class", "params", "metadata", "design", "tensors_sha256"),
}
_CLASSES = dict.fromkeys(("MultinomialLogisticRegression", "VectorGLM", "BayesianMLP"), "raphson.estimators")


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
    data = safetensors.torch.save(tensors)
    content["tensors_sha256"] = _digest(data)
    content["sha256"] = _digest(_canonical(content))
    try:
        with _place.aside(target) as part:
            _place.write(part / TENSOR_FILE, data)
            _place.write(part / MODEL_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())
            with _place.locked(target.parent):
                _refuse(target)  # again: others may have been here meanwhile
                _place.put(part, target)
                _place.clear(target, _is_ours)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None


def load(directory: str | Path) -> Saved:
    """Load a model that ``save`` wrote.

    Args:
        directory: The directory.

    Returns:
        The fitted model and its design.

    Raises:
        InputError: If it is not a saved model, was changed or truncated, or has an unknown format.
    """
    place = Path(directory).absolute()
    with _place.locked(place.parent, shared=place.exists()):
        folder = _place.recover(place, _is_whole)
        content, data = _read(folder)
    kind = content["class"]
    if kind not in _CLASSES:
        raise InputError(f"{folder / MODEL_FILE}: the class {kind} is not known to raphson {raphson.__version__}.")
    cls = getattr(import_module(_CLASSES[kind]), kind)
    try:
        tensors = safetensors.torch.load(data)
        params, metadata = _json.decode(content["params"]), _json.decode(content["metadata"])
        check_content(kind, params, metadata)
        check_tensors(kind, params, metadata, tensors)
        model = cls.from_state(params, tensors, metadata)
        design = None if content["design"] is None else Design.from_json(content["design"])
        if design is not None and kind in SCHEMA and metadata.get("formulas") is None:
            check_width(design, metadata)
        return Saved(model, design)
    except RecursionError:
        raise InputError(f"{folder / MODEL_FILE} is nested too deeply; it was changed.") from None
    except (InputError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded: {error}") from None


def check_target(directory: str | Path) -> Path:
    """Return the directory as a path if a model may be saved there.

    Args:
        directory: Where a model is to be saved.

    Returns:
        The path, made absolute. A file there, or a directory that is neither empty nor a saved model, is an
        ``InputError``.
    """
    target = Path(directory).absolute()
    with _place.locked(target.parent, shared=True):  # who saves there renames a directory twice under this lock
        _refuse(target)
    return target


def _refuse(target: Path) -> None:
    """Raise ``InputError`` where a model may not be saved; the parent must be locked."""
    try:
        if target.is_symlink():
            raise InputError(f"{target} is a link; give the directory itself to save the model in.")
        file = next((parent for parent in target.parents if parent.exists() and not parent.is_dir()), None)
        if file is not None:
            raise InputError(f"{target} cannot be made, because {file} is a file.")
        within = next((parent for parent in target.parents if (parent / MODEL_FILE).is_file()), None)
        if within is not None:
            raise InputError(f"{target} cannot be made: {within} is a saved model, which holds no other files.")
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; give a directory to save the model in.")
        if target.is_dir() and any(target.iterdir()) and not _is_whole(target):
            raise InputError(
                f"{target} holds files that are not a saved model, or a damaged one; give a new directory."
            )
    except OSError as error:
        raise InputError(f"{target} cannot be used: {error.strerror or error}.") from None


def _is_ours(folder: Path) -> bool:
    """Whether a directory holds no more than the files of a model, whole or not."""
    files = list(folder.iterdir())
    names = {path.name for path in files}
    return names <= {MODEL_FILE, TENSOR_FILE} and all(path.is_file() and not path.is_symlink() for path in files)


def _is_whole(folder: Path) -> bool:
    """Whether a directory holds a model as it was saved, and nothing else."""
    try:
        return _is_ours(folder) and bool(_read(folder))
    except (InputError, OSError):
        return False


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return what ``model.json`` holds, and the bytes of the tensors, after checking both sums."""
    content = _read_model_file(folder / MODEL_FILE)
    tensor_file = folder / TENSOR_FILE
    try:
        data = tensor_file.read_bytes()
    except OSError as error:
        raise InputError(f"{tensor_file} cannot be read: {error.strerror}; save the model again.") from None
    if _digest(data) != content["tensors_sha256"]:
        raise InputError(f"{tensor_file} is not the file that was saved (truncated or changed); save the model again.")
    return content, data


def _read_model_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist; {file.parent} is not a saved model.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{file} is truncated or was changed; save the model again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} is not a raphson model file.")
    if content.get("format_version") != FORMAT_VERSION or isinstance(content["format_version"], bool):
        raise InputError(
            f"{file} has format version {content.get('format_version')}, this raphson reads "
            f"{FORMAT_VERSION}; load it with raphson {content.get('raphson')}."
        )
    claimed = content.pop("sha256", None)
    try:
        changed = claimed != _digest(_canonical(content))
    except (RecursionError, UnicodeEncodeError):
        changed = True
    if changed or set(content) != _FIELDS or not isinstance(content["class"], str):
        raise InputError(f"{file} was changed after it was saved; save the model again.")
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
