r"""A likelihood from a family of ``torch.distributions``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributions as families
from torch.distributions import Distribution, constraints, kl_divergence

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import Link
from raphson.likelihoods._support import COUNT, NONNEGATIVE, POSITIVE, REAL, UNIT_INTERVAL, Support
from raphson.likelihoods.composed._automatic import AutomaticLikelihood, Predictions, hessian_rows
from raphson.likelihoods.composed._linked import Linked

Links = Mapping[str, str | Link]

_BOOLEAN = Support("0 or 1", lambda y: (y == 0) | (y == 1))
# Parameters in which the divergence of a family has no second derivative at equality.
_KINKED: dict[type[Distribution], set[str]] = {families.Laplace: {"loc"}, families.Pareto: {"scale"}}


def from_distribution(
    family: type[Distribution],
    links: Links | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int = 256,
) -> Likelihood:
    r"""Return the likelihood :math:`-\log p(y; h(f))` of a family with scalar targets, elementwise over responses.

    Value, gradient and observed Hessian are those of ``log_prob``. The Fisher information is the Hessian of the
    Kullback-Leibler divergence :math:`\mathrm{KL}(p_f \,\|\, p_{f'})` in :math:`f'` at :math:`f' = f`, exact by
    automatic differentiation, where torch has that divergence; elsewhere it is by sampling (see
    ``AutomaticLikelihood``). The links then add their chain rule (see ``Linked``).

    Args:
        family: A class of ``torch.distributions``.
        links: The link of each parameter to estimate, in the order of the outputs; None for the family's own
            parameters, each with the link that suits its constraint (positive ``exp``, unit interval
            ``sigmoid``, real ``identity``; logits rather than probabilities).
        fixed: Values of parameters that are known.
        draws: Targets per row where the Fisher information is by sampling.

    Returns:
        The likelihood; ``C = M k`` outputs, one for each parameter of each response.

    Raises:
        InputError: The family has no such parameters, a vector as target or parameter, or no link by default.
    """
    fixed = dict(fixed or {})
    known, title = _arguments(family), _title(family)
    chosen: Links = _default_links(family, known, fixed) if links is None else links
    for name in (*chosen, *fixed):
        if name not in known:
            raise InputError(f"{title} has no parameter '{name}'; its parameters are {', '.join(known)}.")
        if name in chosen and name in fixed:
            raise InputError(f"The parameter '{name}' of {title} has a link and a fixed value: give one of them.")
    if not chosen:
        raise InputError(f"No parameter of {title} is left to estimate: give one of {', '.join(known)} a link.")
    _refuse_inverses(title, chosen, known)
    names = tuple(chosen)
    make: Any = family
    follows = _is_dependent(make.support)

    def at(theta: Tensor) -> Distribution:
        values = {name: theta.new_tensor(value) for name, value in fixed.items()}
        distribution: Distribution = make(
            **dict(zip(names, theta.unbind(-1), strict=True)), **values, validate_args=False
        )
        return distribution

    def value(theta: Tensor, y: Tensor) -> Tensor:
        distribution, y = at(theta), y.to(theta.dtype)
        logarithm: Tensor = distribution.log_prob(y)
        if follows:
            inside: Any = distribution.support
            logarithm = torch.where(inside.check(y), logarithm, -torch.inf)
        return -logarithm

    def fisher(theta: Tensor) -> Tensor:
        return hessian_rows(lambda other, here: kl_divergence(at(here), at(other)), theta, theta)

    _refuse_what_it_cannot_make(at, family, len(names))
    predictions = Predictions(
        sample=lambda theta, generator: _sample(at(theta), generator),
        mean=lambda theta: at(theta).mean,
        variance=lambda theta: at(theta).variance,
        fisher=fisher if _has_smooth_divergence(at, family, names) else None,
    )
    base = AutomaticLikelihood(
        value,
        names,
        tuple(_support(known[name]) for name in names),
        REAL if follows else _support(make.support),
        predictions,
        draws,
        title=title,
    )
    return base if all(link == "identity" for link in chosen.values()) else Linked(base, tuple(chosen.values()))


def _arguments(family: type[Distribution]) -> dict[str, Any]:
    """Return the constraints of a family's parameters, in the order of its constructor."""
    given: Any = family.arg_constraints
    if not isinstance(given, dict) or not given:
        raise InputError(
            f"{_title(family)} does not declare its parameters, so they cannot be outputs of a "
            "model: write its negative log-likelihood as a function nll(f, y)."
        )
    order = [name for name in inspect.signature(family).parameters if name in given]
    for name in order:
        # arg_constraints of a logits parameter may be a vector of them, as a class's are
        if not _is_dependent(given[name]) and given[name].event_dim:
            raise _vectors(family)
    return {name: given[name] for name in order}


