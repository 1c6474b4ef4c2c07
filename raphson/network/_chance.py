"""What makes one forward pass differ from the next beside parameters and inputs: random numbers and buffers."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import types
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Chance:
    """The state of torch's generators for a device.

    Attributes:
        cpu: That of the processor's generator.
        other: That of the device's, where it has one of its own; else None.
    """

    cpu: Tensor
    other: Tensor | None

    @staticmethod
    def now(device: torch.device) -> Chance:
        """Return the present state."""
        own = torch.get_device_module(device).get_rng_state(device) if device.type in {"cuda", "xpu"} else None
        return Chance(torch.get_rng_state(), own)

    def restore(self, device: torch.device) -> None:
        """Put the generators back into this state."""
        torch.set_rng_state(self.cpu)
        if self.other is not None:
            torch.get_device_module(device).set_rng_state(self.other, device)


@contextmanager
def undisturbed(module: nn.Module | None, device: torch.device) -> Generator[None, None, None]:
    """Put generators and buffers (running statistics) back to what they were before what runs inside.

    Inside, the module has copies of its buffers: a graph that is made there, or was made before, can still be used.

    Args:
        module: The module whose buffers are looked after; None for a function.
        device: Its device.

    Yields:
        Nothing.
    """
    before = Chance.now(device)
    parts = [] if module is None else list(module.modules())
    buffers = [(part, name, b) for part in parts for name, b in part.named_buffers(recurse=False)]
    copies = {id(b): b.clone() for _, _, b in buffers}
    for part, name, b in buffers:
        setattr(part, name, copies[id(b)])
    try:
        yield
    finally:
        for part, name, b in buffers:
            setattr(part, name, b)
        before.restore(device)


@contextmanager
def statistics_unharmed(module: nn.Module | None) -> Generator[None, None, None]:
    """Put running statistics back where what runs inside raises: a batch that is refused must not stay in them.

    Args:
        module: The module; None for a function.

    Yields:
        Nothing.
    """
    parts = [] if module is None else [part for part in module.modules() if part.training]
    norms = [part for part in parts if isinstance(getattr(part, "running_mean", None), Tensor)]
    kept = [(b, b.clone()) for part in norms for b in part.buffers(recurse=False)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        raise


_DEPTH = 3
"""How far from a module or a function its random generators are looked for: attribute, function, closure."""


class Sources:
    """Generators of random numbers that a model may draw from unseen by PyTorch, and the states that they had.

    These are torch's on the processor, Python's and NumPy's, and such of the last two as the model holds in attributes,
    or its functions in closures and global names.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._own = _own_generators(model)
        self._before = self._states()
        self._kept = random.getstate(), np.random.get_state(legacy=False), [_state(g) for g in self._own]

    def drawn(self) -> str | None:
        """Return a sentence if random numbers were drawn since, and put the states of all but torch's back."""
        now = self._states()
        drawn = [name for name, state in self._before.items() if now[name] != state]
        random.setstate(self._kept[0])
        np.random.set_state(self._kept[1])
        for generator, state in zip(self._own, self._kept[2], strict=True):
            _restore(generator, state)
        if not drawn:
            return None
        return (
            f"The model draws random numbers (from {', '.join(drawn)}): the loss is then no fixed function of the "
            "parameters. Call model.eval(), or take the random part out of the model."
        )

    def _states(self) -> dict[str, Any]:
        return {
            "torch's generator": torch.get_rng_state().numpy().tobytes(),
            "Python's random": random.getstate(),
            "NumPy's generator": _frozen(np.random.get_state(legacy=False)),
            "a generator of its own": [_frozen(_state(g)) for g in self._own],
        }


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=False)


def _frozen(state: Any) -> Any:
    """Return a state as plain values that compare by what they hold: as text NumPy shortens arrays, and takes 5 ms."""
    if isinstance(state, dict):
        return {key: _frozen(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _own_generators(model: Any) -> list[Any]:
    found: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            found[id(value)] = value
        elif depth:
            for inner in _reached(value):
                visit(inner, depth - 1)

    if isinstance(model, nn.Module):
        for part in model.modules():
            for value in (*vars(part).values(), inspect.getattr_static(type(part), "forward", None)):
                visit(value, _DEPTH)
    else:
        visit(model, _DEPTH)
    # what belongs to no generator of the model's is watched by itself
    shared = {id(np.random.mtrand._rand), id(getattr(random.random, "__self__", None))}
    return [generator for key, generator in found.items() if key not in shared]


def _reached(value: Any) -> Iterator[Any]:
    """Yield what a function can use, or a container holds."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if value.__module__ is None or not value.__module__.startswith("torch"):
            yield from value.__defaults__ or ()
            # ValueError: a closure that is not filled yet
            with contextlib.suppress(ValueError):
                seen = inspect.getclosurevars(value)
                yield from (*seen.nonlocals.values(), *seen.globals.values())
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
