r"""The Gaussian likelihood with a fixed scale: least squares, linear or through a link."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._support import Support
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import check_columns, like_outputs, start_rows
from raphson.likelihoods._units import InUnits, times_power, unit_exponent
from raphson.likelihoods.composed import _mean_link
from raphson.linalg import Diagonal

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    r"""Independent Gaussian responses with means as outputs and a known scale.

    .. math::
        \ell(f, y) = \sum_m \tfrac12 \left(\frac{y_m - f_m}{\sigma_m}\right)^2
        + \log \sigma_m + \tfrac12 \log 2\pi, \qquad
        \nabla\ell = \frac{f - y}{\sigma^2}, \qquad \nabla^2\ell = \operatorname{diag}(\sigma^{-2}).

    The Hessian depends on neither ``f`` nor ``y``: for a linear model it is ``X^T X / sigma^2``.

    Shapes: outputs ``(..., M)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        scale: Standard deviation ``sigma``, a number or ``(M,)``, in the units of the response.
        normalized: Whether ``nll`` includes the constant ``log sigma + log(2 pi) / 2``; a plain sum of
            squares, with ``scale = sqrt(1/2)``, does not.
        link: What the output is of the mean: ``"identity"``, ``"log"`` or ``"inverse"``. Convex is the identity only.

    Raises:
        InputError: ``scale`` is not positive and finite, or has more than one axis, or there is no such link.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., table 2.1.

    Examples:
        >>> import torch
        >>> from raphson.likelihoods import Gaussian
        >>> f, y = torch.zeros(1, 2), torch.tensor([[2.0, -4.0]])
        >>> Gaussian(scale=2.0).gradient(f, y)
        tensor([[-0.5000,  1.0000]])
        >>> Gaussian(scale=2.0).hessian(f, y).to_dense()
        tensor([[[0.2500, 0.0000],
                 [0.0000, 0.2500]]])
    """

    scale: float | Tensor = 1.0
    normalized: bool = True
    link: str = "identity"

    link_names = ("identity", "log", "inverse")
    concave = True

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a density, a sum of squares without its constant, and each other link."""
        return cls(), cls(0.5**0.5, normalized=False), *(cls(0.8, link=link) for link in cls.link_names[1:])

    @property
    def parameters(self) -> tuple[str, ...]:
        """The mean of each response, or what the link makes of it."""
        return (_mean_link.mean_name(self.link),)

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where the link is defined."""
        return (_mean_link.mean_domain(self),)

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale)
        if scale.ndim > 1 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise InputError("scale must be a positive finite number, or a vector with one per response.")
        _mean_link.check_link(self)
        if self.link != "identity":
            _mean_link.use_link(self, replace(self, link="identity"))

    def locations(self, n_outputs: int) -> slice | None:
        """Return all outputs, by the identity."""
        return slice(None) if self.link == "identity" else None

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood] | None:
        """Return the Gaussian of a scale about one, by the identity."""
        if self.link != "identity":
            return None
        scale = torch.as_tensor(self.scale).to("cpu", torch.float64)
        exponent = unit_exponent(scale.log().to(f.dtype))
        if not bool(exponent.any()):
            return None
        base, exponent = replace(self, scale=times_power(scale, exponent.double())), exponent.to(f.device)
        return InUnits(base, times_power(f, exponent), exponent.expand(f.shape), exponent.expand(f.shape))

    @property
    def hessian_bound(self) -> float | None:
        """The largest ``sigma^-2``, by the identity."""
        return None if self.link != "identity" else float(torch.as_tensor(self.scale, dtype=torch.float64).min()) ** -2

    @property
    def self_concordance(self) -> float | None:
        """Zero for the identity: the Hessian is constant."""
        return None if self.link != "identity" else 0.0

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        """Return ``(f - y) / sigma^2`` of the identity link."""
        if self.link != "identity":
            return None
        scale = np.asarray(torch.as_tensor(self.scale, dtype=torch.float64).cpu()).astype(np.longdouble)
        found: NDArray[np.longdouble] = (f - y.reshape(f.shape).cpu().double().numpy()) / scale**2
        return found

    def of_targets(self) -> Self:
        """Return the normalized density."""
        return self if self.normalized else replace(self, normalized=True)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, ``(...,)``."""
        scale = self._scale(f)
        value = 0.5 * ((like_outputs(f, y) - f) / scale).square()
        if self.normalized:
            value = value + (scale.log() + 0.5 * math.log(2 * math.pi))
        return value.sum(-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``(f - y) / sigma^2``, ``(..., M)``."""
        scale = self._scale(f)
        # one after another: the square may underflow
        return (f - like_outputs(f, y)) / scale / scale

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        """Return ``diag(sigma^-2)``, a batched diagonal ``(..., M, M)``."""
        return self.fisher(f)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        """Return ``diag(sigma^-2)``, which equals the observed Hessian."""
        return Diagonal(self._scale(f).square().reciprocal().expand(f.shape))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``."""
        return torch.empty_like(f).normal_(generator=generator).mul_(self._scale(f)).add_(f.detach())

    def mean(self, f: Tensor) -> Tensor:
        """Return the mean of the response, which is ``f``."""
        return f

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return normal distributions, ``(..., M)``."""
        from scipy import stats

        value, scale = to_array(like_outputs(f, y)), to_array(self._scale(f))
        return Univariate(stats.norm(to_array(f), scale), value, stats.norm(value, scale))

    def variance(self, f: Tensor) -> Tensor:
        """Return ``sigma^2``, ``(..., M)``."""
        return self._scale(f).square().expand(f.shape)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the means of the responses, the best outputs common to all rows."""
        rows = start_rows(y, n_outputs)
        return rows.mean(0) if weights is None else weights.to(rows) @ rows / weights.double().sum()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first response that is not finite, or another number of them or of scales."""
        entries = torch.as_tensor(self.scale).numel()
        if entries not in {1, n_outputs}:
            raise InputError(f"scale has {entries} entries but the model has {n_outputs} outputs.")
        check_columns(y, n_outputs, 1, self.support)

    def definition(self) -> Definition:
        """Return the formulas, with the scale of the first response as a constant."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import positive, real, sympy

        mu, y, r = real("mu y r")
        plain = self.link == "identity"
        eta, pieces = mu, tuple[fm.Abbreviation, ...]()
        if not plain:
            eta, mean = _mean_link.mean_formula(self.link, mu)
            pieces = (mean,)
        sigma = positive("sigma")
        scale = fm.first_number(self.scale)
        constant = sympy.log(sigma) + sympy.log(2 * sympy.pi) / 2 if self.normalized else 0
        made = fm.Definition(
            likelihood=Gaussian(scale, self.normalized, self.link),
            outputs=(eta,),
            targets=(y,),
            nll=r**2 / 2 + constant,
            abbreviations=(*pieces, fm.Abbreviation(r, (y - mu) / sigma, {mu: -1 / sigma})),
            moments={r: sympy.Integer(0), r**2: sympy.Integer(1)},
            constants={sigma: scale},
            example=((0.3,), 1.5),
            convexity=fm.Convexity("Strictly convex everywhere: the Hessian is a positive constant.", sympy.true),
            source=fm.GLM_BOOK + "chapter 2.",
        )
        return made if plain else replace(made, convexity=_mean_link.linked_convexity(made))

    def _scale(self, f: Tensor) -> Tensor:
        if isinstance(self.scale, int | float):
            return f.new_full((), self.scale)
        scale = torch.as_tensor(self.scale, dtype=f.dtype, device=f.device)
        if scale.numel() not in {1, f.shape[-1]}:
            raise InputError(f"scale has {scale.numel()} entries but the model has {f.shape[-1]} outputs.")
        return scale
