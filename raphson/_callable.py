"""Packages that bear the name of their function, as `raphson.laplace` does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_function"](*args, **kwargs)


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let a package be called as the function of its name, with that function's signature.

    Importing a package binds its name in `raphson`, where the function of that name must stay reachable.
    """
    module = sys.modules[package]
    module.__class__ = _CallableModule
    module.__dict__["_function"] = function
    module.__dict__["__signature__"] = inspect.signature(function)
