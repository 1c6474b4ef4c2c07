"""Which definition belongs to which likelihood: adding a likelihood is one entry."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from raphson import likelihoods as lk
from raphson._errors import InputError
from raphson.explain import _counts, _gaussians, _positive, _proportions
from raphson.explain._composed import linked, scaled
from raphson.explain._definition import Definition

DEFINITIONS: dict[type[lk.Likelihood], Callable[[Any], Definition]] = {
    lk.Bernoulli: _counts.bernoulli,
    lk.Beta: _proportions.beta,
    lk.Binomial: _counts.binomial,
    lk.Categorical: _counts.categorical,
    lk.Gamma: _positive.gamma,
    lk.Gaussian: _gaussians.gaussian,
    lk.HeteroscedasticGaussian: _gaussians.heteroscedastic_gaussian,
    lk.InverseGaussian: _positive.inverse_gaussian,
    lk.Linked: lambda likelihood: linked(likelihood, define(likelihood.base)),
    lk.Multinomial: _counts.multinomial,
    lk.MultivariateGaussian: _gaussians.multivariate_gaussian,
    lk.NegativeBinomial: _counts.negative_binomial,
    lk.Ordinal: _proportions.ordinal,
    lk.Poisson: _counts.poisson,
    lk.ScaledLikelihood: lambda likelihood: scaled(likelihood, define(likelihood.base)),
    lk.StudentT: _proportions.student_t,
    lk.Weibull: _positive.weibull,
}


def define(likelihood: lk.Likelihood) -> Definition:
    """Return the symbolic definition of a likelihood.

    Args:
        likelihood: A member of the catalogue.

    Returns:
        Its definition.

    Raises:
        InputError: There is no formula for this class: one made from a function has none but its code.
    """
    if type(likelihood) not in DEFINITIONS:
        raise InputError(
            f"{type(likelihood).__name__} has no formula: it is made from code, or is a class of your own. There are "
            f"formulas for {', '.join(kind.__name__ for kind in DEFINITIONS)}."
        )
    return DEFINITIONS[type(likelihood)](likelihood)


def class_named(name: str) -> type[lk.Likelihood]:
    """Return a class by its name in any spelling: ``student-t``, ``StudentT``, ``student_t``.

    Args:
        name: The name.

    Returns:
        The class.

    Raises:
        InputError: There is none; the message has the list and the nearest name.
    """
    known = {dashed(kind): kind for kind in DEFINITIONS if kind not in {lk.Linked, lk.ScaledLikelihood}}
    plain = {key.replace("-", ""): kind for key, kind in known.items()}
    asked = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if asked in plain:
        return plain[asked]
    near = difflib.get_close_matches(asked, plain, n=1)
    hint = f" Did you mean '{dashed(plain[near[0]])}'?" if near else ""
    raise InputError(f"There is no likelihood '{name}'.{hint} There are {', '.join(known)}.")


def dashed(kind: type) -> str:
    """Return a class name in lower case with dashes: ``student-t``."""
    name = kind.__name__
    return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))
