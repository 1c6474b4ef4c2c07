"""What a family tells the command line about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raphson._errors import InputError

if TYPE_CHECKING:
    from raphson.likelihoods._likelihood import Likelihood


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

    def make(self, kind: type[Likelihood], number: int, link: str | None = None) -> Likelihood:
        """Return the likelihood of a class for a number of levels, or of trials, with a link other than its own.

        Args:
            kind: The class.
            number: Levels or trials.
            link: Its name, with dashes or underscores.

        Returns:
            The likelihood.

        Raises:
            InputError: The family has no such link.
        """
        arguments = dict(self.arguments)
        if link is not None:
            name = link.strip().lower().replace("-", "_")
            if name not in kind.link_names:
                has = f"choose one of {', '.join(kind.link_names)}" if kind.link_names else "it takes none"
                raise InputError(f"'{self.name}' has no link '{link}'; {has}.")
            arguments["link"] = name
        return kind(**arguments, **({} if self.count is None else {self.count: number}))
