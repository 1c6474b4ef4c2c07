"""How to make a fit again: the call, seeds and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import raphson

_LIBRARIES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def reproduction(model: Any, command: str | None, seeds: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return names and values of what a fit was made with: its command (or arguments), seeds and versions."""
    libraries = []
    for name in _LIBRARIES:
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        ("Call", repr(model) if command is None else command),
        *((name, _seed(value)) for name, value in seeds.items()),
        ("raphson", raphson.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("Libraries", ", ".join(libraries)),
    )


def _seed(value: Any) -> str:
    return f"torch.Generator of seed {value.initial_seed()}" if hasattr(value, "initial_seed") else str(value)
