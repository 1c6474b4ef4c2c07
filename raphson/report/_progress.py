"""One line on the terminal that follows a long fit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live

    from raphson.solve import Step

_REFRESH_SECONDS = 0.1


class ProgressLine:
    """Shows the steps of a fit on standard error, one line that is rewritten and wiped at the end.

    Short fits, files and pipes see nothing of it.

    Args:
        patience: Seconds to stay silent.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._start = time.perf_counter()
        self._next = self._start + patience
        self._live: Live | None = None

    def __call__(self, step: Step) -> None:
        """Show a step, unless the last one was shown just now."""
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + _REFRESH_SECONDS
        live = self._live or self._open()
        if live.console.is_terminal:
            live.update(_line(step, now - self._start), refresh=True)

    def close(self) -> None:
        """Wipe the line; harmless where there is none."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        if console.is_terminal:
            self._live.start()
        return self._live


def progress_line(patience: float = 1.0) -> ProgressLine:
    """Return a callback that shows a long fit's steps on the terminal after some seconds; ``close()`` ends it."""
    return ProgressLine(patience)


def _line(step: Step, seconds: float) -> str:
    return (
        f"iteration {step.iteration}   objective {step.value:.8g}   "
        f"gradient norm {step.gradient_norm:.1e}   {seconds:.0f} s"
    )
