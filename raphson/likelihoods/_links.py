r"""Elementwise maps from a model's output to a parameter of a likelihood, with their first two derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._support import OPEN_UNIT_INTERVAL, POSITIVE, REAL, Support

NONZERO = Support("a finite number other than 0", lambda f: torch.isfinite(f) & (f != 0))


class Mapped(NamedTuple):
    """A map and its derivatives at outputs, each in their shape.

    Attributes:
        value: :math:`h(f)`.
        first: :math:`h'(f)`.
        second: :math:`h''(f)`.
    """

    value: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Link:
    r"""An elementwise map :math:`\theta = h(f)` from an output of the model to a parameter of a likelihood.

    It is named by what it does to the output: ``"exp"`` makes a positive parameter of any output. (The word
    link is often used for the inverse, from the parameter to the output; there ``"exp"`` is the log link.)

    Args:
        name: Its name, a function of ``f``.
        function: ``h``, elementwise.
        inverse: :math:`h^{-1}`, elementwise; any value outside the range of ``h`` may give nan.
        inverse_name: What the inverse is called: an ``"exp"`` of ``scale`` has the output ``log_scale``.
        derivatives: ``h``, ``h'`` and ``h''`` at once; by automatic differentiation if left out.
        domain: Where ``h`` is defined.
        neutral: An output in the domain, used where the inverse of a starting value does not exist.
        power: Of which multiple of the logarithm the map is, if it is one.
        residual: :math:`y - h(f)` from ``f`` and ``y``, for a map that is so flat somewhere that the output says more
            than the rounded parameter; by subtraction if left out.

    Examples:
        >>> import torch
        >>> from raphson.likelihoods import Link
        >>> cube = Link("cube", lambda f: f**3, lambda theta: theta.sign() * theta.abs() ** (1 / 3), "cube_root")
        >>> cube.at(torch.tensor([2.0]))
        Mapped(value=tensor([8.]), first=tensor([12.]), second=tensor([12.]))
    """

    name: str
    function: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    inverse_name: str
    derivatives: Callable[[Tensor], Mapped] | None = None
    domain: Support = REAL
    neutral: float = 0.0
    power: float | None = None
    residual: Callable[[Tensor, Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        return f"Link('{self.name}')"

    def __reduce__(self) -> str | tuple[object, ...]:
        # a known link is pickled by its name
        known = LINKS.get(self.name) is self
        return (as_link, (self.name,)) if known else object.__reduce__(self)

    def at(self, f: Tensor) -> Mapped:
        """Return the map and its first two derivatives at ``f``."""
        if self.derivatives is not None:
            return self.derivatives(f)

        def value(x: Tensor) -> Tensor:
            return self.function(x).sum()

        def derivative(x: Tensor) -> Tensor:
            total: Tensor = torch.func.grad(value)(x).sum()
            return total

        first: Tensor = torch.func.grad(value)(f)
        return Mapped(self.function(f), first, torch.func.grad(derivative)(f))

    def parameter_name(self, parameter: str) -> str:
        """Return what the output is called whose map is ``parameter``: ``log_scale`` for ``exp`` and ``scale``."""
        if self is IDENTITY:
            return parameter
        undone = parameter.removeprefix(f"{self.name}_")
        return undone if undone != parameter else f"{self.inverse_name}_{parameter}"


def as_link(link: str | Link) -> Link:
    """Return a link by its name, a link as it is; an unknown name is an ``InputError``."""
    if isinstance(link, Link):
        return link
    if link not in LINKS:
        other = next((known.name for known in LINKS.values() if known.inverse_name == link), None)
        hint = f"'{link}' is the inverse of '{other}': did you mean '{other}'? " if other else ""
        raise InputError(
            f"There is no link '{link}'. {hint}Links by the name of a model are arguments of the families, "
            "Bernoulli(link='probit'). Here a link maps the model's output to the parameter; known are "
            f"{', '.join(LINKS)}, and a Link object for another."
        )
    return LINKS[link]


def _identity(f: Tensor) -> Tensor:
    return f


def _identity_at(f: Tensor) -> Mapped:
    return Mapped(f, torch.ones_like(f), torch.zeros_like(f))


def _log_at(f: Tensor) -> Mapped:
    first = f.reciprocal()
    return Mapped(f.log(), first, -first.square())


def softplus(f: Tensor) -> Tensor:
    """Return ``log(1 + e^f)``, elementwise."""
    # torch.nn.functional.softplus turns linear at 20, which costs half of the digits of a double
    return torch.logaddexp(f, f.new_zeros(()))


def softplus_inverse(theta: Tensor) -> Tensor:
    """Return ``log(e^theta - 1)``, elementwise."""
    return theta + torch.log(-torch.expm1(-theta))


def _softplus_at(f: Tensor) -> Mapped:
    up = torch.sigmoid(f)
    return Mapped(softplus(f), up, up * torch.sigmoid(-f))


def _exp_at(f: Tensor) -> Mapped:
    value = f.exp()
    return Mapped(value, value, value)


def _exp_residual(f: Tensor, y: Tensor) -> Tensor:
    # of a target beside e^f, by the difference of the logarithms
    positive = torch.where(y > 0, y, 1.0)
    d = f - positive.log()
    near = (y > 0) & (d.abs() < 1)
    return torch.where(near, -positive * torch.expm1(torch.where(near, d, 0.0)), y - f.exp())


def _sigmoid_residual(f: Tensor, y: Tensor) -> Tensor:
    # about 1/2, and far up of one less both
    middle = (y - 0.5) - 0.5 * torch.tanh(0.5 * f)
    return torch.where(f.abs() < 1, middle, torch.where(f > 0, (y - 1) + torch.sigmoid(-f), y - torch.sigmoid(f)))


def _normal_cdf(f: Tensor) -> Tensor:
    # torch.special.ndtr is zero from -8.4 on
    return 0.5 * torch.erfc(f * -math.sqrt(0.5))


def _normal_cdf_residual(f: Tensor, y: Tensor) -> Tensor:
    middle = (y - 0.5) - 0.5 * torch.erf(f * math.sqrt(0.5))
    ends = torch.where(f > 0, (y - 1) + _normal_cdf(-f), y - _normal_cdf(f))
    return torch.where(f.abs() < 1, middle, ends)


def _cloglog_inverse_residual(f: Tensor, y: Tensor) -> Tensor:
    rate = f.exp()
    return torch.where(f > 0, (y - 1) + torch.exp(-rate), y + torch.expm1(-rate))


def _sigmoid_at(f: Tensor) -> Mapped:
    up, down = torch.sigmoid(f), torch.sigmoid(-f)
    first = up * down
    return Mapped(up, first, first * (down - up))


def _logit(f: Tensor) -> Tensor:
    return f.log() - torch.log1p(-f)


def _logit_at(f: Tensor) -> Mapped:
    first = 1 / (f * (1 - f))
    return Mapped(_logit(f), first, first.square() * (2 * f - 1))


def _square_at(f: Tensor) -> Mapped:
    return Mapped(f.square(), 2 * f, torch.full_like(f, 2.0))


def _inverse_at(f: Tensor) -> Mapped:
    value = f.reciprocal()
    return Mapped(value, -value.square(), 2 * value.square() * value)


def _normal_cdf_at(f: Tensor) -> Mapped:
    density = torch.exp(-0.5 * f.square()) / math.sqrt(2 * math.pi)
    return Mapped(_normal_cdf(f), density, -f * density)


def _cloglog_inverse(f: Tensor) -> Tensor:
    return -torch.expm1(-f.exp())


def _cloglog(theta: Tensor) -> Tensor:
    return torch.log(-torch.log1p(-theta))


def _cloglog_inverse_at(f: Tensor) -> Mapped:
    rate = f.exp()
    first = torch.exp(f - rate)
    # two exponentials: the product of first and 1 - rate would be 0 times infinity
    return Mapped(-torch.expm1(-rate), first, first - torch.exp(2 * f - rate))


IDENTITY = Link("identity", _identity, _identity, "identity", _identity_at)
LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        IDENTITY,
        Link("log", torch.log, torch.exp, "exp", _log_at, POSITIVE, 1.0),
        Link("softplus", softplus, softplus_inverse, "inverse_softplus", _softplus_at),
        Link("exp", torch.exp, torch.log, "log", _exp_at, residual=_exp_residual),
        Link("sigmoid", torch.sigmoid, _logit, "logit", _sigmoid_at, residual=_sigmoid_residual),
        Link("logit", _logit, torch.sigmoid, "sigmoid", _logit_at, OPEN_UNIT_INTERVAL, 0.5),
        Link("square", torch.square, torch.sqrt, "sqrt", _square_at, REAL, 1.0),
        Link("inverse", torch.reciprocal, torch.reciprocal, "inverse", _inverse_at, NONZERO, 1.0),
        Link("normal_cdf", _normal_cdf, torch.special.ndtri, "probit", _normal_cdf_at, residual=_normal_cdf_residual),
        Link(
            "cloglog_inverse",
            _cloglog_inverse,
            _cloglog,
            "cloglog",
            _cloglog_inverse_at,
            residual=_cloglog_inverse_residual,
        ),
    )
}
"""The links by name."""
