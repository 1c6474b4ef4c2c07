"""Hypotheses as text: ``"x = z"``, ``"2*x - z = 1"``, of estimates by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.infer._estimates import Label, label_name

Part = TypeVar("Part")

_NUMBER = re.compile(r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?")


Sum = dict[str, float]
"""Coefficients by name; that of the empty name is the constant."""


def read_hypothesis(text: str, labels: Sequence[Label]) -> tuple[Tensor, Tensor]:
    """Return the restrictions that a text stands for: the matrix ``(r, p)``, and what its product is to be ``(r,)``.

    A text is equations with commas between them, each of them sums of numbers times names, joined by one or more equals
    signs. A name that several outputs have (``x`` with three classes) gives a restriction for each of them; ``x of b``
    is that of the output ``b`` alone. A name in backquotes is taken as it is.

    Raises:
        InputError: If the text cannot be read, or a name is not known.
    """
    reader = _Reader(text, labels)
    rows, values = [], []
    for left, right in [pair for sides in reader.equations() for pair in pairwise(sides)]:
        terms = {name: left.get(name, 0.0) - right.get(name, 0.0) for name in {**left, **right}}
        constant = terms.pop("", 0.0)
        if not any(terms.values()):
            raise InputError(f"The hypothesis '{text}' is about no coefficient.")
        for places in _by_output(text, terms, labels):
            row = torch.zeros(len(labels), dtype=torch.float64)
            for name, factor in terms.items():
                row[places[name]] += factor
            rows.append(row)
            values.append(-constant)
    return torch.stack(rows), torch.tensor(values, dtype=torch.float64)


def _by_output(text: str, terms: dict[str, float], labels: Sequence[Label]) -> list[dict[str, int]]:
    """Return the place of each name, once for each output that the hypothesis is about."""
    fixed: dict[str, int] = {}
    shared: dict[str, dict[Hashable, int]] = {}
    for name in terms:
        exact = [i for i, label in enumerate(labels) if label_name(label) == name]
        found = {label[0]: i for i, label in enumerate(labels) if str(label[1]) == name}
        if len(exact) == 1 and not found:
            fixed[name] = exact[0]
        else:
            shared[name] = found
    outputs = [set(found) for found in shared.values()]
    common = [output for output in dict.fromkeys(label[0] for label in labels) if all(output in s for s in outputs)]
    if not common:
        raise InputError(
            f"The names in '{text}' belong to different outputs; say of which each is, as in "
            f"'{label_name(labels[0])} = {label_name(labels[-1])}'."
        )
    if not shared:
        return [fixed]
    return [fixed | {name: found[output] for name, found in shared.items()} for output in common]


class _Reader:
    """Reads a hypothesis from left to right; names may hold any characters, so the longest that fits is taken."""

    def __init__(self, text: str, labels: Sequence[Label]) -> None:
        self.text, self.position = text, 0
        names = {str(label[1]) for label in labels} | {label_name(label) for label in labels}
        self.names = sorted(names - {""}, key=len, reverse=True)

    def fail(self, why: str) -> NoReturn:
        forms = "'x = z', '2*x - z = 1' or 'x = 0, z = 1'"
        raise InputError(f"The hypothesis '{self.text}' cannot be read ({why}); write it as {forms}.")

    @property
    def rest(self) -> str:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.text[self.position :]

    def take(self, *marks: str) -> str:
        rest = self.rest
        for mark in marks:
            if rest.startswith(mark):
                self.position += len(mark)
                return mark
        return ""

    def separated(self, part: Callable[[], Part], *marks: str) -> list[Part]:
        found = [part()]
        while self.take(*marks):
            found.append(part())
        return found

    def equations(self) -> list[list[Sum]]:
        found = self.separated(lambda: self.separated(self.sum, "==", "="), ",")
        if self.rest:
            self.fail(f"at '{self.rest[:20]}' an operator or a known name is missing")
        if any(len(sides) < 2 for sides in found):
            self.fail("there is no '='" if len(found) == 1 else "an equation has no '='")
        return found

    def sum(self) -> Sum:
        terms: Sum = {}
        sign = self.take("+", "-") or "+"
        while sign:
            factor, name = self.product()
            terms[name] = terms.get(name, 0.0) + (-factor if sign == "-" else factor)
            sign = self.take("+", "-")
        return terms

    def product(self) -> tuple[float, str]:
        name = self.name()
        if name is not None:
            factor = 1.0
            while mark := self.take("*", "/"):
                factor = factor * self.number() if mark == "*" else factor / self.number()
            return factor, name
        factor = self.number()
        while mark := self.take("*", "/"):
            name = self.name() if mark == "*" else None
            if name is not None:
                return factor, name
            factor = factor * self.number() if mark == "*" else factor / self.number()
        return factor, ""

    def number(self) -> float:
        found = _NUMBER.match(self.rest)
        if found is None:
            self.fail(f"at '{self.rest[:20]}' a known name or a number is missing")
        self.position += found.end()
        value = float(found[0])
        if not value and self.text[: self.position - found.end()].rstrip().endswith("/"):
            self.fail("a division by zero")
        if not math.isfinite(value):
            self.fail(f"{found[0]} is too large")
        return value

    def name(self) -> str | None:
        rest = self.rest
        if rest.startswith("`"):
            end = rest.find("`", 1)
            if end < 0 or rest[1:end] not in self.names:
                self.fail(f"there is no coefficient called {rest[: end + 1] if end > 0 else rest}")
            self.position += end + 1
            return rest[1:end]
        for name in self.names:
            if rest.startswith(name) and not _goes_on(name, rest[len(name) :]):
                self.position += len(name)
                return name
        return None


def _goes_on(name: str, rest: str) -> bool:
    """Whether a word does not end where the name does."""
    return bool(rest) and (name[-1].isalnum() or name[-1] == "_") and (rest[0].isalnum() or rest[0] in "_[(:.")
