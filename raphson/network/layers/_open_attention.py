"""PyTorch's attention with the calls inside it in sight of function modes.

``F.multi_head_attention_forward`` hands itself to a mode as a whole, when ``has_torch_function`` among its globals says
so. That private arrangement is used here only; ``tests/network/test_private_torch.py`` holds it.
"""

from __future__ import annotations

import types
from typing import Any

import torch.nn.functional as F


def open_attention(*args: Any, **kwargs: Any) -> Any:
    """Run the body of ``F.multi_head_attention_forward`` at once, so that a mode sees the calls in it."""
    func = F.multi_head_attention_forward
    closed = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    names = {**func.__globals__, **closed}
    copy = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy(*args, **kwargs)
