"""What a likelihood made of another one takes over from it."""

from __future__ import annotations

import functools
import operator
from typing import Any, Self

import torch
from torch import Tensor

from raphson.likelihoods._likelihood import Likelihood

_TAKEN_OVER = (
    *("parameters", "domains", "support", "default_columns", "n_outputs", "output_names", "check_outputs"),
    *("concave", "has_units", "start", "check", "weight", "distribution"),
)
"""What outputs and targets are, and how a fit begins. What is known of the value, of which a wrapper is another
function (statistics, bounds, derivatives in extended precision), is not: a wrapper that keeps it says so."""


class Wrapper(Likelihood):
    """A likelihood with another value than its ``base``: a member defines that, its derivatives, and what else differs.

    Attributes:
        base: The likelihood whose outputs, targets and predictions it has.
    """

    base: Likelihood

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return none: it is made of another likelihood."""
        return ()

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one target per example from the base."""
        return self.base.sample(f, generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the mean under the base."""
        return self.base.mean(f)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance under the base."""
        return self.base.variance(f)


def _of_base(name: str) -> Any:
    """Return the property or method that gives the base's own."""
    given = getattr(Likelihood, name)
    if isinstance(vars(Likelihood)[name], property) or not callable(given):
        return property(operator.attrgetter(f"base.{name}"), doc="That of the base.")

    @functools.wraps(given)
    def method(self: Wrapper, *args: Any, **options: Any) -> Any:
        return getattr(self.base, name)(*args, **options)

    return method


for _name in _TAKEN_OVER:
    setattr(Wrapper, _name, _of_base(_name))
