"""Which likelihoods there are: those that ``raphson.likelihoods`` exports."""

from __future__ import annotations

import difflib
from dataclasses import is_dataclass
from importlib import import_module

from raphson._errors import InputError
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Likelihood


def catalogue() -> dict[str, type[Likelihood]]:
    """Return every likelihood that the package exports, composed ones as well, by the name of its class.

    Saved models, ``explain``, the command line and the conformance tests find likelihoods here, and so a new one by
    its export.
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


def command_name(asked: str) -> str:
    """Return a name of the command line in any spelling, ``student_t`` for ``student-t``; ``"categorical"`` is one.

    Raises:
        InputError: If there is none.
    """
    known = ["categorical", *commands()]
    name = asked.strip().lower().replace("_", "-").replace(" ", "-")
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}."
    raise InputError(f"There is no likelihood called {asked!r}; {hint}")


def make_likelihood(name: str, number: int = 0, link: str | None = None) -> Likelihood:
    """Return the likelihood of a name for a number of levels, or of trials, with a link other than its own.

    Raises:
        InputError: The family has no such link.
    """
    kind, command = commands()[name]
    arguments = dict(command.arguments)
    if link is not None:
        asked = link.strip().lower().replace("-", "_")
        if asked not in kind.link_names:
            has = f"choose one of {', '.join(kind.link_names)}" if kind.link_names else "it takes none"
            raise InputError(f"'{name}' has no link '{link}'; {has}.")
        arguments["link"] = asked
    return kind(**arguments, **({} if command.count is None else {command.count: number or None}))
