"""Which likelihoods there are: those that ``raphson.likelihoods`` exports."""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib import import_module

from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Likelihood


def catalogue() -> dict[str, type[Likelihood]]:
    """Return every likelihood that the package exports, by the name of its class.

    Saved models, ``explain``, the command line and the conformance tests find likelihoods here, and so a new one by
    its export.

    Returns:
        The classes, composed ones as well, in the order of their names.
    """
    exported = vars(import_module("raphson.likelihoods"))
    return {
        name: kind
        for name, kind in sorted(exported.items())
        if isinstance(kind, type) and issubclass(kind, Likelihood) and is_dataclass(kind)
    }


def commands() -> dict[str, tuple[type[Likelihood], Command]]:
    """Return the names of the command line in alphabetical order, each with its class and what that says about it."""
    found = {command.name: (kind, command) for kind in catalogue().values() for command in kind.commands}
    return dict(sorted(found.items()))
