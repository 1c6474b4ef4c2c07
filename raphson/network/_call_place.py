"""Where in a model a call is made, for the words of a refusal."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn


def place_of_call(model: Any) -> str:
    """Return the innermost module or function of a model being called: ``"Module 'body.drop' (DropPath)"``."""
    names = {id(part): name for name, part in model.named_modules()} if isinstance(model, nn.Module) else {}
    function = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            name = names[id(part)]
            return f"Module '{name}' ({type(part).__name__})" if name else f"The model ({type(part).__name__})"
        if not frame.f_globals.get("__name__", "").startswith(("torch", "raphson")) and not function:
            function = frame.f_code.co_name
        if frame.f_code is getattr(model, "__code__", None):
            break
        frame = frame.f_back
    return f"The function '{function}'" if function else "The model"
