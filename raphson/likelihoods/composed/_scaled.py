r"""A likelihood times a constant: what losses that average over outputs, or tempered likelihoods, are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._units import InUnits
from raphson.likelihoods.composed._wrapper import Wrapper
from raphson.linalg import LinearOperator, Scaled, ScaledColumns

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class ScaledLikelihood(Wrapper):
    r"""A constant multiple of a likelihood, plus a constant: :math:`\ell(f, y) = a\,\ell_0(f, y) + b`.

    With ``mean_over_outputs`` the multiplier is :math:`a / C` for ``C`` outputs, which is how torch's
    ``reduction="mean"`` treats the outputs of one example. ``sample``, ``mean``, ``variance``
    and the expectation in ``fisher`` are those of the base: :math:`a` is how much an example counts, not what
    the model predicts.

    Args:
        base: The likelihood :math:`\ell_0`.
        factor: ``a``, positive.
        constant: ``b``, added once per row.
        mean_over_outputs: Whether to divide ``a`` by the number of outputs.

    Raises:
        InputError: ``factor`` is not positive and finite.

    Examples:
        The sum of squares is twice the Gaussian one; its Hessian is 2 I.

        >>> import torch
        >>> from raphson.likelihoods import Gaussian, ScaledLikelihood
        >>> squares = ScaledLikelihood(Gaussian(normalized=False), factor=2.0)
        >>> f, y = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])
        >>> squares.nll(f, y)
        tensor([10.])
        >>> squares.hessian(f, y).to_dense()
        tensor([[[2., 0.],
                 [0., 2.]]])
    """

    base: Likelihood
    factor: float = 1.0
    constant: float = 0.0
    mean_over_outputs: bool = False

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise InputError(f"factor is {self.factor:g}, but a likelihood can only be scaled by a positive number.")
        object.__setattr__(self, "differences_only", self.base.differences_only)

    def definition(self) -> Definition:
        """Return the base's formulas, times a constant and plus one."""
        from raphson.likelihoods.formulas import positive, real

        base = self.base.definition()
        a, b = positive("a_0"), real("b_0")
        constants = {a: self.factor / (len(base.outputs) if self.mean_over_outputs else 1)}
        if self.constant:
            constants[b] = self.constant
        note = "The base's negative log-likelihood times a₀; sampling and means are those of the base."
        return replace(
            base,
            likelihood=replace(self, base=base.likelihood),
            nll=a * base.nll + (b if self.constant else 0),
            constants={**base.constants, **constants},
            target_words=base.target_words or base.likelihood.support.description,
            notes=(*base.notes, note),
        )

    def of_targets(self) -> Likelihood:
        """Return the base's."""
        return self.base.of_targets()

    def locations(self, n_outputs: int) -> slice | None:
        """Return those of the base."""
        return self.base.locations(n_outputs)

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood] | None:
        """Return the base's, scaled."""
        found = self.base.in_units(f, y)
        return found and found._replace(likelihood=replace(self, base=found.likelihood))

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Return the base's."""
        return self.base.second_given(first, y, weights)

    @property
    def hessian_bound(self) -> float | None:
        """``a`` times the base's bound; it holds for every number of outputs."""
        bound = self.base.hessian_bound
        return None if bound is None else self.factor * bound

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``a`` times the base's value plus ``b``, ``(...,)``."""
        return self._factor(f) * self.base.nll(f, y) + self.constant

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``a`` times the base's gradient, ``(..., C)``."""
        return self._factor(f) * self.base.gradient(f, y)

    def hessian(self, f: Tensor, y: Tensor) -> Scaled:
        """Return ``a`` times the base's Hessian."""
        return Scaled(self.base.hessian(f, y), self._factor(f))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Scaled:
        """Return ``a`` times the base's expected information."""
        return Scaled(self.base.fisher(f, y), self._factor(f))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the root of ``a`` times the base's factor."""
        factor = self.base.fisher_factor(f, y)
        columns = (*factor.shape[:-2], factor.shape[-1])
        return ScaledColumns(factor, f.new_full((), math.sqrt(self._factor(f))).expand(columns))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian, shared as the base shares them."""
        a = self._factor(f)
        value, gradient, curvature = self.base.derivatives(f, y, hessian)
        scaled = None if curvature is None else Scaled(curvature, a)
        return Derivatives(a * value + self.constant, a * gradient, scaled)

    def _factor(self, f: Tensor) -> float:
        return self.factor / f.shape[-1] if self.mean_over_outputs else self.factor
