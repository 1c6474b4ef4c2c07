"""What a diagnosis says, as attributes, as a page and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from raphson.diagnose._everywhere import Convexity, Everywhere
from raphson.diagnose._inertia import Inertia

_TERMS = 6
"""Parameters of a direction that are named; the others are counted."""


@dataclass(frozen=True)
class Direction:
    """A direction in parameter space along which the curvature is zero within rounding.

    Attributes:
        vector: ``(P,)``; where there are several, each has an entry of one that the others do not have.
        terms: Its parameters that count, with their weights, largest first.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> found = rp.diagnose(rp.Dense(torch.ones(2, 2, dtype=torch.float64), labels=("a", "b")))
        >>> sorted(abs(weight) for _, weight in found.null_directions[0].terms)
        [1.0, 1.0]
    """

    vector: Tensor
    terms: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        shown = [f"{weight:+.4g} {name}" for name, weight in self.terms[:_TERMS]]
        more = len(self.terms) - len(shown)
        return " ".join(shown) + (f" and {more} more" if more else "")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    r"""The shape of an objective at a point, and what is certain about it.

    Attributes:
        title: What was looked at.
        inertia: Numbers of negative, zero (within rounding) and positive eigenvalues; None where the matrix was only
            multiplied.
        convex: At this point: ``"strongly convex"`` (every eigenvalue is positive), ``"convex"`` (none is negative),
            ``"not convex"`` (one is negative) or ``"undecided"``.
        guarantee: How that is known: the method, its bound and the probability that it fails.
        everywhere: What structure proves at every point, or None.
        witness: A direction of negative curvature ``(P,)``, of length one, or None.
        witness_curvature: The curvature along it, by a product with the operator.
        smallest: Smallest eigenvalue.
        largest: Largest eigenvalue.
        smallest_error: Bound on the error of ``smallest``, with the guarantee's probability.
        largest_error: Bound on the error of ``largest``.
        smallest_vector: Eigenvector of ``smallest``, ``(P,)``.
        largest_vector: Eigenvector of ``largest``, ``(P,)``.
        condition: Largest over smallest absolute eigenvalue; infinite where one is zero within rounding, nan if
            unknown.
        effective_dimension: :math:`p - \operatorname{tr} H^{-1} R` with the Hessian R of the penalty: parameters that
            the data determine, not the penalty; without a penalty the number of positive eigenvalues; nan if unknown.
        trace: Sum of the eigenvalues.
        trace_error: Its standard error; zero where it is exact up to rounding.
        logdet: Logarithm of the determinant, nan unless every eigenvalue is positive and they are known.
        null_directions: Directions of zero curvature within rounding, by parameter.
        step_size: Step for gradient descent: Polyak's with ``momentum`` if strongly convex, else one over the largest
            absolute curvature; nan where there is no curvature.
        momentum: Polyak's momentum, 0 unless strongly convex.
        labels: Names of the parameters, or None.
        gauss_newton: The diagnosis of the Gauss-Newton matrix beside the Hessian of a network, or None.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> found = rp.diagnose(rp.Diagonal(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        >>> found.convex, found.condition, found.trace
        ('strongly convex', 4.0, 5.0)
    """

    title: str
    inertia: Inertia | None
    convex: Convexity
    guarantee: str
    everywhere: Everywhere | None
    witness: Tensor | None
    witness_curvature: float | None
    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    smallest_vector: Tensor = field(repr=False)
    largest_vector: Tensor = field(repr=False)
    condition: float
    effective_dimension: float
    trace: float
    trace_error: float
    logdet: float
    null_directions: tuple[Direction, ...]
    step_size: float
    momentum: float
    labels: tuple[str, ...] | None = field(default=None, repr=False)
    gauss_newton: Diagnosis | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite are None."""
        known = self.everywhere
        return {
            "title": self.title,
            "inertia": None if self.inertia is None else list(self.inertia),
            "convex": self.convex,
            "guarantee": self.guarantee,
            "everywhere": None
            if known is None
            else {"convex": known.convex, "constant": known.constant, "sentence": known.sentence},
            "witness": None if self.witness is None else self.witness.tolist(),
            "witness_curvature": self.witness_curvature,
            **{name: _finite(getattr(self, name)) for name in _NUMBERS},
            "null_directions": [dict(direction.terms) for direction in self.null_directions],
            "labels": None if self.labels is None else list(self.labels),
            "gauss_newton": None if self.gauss_newton is None else self.gauss_newton.to_dict(),
        }

    def to_json(self) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def direction(self, vector: Tensor) -> Direction:
        """Return a vector ``(P,)`` with the names of its parameters."""
        return named(vector, self.labels)

    def __repr__(self) -> str:
        return f"<Diagnosis of the {self.title[0].lower()}{self.title[1:]}: {self.convex}; print it>"

    def __str__(self) -> str:
        lines = [self.title, "=" * len(self.title), f"At this point: {self.convex}. {self.guarantee}"]
        if self.everywhere is not None:
            lines.append(self.everywhere.sentence)
        lines.append("")
        if self.inertia is not None:
            counts = self.inertia
            lines.append(
                f"Eigenvalues            {counts.negative} negative, {counts.zero} zero, {counts.positive} positive"
            )
        lines.append(f"Smallest               {self.smallest:.6g}  (error at most {self.smallest_error:.1e})")
        lines.append(f"Largest                {self.largest:.6g}  (error at most {self.largest_error:.1e})")
        error = f"  (standard error {self.trace_error:.1e})" if self.trace_error else ""
        lines.append(f"Trace                  {self.trace:.6g}{error}")
        for name, value in (
            ("Condition number", self.condition),
            ("Effective dimension", self.effective_dimension),
            ("Log-determinant", self.logdet),
        ):
            lines.append(f"{name:<22} {'not known' if math.isnan(value) else f'{value:.6g}'}")
        momentum = f", momentum {self.momentum:.4g} (Polyak)" if self.momentum else ""
        lines.append(
            f"Step size              {'none' if math.isnan(self.step_size) else f'{self.step_size:.4g}'}{momentum}"
        )
        if self.witness is not None:
            lines.append(f"Negative curvature     {self.witness_curvature:.4g} along {self.direction(self.witness)}")
        for direction in self.null_directions[:10]:
            lines.append(f"No curvature along     {direction}")
        if len(self.null_directions) > 10:
            lines.append(f"                       and {len(self.null_directions) - 10} more directions")
        if self.gauss_newton is not None:
            lines += ["", str(self.gauss_newton)]
        return "\n".join(lines)


_NUMBERS = (
    *("smallest", "largest", "smallest_error", "largest_error", "condition", "effective_dimension", "trace"),
    *("trace_error", "logdet", "step_size", "momentum"),
)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def named(vector: Tensor, labels: tuple[str, ...] | None) -> Direction:
    """Return a direction with the names of its parameters that are above a ten-thousandth of the largest."""
    size = vector.abs()
    order = size.argsort(descending=True, stable=True)
    kept = [i for i in order[:1000].tolist() if size[i] > 1e-4 * size.max()]
    terms = tuple((labels[i] if labels else f"[{i}]", float(vector[i])) for i in kept)
    return Direction(vector, terms)
