"""The command line: reading arguments and wiring the public API together."""

from __future__ import annotations

from raphson.cli._app import main as main
