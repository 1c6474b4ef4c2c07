"""Gradients, Jacobians and Hessians of likelihood losses with their structure.

``import raphson`` is light: a name brings in its module, and PyTorch with it, on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._errors import CollinearityWarning as CollinearityWarning
    from ._errors import IndefiniteError as IndefiniteError
    from ._errors import InputError as InputError
    from ._errors import NotEstimableError as NotEstimableError
    from ._errors import RaphsonError as RaphsonError
    from ._errors import RaphsonWarning as RaphsonWarning
    from ._errors import SeparationWarning as SeparationWarning
    from ._errors import TooLargeError as TooLargeError

_ROOMS: dict[str, tuple[str, ...]] = {
    "_errors": (
        "CollinearityWarning",
        "IndefiniteError",
        "InputError",
        "NotEstimableError",
        "RaphsonError",
        "RaphsonWarning",
        "SeparationWarning",
        "TooLargeError",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raphson' has no attribute '{name}'")
    value = getattr(import_module(f"raphson.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
