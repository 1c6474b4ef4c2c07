"""Likelihoods by name, in any spelling."""

from __future__ import annotations

import difflib

from raphson._errors import InputError
from raphson.likelihoods import Likelihood, catalogue


def explained() -> dict[str, type[Likelihood]]:
    """Return the likelihoods that are explained by name, those with a constructor of their own, by dashed name."""
    return {dashed(kind): kind for kind in catalogue().values() if kind.examples()}


def class_named(name: str) -> type[Likelihood]:
    """Return a class by its name in any spelling: ``student-t``, ``StudentT``; else the message has the nearest."""
    known = explained()
    plain = {key.replace("-", ""): kind for key, kind in known.items()}
    asked = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if asked in plain:
        return plain[asked]
    near = difflib.get_close_matches(asked, plain, n=1)
    hint = f" Did you mean '{dashed(plain[near[0]])}'?" if near else ""
    raise InputError(f"There is no likelihood '{name}'.{hint} There are {', '.join(known)}.")


def dashed(kind: type) -> str:
    """Return a class name in lower case with dashes: ``student-t``."""
    name = kind.__name__
    return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))
