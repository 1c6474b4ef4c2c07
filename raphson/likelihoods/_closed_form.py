"""What families of closed form share: value, gradient and Hessian from one evaluation."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

from torch import Tensor

from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.linalg import SymmetricOperator

Parts = TypeVar("Parts")


class ClosedForm(Likelihood, Generic[Parts]):
    """A likelihood whose value, gradient and Hessians are made of common parts, evaluated once for all of them."""

    @abc.abstractmethod
    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> Parts:
        """Return what the others are made of.

        ``once`` says that all of them are wanted and nothing differentiates through the parts: a parameter that is
        constant over rows may be evaluated as one number.
        """

    @abc.abstractmethod
    def _value(self, p: Parts) -> Tensor:
        """Return ``nll``."""

    @abc.abstractmethod
    def _gradient(self, p: Parts) -> Tensor:
        """Return ``gradient``."""

    @abc.abstractmethod
    def _observed(self, p: Parts) -> SymmetricOperator:
        """Return ``hessian``."""

    @abc.abstractmethod
    def _expected(self, p: Parts) -> SymmetricOperator:
        """Return ``fisher`` at given targets."""

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        return self._value(self._parts(f, y))

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return self._gradient(self._parts(f, y))

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        return self._observed(self._parts(f, y))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the parts they share."""
        p = self._parts(f, y, once=True)
        curvature: SymmetricOperator | None = None
        if hessian is not None:
            curvature = self._observed(p) if hessian == "observed" else self._expected(p)
        return Derivatives(self._value(p), self._gradient(p), curvature)
