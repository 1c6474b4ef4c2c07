r"""A likelihood from a function of one example that somebody wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._support import (
    COUNT,
    NEGATIVE,
    NONNEGATIVE,
    OPEN_UNIT_INTERVAL,
    POSITIVE,
    REAL,
    UNIT_INTERVAL,
    Support,
)
from raphson.likelihoods.composed._automatic import AutomaticLikelihood, Predictions, Rows

_SUPPORTS: dict[str, Support] = {
    "real": REAL,
    "positive": POSITIVE,
    "negative": NEGATIVE,
    "nonnegative": NONNEGATIVE,
    "unit_interval": UNIT_INTERVAL,
    "open_unit_interval": OPEN_UNIT_INTERVAL,
    "count": COUNT,
}


class FunctionOptions(TypedDict, total=False):
    """What may be told about a negative log-likelihood ``nll(f, y)`` of one example.

    Attributes:
        parameters: Names of the ``k`` outputs of one response. Outputs of ``M k`` columns are then ``M``
            responses, and the function sees one of them: ``f`` of shape ``(k,)`` and its target, a number.
            Without, it sees the whole row: ``f`` of shape ``(C,)`` and the row's target in whatever shape.
        domains: Where each parameter must lie, ``"real"``, ``"positive"``, ``"negative"``, ``"nonnegative"``,
            ``"unit_interval"``, ``"open_unit_interval"`` or ``"count"``.
        support: Where each number of a target must lie, one of the same words.
        sample: ``sample(f, generator)`` draws one target for each row of outputs ``(n, k)``, all at once.
        mean: Mean of the target at ``f`` of one example; shaped like the target, as is the variance.
        variance: Variance of the target at ``f`` of one example.
        fisher: Fisher information ``(k, k)`` at ``f`` of one example; by sampling if left out.
        draws: Targets sampled for each row where the Fisher information is by sampling.
        concave: True says that the negative log-likelihood is convex in ``f`` for every target.
    """

    parameters: Sequence[str]
    domains: Sequence[str | Support]
    support: str | Support
    sample: Callable[[Tensor, torch.Generator | None], Tensor]
    mean: Callable[[Tensor], Tensor]
    variance: Callable[[Tensor], Tensor]
    fisher: Callable[[Tensor], Tensor]
    draws: int
    concave: bool


def from_function(function: Callable[[Tensor, Tensor], Tensor], options: FunctionOptions) -> AutomaticLikelihood:
    """Return the likelihood of a function of one example, which never sees the batch, applied to all at once."""
    title = f"The function '{getattr(function, '__name__', type(function).__name__)}'"
    names = options.get("parameters")
    if isinstance(names, str) or (names is not None and not names):
        raise InputError("parameters must be a sequence of one or more names, such as ('location', 'log_scale').")
    domains = options.get("domains")
    if domains is not None and names is None:
        raise InputError("domains were given without parameters: name the outputs that they belong to.")
    mean, variance, fisher = options.get("mean"), options.get("variance"), options.get("fisher")
    return AutomaticLikelihood(
        _row_by_row(function, title),
        None if names is None else tuple(names),
        None if domains is None else tuple(_support(domain) for domain in domains),
        _support(options.get("support", "real")),
        Predictions(
            _checked_sampler(options.get("sample"), title),
            None if mean is None else torch.vmap(mean),
            None if variance is None else torch.vmap(variance),
            None if fisher is None else torch.vmap(fisher),
        ),
        options.get("draws", 256),
        options.get("concave", False),
        title,
    )


def _row_by_row(function: Callable[[Tensor, Tensor], Tensor], title: str) -> Rows:
    mapped = torch.vmap(function)

    def value(f: Tensor, y: Tensor) -> Tensor:
        one = f"f of shape {tuple(f.shape[1:])} and y of shape {tuple(y.shape[1:])}"
        try:
            result = mapped(f, y)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{title} failed on one example, {one}: {str(error).splitlines()[0].rstrip('.')}. It is called for "
                "each example by itself and must return one number by torch operations, without .item(), branches on "
                "values or randomness."
            ) from error
        if result.shape != f.shape[:1]:
            raise InputError(
                f"{title} returned the shape {tuple(result.shape[1:])} for one example, {one}, but it must return "
                "one number: sum over what belongs to the example. It sees one example at a time, not the batch."
            )
        return result

    return value


def _checked_sampler(
    sample: Callable[[Tensor, torch.Generator | None], Tensor] | None, title: str
) -> Callable[[Tensor, torch.Generator | None], Tensor] | None:
    if sample is None:
        return None

    def checked(f: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = sample(f, generator)
        if drawn.shape[:1] != f.shape[:1]:
            raise InputError(
                f"sample= of {title[0].lower() + title[1:]} returned the shape {tuple(drawn.shape)} for outputs of "
                f"shape {tuple(f.shape)}, but it must return one target for each of the {len(f)} rows."
            )
        return drawn

    return checked


def _support(support: str | Support) -> Support:
    if isinstance(support, Support):
        return support
    if support not in _SUPPORTS:
        raise InputError(f"There is no domain '{support}'; known are {', '.join(_SUPPORTS)}.")
    return _SUPPORTS[support]
