"""What makes one forward pass differ from the next beside parameters and inputs: random numbers and buffers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raphson._errors import InputError


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


def check_draws(samples: Any, generator: Any, least: int = 1) -> None:
    """Raise ``InputError`` for a number of samples that is not whole, or a source of randomness that is not torch's."""
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < least:
        raise InputError(f"samples is {samples!r}, but at least {least} is needed, a whole number.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator is a {type(generator).__name__}, but random numbers come from a torch.Generator, as in "
            "torch.Generator(device).manual_seed(0)."
        )


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
