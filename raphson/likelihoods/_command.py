"""What a family tells the command line about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Command:
    """A name of ``raphson fit --likelihood``: how it makes the likelihood and what it takes the target for.

    Attributes:
        name: In lower case, with dashes.
        target: What the target's column holds: numbers, ordered levels, two levels, or successes.
        count: Argument of the constructor that takes the number of levels, or of trials; None for none.
        arguments: Other arguments of the constructor.
        constraints: How columns act on the parameters unless formulas say it; None for ``default_columns``.
    """

    name: str
    target: Literal["numbers", "ordered", "two", "successes"] = "numbers"
    count: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    constraints: str | None = None
