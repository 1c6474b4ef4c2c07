"""What families of successes and failures share: everything but how much each of the two counts at a target."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson.likelihoods._extended import extended_logit_gradient
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._parameters import total
from raphson.likelihoods._special._binary_links import BINARY_LINKS, BinaryLink, Tails, binary_link
from raphson.likelihoods._support import Support
from raphson.linalg import Diagonal

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


class BinaryFamily(Likelihood):
    """A likelihood of successes and failures by a link of their probability."""

    link: str
    link_names = tuple(BINARY_LINKS)

    @abc.abstractmethod
    def _parts(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much successes and failures count in each response, ``(..., M)``."""

    def _value(self, f: Tensor, tails: Tails, positive: Tensor, negative: Tensor) -> Tensor:
        """Return ``nll``."""
        return total(tails.value(positive, negative), f)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of each response's probability, or what the link makes of it."""
        return (self._link.output,)

    @property
    def domains(self) -> tuple[Support, ...]:
        return (self._link.domain,)

    @property
    def _link(self) -> BinaryLink:
        return binary_link(self.link)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        return self._value(f, self._link.tails(f), *self._parts(f, y))

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., M)``, without cancellation at saturated probabilities."""
        return self._link.tails(f).gradient(*self._parts(f, y))

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        return Diagonal(self._link.tails(f).hessian(*self._parts(f, y)))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the two tails."""
        parts, tails = self._parts(f, y), self._link.tails(f)
        curvature = None
        if hessian is not None:
            curvature = Diagonal(tails.hessian(*parts) if hessian == "observed" else sum(parts) * tails.information)
        return Derivatives(self._value(f, tails, *parts), tails.gradient(*parts), curvature)

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        """Return the gradient of logits in extended precision; None with another link."""
        if self.link != "logit":
            return None
        return extended_logit_gradient(f, *self._parts(torch.from_numpy(f.astype(np.float64)), y))

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Return what counts by the probability; with another link the Hessian."""
        if self.link != "logit":
            return super().curvature_terms(f, y)
        positive, negative = self._parts(f, y)
        return torch.sigmoid(f) * (positive + negative) * 1.0001

    def mean(self, f: Tensor) -> Tensor:
        return self._link.tails(f).mean

    def _output_at(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the output at which successes and failures are expected in these shares."""
        if self.link == "logit":
            return positive.log() - negative.log()
        return self._link.quantile(positive / (positive + negative))

    def _at_link(self, made: Definition) -> Definition:
        """Return the definition with where it is convex by the link."""
        from raphson.likelihoods.formulas import Convexity, sympy

        if not self._link.concave:
            return replace(made, convexity=made.convex_where())
        return replace(made, convexity=Convexity("Convex in the output.", sympy.true)) if self.link == "log" else made
