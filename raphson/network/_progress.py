"""A line on standard error that shows how far a loop is."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def shown(parts: Iterable[T], words: str, progress: bool, total: float | None = None) -> Iterable[T]:
    """Return what is gone through, with a line while that goes on.

    Args:
        parts: What is gone through.
        words: What the parts are.
        progress: Whether there is a line at all.
        total: Number of parts, where they do not know it.

    Returns:
        The parts.
    """
    if not progress:
        return parts
    from rich.console import Console
    from rich.progress import track

    total = len(parts) if total is None and isinstance(parts, Sized) else total
    return track(parts, words, total, transient=True, console=Console(stderr=True))
