"""Gradients, Jacobians and Hessians of likelihood losses with their structure.

``import raphson`` is light: a name brings in its module, and PyTorch with it, on first use. The names are those of the
stub beside this file, which type checkers read.
"""

from __future__ import annotations

import gc
import re
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME = {name: package for package, name in re.findall(r"^from \.(\w*) import (\w+) as", _STUB, re.MULTILINE)}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raphson' has no attribute '{name}'")
    home, collects = _HOME[name], gc.isenabled()
    gc.disable()  # nothing that PyTorch and the others make is garbage: to look through it takes 0.3 s of 2
    try:
        value = getattr(import_module(f"raphson.{home}"), name) if home else import_module(f"raphson.{name}")
    finally:
        if collects:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
