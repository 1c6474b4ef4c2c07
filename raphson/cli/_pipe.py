"""A pipe whose reader leaves early, as ``head`` does, ends the command as it ends others: silently, by SIGPIPE."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator


@contextlib.contextmanager
def ended_by_reader() -> Generator[None]:
    """Run the body to its end, models and files saved, and end the process by SIGPIPE if it wrote to a closed pipe.

    A write to such a pipe raises ``BrokenPipeError`` in Python, which libraries that print turn into exit codes of
    their own. A shell expects death by the signal, status 141. Off the main thread, and where there is no such signal,
    nothing changes.
    """
    closed: list[int] = []
    try:
        before = signal.signal(signal.SIGPIPE, lambda number, _: closed.append(number))
    except (AttributeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL if closed else before)
        if closed:
            silence()
            os.kill(os.getpid(), signal.SIGPIPE)


def silence() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush is silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
