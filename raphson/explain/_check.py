"""The numeric check: closed form, automatic differentiation and SymPy at one point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods.formulas import Definition


class Row(NamedTuple):
    """One quantity: its value by the closed form, and the largest differences from two other ways.

    They are automatic differentiation, None where there is nothing to differentiate, and the printed formula.
    """

    name: str
    value: Tensor
    automatic: float | None
    symbolic: float


@dataclass(frozen=True)
class Check:
    """Outputs, a target, and all quantities there, with how far three ways of computing them are apart."""

    f: Tensor
    y: Tensor
    rows: tuple[Row, ...]

    @property
    def largest(self) -> float:
        """The largest of all differences, relative to the size of the quantity where that is above 1."""
        return max(
            difference / max(1.0, float(row.value.abs().max()))
            for row in self.rows
            for difference in (row.automatic, row.symbolic)
            if difference is not None
        )


def check(definition: Definition) -> Check:
    """Compare at the definition's example."""
    likelihood = definition.likelihood
    f = torch.tensor(definition.example[0], dtype=torch.float64)
    whole = isinstance(definition.example[1], int)
    y = torch.tensor(definition.example[1], dtype=torch.int64 if whole else torch.float64)
    rows = []
    symbolic = evaluate(definition, f, y)
    closed = {
        "ℓ": (likelihood.nll(f, y), None),
        "gradient": (likelihood.gradient(f, y), torch.func.grad(likelihood.nll)(f, y)),
        "observed Hessian": (likelihood.hessian(f, y).to_dense(), torch.func.hessian(likelihood.nll)(f, y)),
        "Fisher": (likelihood.fisher(f, y if definition.given_target else None).to_dense(), None),
    }
    for (name, (value, automatic)), formula in zip(closed.items(), symbolic, strict=True):
        apart = None if automatic is None else float((value - automatic).abs().max())
        rows.append(Row(name, value, apart, float((value - formula).abs().max())))
    return Check(f, y, tuple(rows))


def evaluate(definition: Definition, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, gradient, Hessian and expected information as the printed formulas give them for one row."""
    c = len(definition.outputs)
    values = torch.tensor(definition.values(f.tolist(), y), dtype=torch.float64)
    gradient, hessian, fisher = values[1 : c + 1], values[c + 1 : c + 1 + c * c], values[c + 1 + c * c :]
    return values[0], gradient, hessian.reshape(c, c), fisher.reshape(c, c)
