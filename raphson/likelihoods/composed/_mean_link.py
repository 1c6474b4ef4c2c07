r"""Links of a mean: a family in another function of its mean is the family it is by default behind one map.

With the family's own output :math:`\phi` (the log of the mean, or the mean) as a function of the link's output,
``Linked`` has value, derivatives and information by the chain rule. The maps are powers of the output, in whose
logarithm nothing overflows, so that tails are as safe as the family's own.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import IDENTITY, LINKS, Link, Mapped
from raphson.likelihoods._support import POSITIVE, Support
from raphson.likelihoods.composed._linked import Linked

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Abbreviation, Convexity, Definition, Symbol

_COMPUTED = (
    "nll",
    "gradient",
    "hessian",
    "fisher",
    "fisher_factor",
    "derivatives",
    "statistic",
    "log_partition",
    "sample",
    "mean",
    "variance",
    "distribution",
    "start",
    "second_given",
)
"""What a family leaves to its composition with a link."""


def _log_power(multiple: float, f: Tensor) -> Tensor:
    return multiple * f.log()


def _exp_power(multiple: float, theta: Tensor) -> Tensor:
    return torch.exp(theta / multiple)


def _log_power_at(multiple: float, f: Tensor) -> Mapped:
    first = multiple / f
    # by the square: what cancels in the chain rule (a zero count, by the identity) then does so exactly
    return Mapped(multiple * f.log(), first, first.square() / -multiple)


def _power(link: str, multiple: float) -> Link:
    """Return the log of a mean that is the power ``multiple`` of the output."""
    return Link(
        f"log_mean_of_{link}",
        functools.partial(_log_power, multiple),
        functools.partial(_exp_power, multiple),
        link,
        functools.partial(_log_power_at, multiple),
        POSITIVE,
        1.0,
        multiple,
    )


_OF_LOG_MEAN = {
    "log": IDENTITY,
    "identity": _power("identity", 1.0),
    "sqrt": _power("sqrt", 2.0),
    "inverse": _power("inverse", -1.0),
    "inverse_squared": _power("inverse_squared", -0.5),
}
_OF_MEAN = {"identity": IDENTITY, "log": LINKS["exp"], "inverse": LINKS["inverse"]}
_NAMES = {"identity": "mean", "sqrt": "sqrt_mean", "inverse": "inverse_mean", "inverse_squared": "inverse_squared_mean"}
_FORMULAS = {"log": "exp", "sqrt": "square", "inverse_squared": "inverse_square_root"}


def use_link(member: Any, base: Likelihood, *, concave: bool = False) -> None:
    """Let a family with another link than the default of ``base`` compute by composition; for ``__post_init__``."""
    maps = (_of_output(member), *(IDENTITY for _ in base.parameters[1:]))
    linked = Linked(base, maps)
    values = {name: getattr(linked, name) for name in _COMPUTED}
    for name, value in {**values, "concave": concave, "partition": None}.items():
        object.__setattr__(member, name, value)


def check_link(member: Any) -> None:
    """Raise ``InputError`` unless a family knows its link."""
    if member.link not in member.link_names:
        raise InputError(
            f"{type(member).__name__} has no link '{member.link}'; choose one of {', '.join(member.link_names)}."
        )


def mean_name(link: str) -> str:
    """Return what the output is called: ``log_mean``, ``mean``, ``inverse_mean``."""
    return _NAMES.get(link, f"{link}_mean")


def mean_domain(member: Any) -> Support:
    """Return where the output must lie."""
    return _of_output(member).domain


def _of_output(member: Any) -> Link:
    known = _OF_LOG_MEAN if member.link_names[0] == "log" else _OF_MEAN
    return known[member.link]


def mean_formula(link: str, mean: Symbol) -> tuple[Symbol, Abbreviation]:
    """Return the symbol of the output, and the mean as a function of it."""
    from raphson.likelihoods.formulas import as_function, positive, real

    name = _FORMULAS.get(link, link)
    output = real("eta") if link == "log" else positive("eta")
    return output, as_function(name, output, mean, mean)[-1]


def linked_convexity(made: Definition) -> Convexity:
    """Return where a family with another link than its default is convex."""
    from raphson.likelihoods.formulas import Convexity, sympy

    if made.likelihood.concave:
        return Convexity("Convex in the output for every target.", sympy.true)
    if len(made.outputs) == 1:
        return made.convex_where()
    return Convexity("Not convex everywhere. The Fisher information is positive definite everywhere.")


def at_link(made: Definition, link: str) -> Definition:
    """Return the definition of a family whose default link is the log, with where it is convex by another one."""
    return made if link == "log" else replace(made, convexity=linked_convexity(made))