def _vectors(family: type[Distribution]) -> InputError:
    own = {
        "Categorical": "Categorical",
        "OneHotCategorical": "Categorical",
        "MultivariateNormal": "MultivariateGaussian",
    }
    name = family.__name__
    instead = f"use raphson's {own[name]}" if name in own else "write its negative log-likelihood as nll(f, y)"
    return InputError(
        f"{_title(family)} has vectors as parameters or targets, and only families of single numbers are "
        f"taken over: {instead}."
    )


def _default_links(family: type[Distribution], known: dict[str, Any], fixed: Mapping[str, float]) -> Links:
    names = [name for name in known if name not in fixed]
    if "logits" in names and "probs" in known:
        names.remove("probs") if "probs" in names else names.remove("logits")
    links = {name: _default_link(known[name]) for name in names}
    for name, link in links.items():
        if link is None:
            raise InputError(
                f"The parameter '{name}' of {_title(family)} has no link by default: fix its value, "
                f"fixed={{'{name}': ...}}, or name the links of all parameters, links={{'{name}': 'identity', ...}}."
            )
    return {name: link for name, link in links.items() if link is not None}


def _default_link(constraint: Any) -> str | None:
    support = _support(constraint)
    return {REAL: "identity", POSITIVE: "exp", NONNEGATIVE: "exp", UNIT_INTERVAL: "sigmoid"}.get(support)


def _refuse_inverses(title: str, links: Links, known: dict[str, Any]) -> None:
    # the link functions of generalized linear models go the other way, and these two names exist in both
    for name, link in links.items():
        meant = _default_link(known[name])
        if (link, meant) in {("log", "exp"), ("logit", "sigmoid")}:
            raise InputError(
                f"The link '{link}' would take the {link} of the output as '{name}' of {title}, which must be "
                f"{_support(known[name]).description}. A link maps the output to the parameter: use '{meant}'."
            )


def _refuse_what_it_cannot_make(at: Any, family: type[Distribution], k: int) -> None:
    try:
        distribution = at(torch.full((1, k), 0.5, dtype=torch.float64))
        if distribution.event_shape:
            raise _vectors(family)
        distribution.log_prob(torch.full((1,), 0.5, dtype=torch.float64))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{_title(family)} cannot be evaluated with the parameters given ({error}): "
            "give each a link in links or a value in fixed, or write its negative log-likelihood as nll(f, y)."
        ) from error


def _has_smooth_divergence(at: Any, family: type[Distribution], names: tuple[str, ...]) -> bool:
    if any(issubclass(family, kind) and kinked & set(names) for kind, kinked in _KINKED.items()):
        return False
    one, other = (at(torch.full((1, len(names)), x, dtype=torch.float64)) for x in (0.5, 0.25))
    try:
        # of unequal members: transforms that depend on the parameters have none, and are seen here
        kl_divergence(one, other)
    except NotImplementedError:
        return False
    return True


def _support(constraint: Any) -> Support:
    if _is_dependent(constraint):
        return REAL
    if isinstance(constraint, constraints.greater_than) and constraint.lower_bound == 0:
        return POSITIVE
    if isinstance(constraint, constraints.greater_than_eq) and constraint.lower_bound == 0:
        return NONNEGATIVE
    if isinstance(constraint, constraints.interval) and (constraint.lower_bound, constraint.upper_bound) == (0, 1):
        return UNIT_INTERVAL
    known: dict[Any, Support] = {
        constraints.real: REAL,
        constraints.boolean: _BOOLEAN,
        constraints.nonnegative_integer: COUNT,
    }
    return known.get(constraint) or Support(f"in {constraint}", lambda y: torch.isfinite(y) & constraint.check(y))


def _is_dependent(constraint: Any) -> bool:
    # on the values of other parameters
    return bool(constraints.is_dependent(constraint))  # type: ignore[no-untyped-call]


def _title(family: type) -> str:
    return f"torch.distributions.{family.__name__}" if hasattr(families, family.__name__) else family.__name__


def _sample(distribution: Distribution, generator: torch.Generator | None) -> Tensor:
    """Draw from a distribution, which knows only torch's global generator, with the caller's generator."""
    if generator is None:
        return distribution.sample()
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    cuda = generator.device.type == "cuda"
    # the state of the global generator is put back afterwards
    with torch.random.fork_rng(devices=[generator.device] if cuda else []):
        if cuda:
            with torch.cuda.device(generator.device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        return distribution.sample()
