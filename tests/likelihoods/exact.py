"""What the definition of a likelihood in multiple precision has, and sums that several use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpmath as mp

from .jet import Jet

Number = Any
Matrix = list[list[Number]]


def half_log_two_pi() -> Number:
    return mp.log(2 * mp.pi) / 2


def congruent(information: Sequence[Sequence[Number]], parameters: Sequence[Jet]) -> Matrix:
    """The information in the outputs from that in functions of them."""
    n = range(len(parameters[0].g))
    pairs = [(a, b, information[i][j]) for i, a in enumerate(parameters) for j, b in enumerate(parameters)]
    return [[sum(c * a.g[i] * b.g[j] for a, b, c in pairs) for j in n] for i in n]


def outer(scores: Sequence[tuple[Number, Sequence[Number]]], n: int) -> Matrix:
    """The sum of weights times products of scores."""
    return [[sum(w * g[i] * g[j] for w, g in scores) for j in range(n)] for i in range(n)]


class Exact:
    """One family; ``y`` is a list of numbers, or None."""

    def digits(self, f: Sequence[float]) -> int:
        """How many to begin with: fewer could agree on a difference of zero."""
        return 60

    def value(self, m: Any, f: list[Jet], y: list[Number]) -> Jet:
        raise NotImplementedError

    def information(self, m: Any, f: list[Jet], y: list[Number] | None) -> Matrix:
        raise NotImplementedError

    def moments(self, m: Any, f: list[Jet]) -> tuple[list[Number], list[Number]]:
        raise NotImplementedError
