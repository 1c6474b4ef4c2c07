"""Where in a model a call is made, and what a model that cannot be run says, for the words of a refusal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raphson._errors import InputError, RaphsonError
from raphson.data import tree_map

_OWN_WORDS = (RaphsonError, NotImplementedError, torch.OutOfMemoryError)
"""Errors in a model that say what they mean: only those of operands that do not fit are put in other words."""


@contextmanager
def runnable(model: Any, x: Any, parameters: torch.dtype) -> Generator[None, None, None]:
    """Turn an error of a model that is run inside into a sentence on its inputs, and where in the model it was.

    Args:
        model: The module or function.
        x: Its inputs; None where they are not known.
        parameters: Type of its parameters.

    Yields:
        Nothing.

    Raises:
        InputError: The model cannot be run.
    """
    try:
        yield
    except _OWN_WORDS:
        raise
    except Exception as error:
        if isinstance(error, IndexError):
            raise InputError(out_of_range(model, error)) from error
        found: list[Tensor] = []
        tree_map(found.append, x)
        other = [t.dtype for t in found if t.is_floating_point() and t.dtype != parameters]
        if other and "dtype" in str(error):
            raise InputError(
                f"The inputs have type {other[0]} and the parameters {parameters}: convert one of them, as in "
                "x.to(dtype) or model.to(dtype)."
            ) from error
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        place = place_of_call(model, innermost.tb_frame if innermost is not None else None)
        shapes = " and ".join(str(tuple(t.shape)) for t in found)
        inputs = f"inputs of shape {shapes}" if found else "these inputs"
        what = str(error).strip().split("\n")[0].rstrip(".!")
        if not what or isinstance(error, LookupError):  # whose words are a key
            what = f"{type(error).__name__} {what}".strip()
        if isinstance(x, Mapping) and isinstance(error, TypeError) and "argument" in what:
            raise InputError(
                f"The inputs {', '.join(map(str, x))} are given by name, model(**x), and {place} says: {what}. Name "
                "them as forward does, or, for a model that takes one dictionary, give a tuple that holds it, ({...},)."
            ) from error
        raise InputError(
            f"The model cannot be run on {inputs}. {place} says: {what}. Give inputs with the axes, sizes and type "
            "that the model was made for."
        ) from error


def out_of_range(model: Any, error: IndexError) -> str:
    """Return a sentence for an index that a model looks up and that is not there, with the table if that is known."""
    at, innermost, lookup = error.__traceback__, None, None
    while at is not None:
        innermost = at.tb_frame
        if innermost.f_code is F.embedding.__code__:
            lookup = innermost
        at = at.tb_next
    place = place_of_call(model, lookup or innermost)
    what = f"says: {str(error).rstrip('.')}"
    if lookup is not None:
        # tensors inside a transformation have no values of their own
        with contextlib.suppress(RuntimeError):
            indices, rows = lookup.f_locals["input"].detach(), lookup.f_locals["weight"].shape[0]
            first = ((indices < 0) | (indices >= rows)).nonzero()[0].tolist()
            what = (
                f"was given the index {int(indices[tuple(first)])}, at {first} of its indices, but its table has "
                f"{rows} rows, 0 to {rows - 1}"
            )
    return f"{place} {what}. Check the inputs for that index, or give the module a table with more rows."


def place_of_call(model: Any, frame: FrameType | None = None) -> str:
    """Return the innermost module or function of a model being called: ``"Module 'body.drop' (DropPath)"``."""
    names = {id(part): name for name, part in model.named_modules()} if isinstance(model, nn.Module) else {}
    function = ""
    frame = frame or sys._getframe(1)
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
