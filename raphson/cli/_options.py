"""What ``raphson fit`` was asked for: its options, and the formulas among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import raphson as rp

_NAMED = re.compile(r"\s*([\w|]+(?:\[\d+\])?)\s*=\s*([^~]*~.*)", re.DOTALL)


@dataclass(frozen=True)
class FitOptions:
    """Arguments of ``raphson fit``, by the names of its options."""

    data: Path
    target: str | None
    formula: tuple[str, ...]
    likelihood: str | None
    model: str
    levels: str | None
    trials: int | None
    link: str | None
    weights: str | None
    offset: tuple[str, ...]
    exposure: str | None
    event: str | None
    drop: tuple[str, ...]
    missing: str
    l2: float
    penalty: str
    reference: str
    covariance: Literal["observed", "expected", "sandwich"] | None
    groups: str | None
    level: float
    intervals: str
    max_iter: int
    tol: float
    save: Path | None
    memory: str | None
    resume: bool
    out: Path | None
    report: Path | None
    exp: bool
    quiet: bool
    progress: bool


def split_formulas(formulas: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the formula without a parameter's name and by parameter those with one, ``"scale=~ x1"``; no doubles."""
    main: list[str] = []
    named: dict[str, str] = {}
    for text in formulas:
        found = _NAMED.fullmatch(text)
        if found is None:
            main.append(text)
        elif found[1] in named:
            raise rp.InputError(f"--formula: the parameter '{found[1]}' has two formulas; give one.")
        else:
            named[found[1]] = found[2]
    if len(main) > 1:
        raise rp.InputError(
            f"--formula: '{main[0]}' and '{main[1]}' both name no parameter; write the second as 'log_scale=~ x1', say."
        )
    return (main[0] if main else None), named
