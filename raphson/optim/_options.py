"""Options of the optimizers that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import torch

from raphson._errors import InputError

Estimator = Literal["mc", "exact", "empirical", "recursive"]
Structure = Literal["kfac", "ekfac"]
StepSize = Literal["auto", "quadratic", "fixed"]


@dataclass(frozen=True)
class CurvatureOptions:
    """How ``KFAC`` estimates the curvature of a mini-batch, and how it averages it over mini-batches.

    Args:
        estimator: The output side of the factors: ``"mc"`` (sampled, one backward pass without weight gradients),
            ``"exact"`` (all C vectors), ``"empirical"`` (the loss gradients themselves, no pass), ``"recursive"``
            (KFRA: averages passed from layer to layer of a ``torch.nn.Sequential``, linear or elementwise; no pass).
            ``"mc"`` takes no samples for a linear layer that makes the outputs of a concave likelihood with a diagonal
            output Hessian.
        structure: ``"kfac"``, or ``"ekfac"``: with the second moments of the gradients in the factors' eigenbasis.
        sharing: How positions that share a weight are combined, ``"expand"`` or ``"reduce"``.
        samples: Number of samples for ``"mc"``.
        decay: Share of the running averages that stays after a step.
        factor_period: Steps between updates of the factors; None: so that these cost a seventh of a gradient a step.
        inverse_period: Steps between inverses; None: so that these cost a seventh of a gradient a step.
        generator: Source of the samples; None for one that starts from 0.

    Raises:
        InputError: A value is not one of those above.

    Examples:
        >>> CurvatureOptions(estimator="empirical").decay
        0.95
    """

    estimator: Estimator = "mc"
    structure: Structure = "kfac"
    sharing: Literal["expand", "reduce"] = "expand"
    samples: int = 1
    decay: float = 0.95
    factor_period: int | None = None
    inverse_period: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("estimator", get_args(Estimator)),
            ("structure", get_args(Structure)),
            ("sharing", ("expand", "reduce")),
        ):
            one_of(name, getattr(self, name), known)
        for name in ("samples", "factor_period", "inverse_period"):
            value = getattr(self, name)
            if value is not None or name == "samples":
                whole(name, value)
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InputError(f"generator is {self.generator!r}, but it must be a torch.Generator or None.")
        share("decay", self.decay)


@dataclass(frozen=True)
class DampingOptions:
    r"""How the damping :math:`\lambda` of a quadratic model is chosen.

    Every ``period`` steps, and up to four times as seldom while that changes nothing, the change of the loss by a step
    is compared with what its quadratic model promised. Where the ratio of the two, each averaged over about the last
    five comparisons, is above 4/5, :math:`\lambda` is multiplied by ``rate ** period``; below 1/4, it is divided, but
    not to more than 1e-5 of the mean eigenvalue of the curvature unless the loss rises by as much as was promised: the
    rest is noise. Where curvature has grown so that :math:`\lambda` is below that share, it is divided, too. Other than
    with Martens and Grosse (2015, section 6.5), the loss is that of the next mini-batch: on the one that made it, a
    step of the exact model is nearly always as good as promised, and the damping would fall to zero. The first value is
    the smallest with which a first step gains a tenth of what one can.

    Args:
        start: The first value, in the units of the curvature; None: chosen at the first step.
        adapt: Whether it changes.
        period: Steps between changes.
        rate: Factor of a change, a step.
        smallest: Lower bound.
        largest: Upper bound.

    Raises:
        InputError: A value makes no sense.

    Examples:
        >>> DampingOptions(start=1e-3, adapt=False).start
        0.001
    """

    start: float | None = None
    adapt: bool = True
    period: int = 5
    rate: float = 0.95
    smallest: float = 1e-10
    largest: float = 1e10

    def __post_init__(self) -> None:
        if self.start is not None:
            positive("damping", self.start)
        for name in ("rate", "smallest", "largest"):
            positive(name, getattr(self, name))
        if not self.rate < 1:
            raise InputError(f"rate is {self.rate!r}, but it must be between 0 and 1.")
        whole("period", self.period)
        flag("adapt", self.adapt)
        if self.smallest > self.largest:
            raise InputError(f"smallest is {self.smallest!r} and largest {self.largest!r}, but must be in this order.")


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ``InputError`` for a value that is not one of the possible ones."""
    if value not in known:
        raise InputError(f"{name} is {value!r}, but it must be one of {', '.join(map(repr, known))}.")


def positive(name: str, value: object) -> None:
    """Raise ``InputError`` for what is not a positive, finite number."""
    if not (_is_number(value) and 0 < value < float("inf")):
        raise InputError(f"{name} is {value!r}, but it must be a positive, finite number.")


def not_negative(name: str, value: object) -> None:
    """Raise ``InputError`` for what is not a finite number of at least 0."""
    if not (_is_number(value) and 0 <= value < float("inf")):
        raise InputError(f"{name} is {value!r}, but it must be a finite number that is not negative.")


def share(name: str, value: object) -> None:
    """Raise ``InputError`` for what is no share: a number of at least 0 and less than 1."""
    if not (_is_number(value) and 0 <= value < 1):
        raise InputError(f"{name} is {value!r}, but it must be a number of at least 0 and less than 1.")


def whole(name: str, value: object, least: int = 1) -> None:
    """Raise ``InputError`` for what is not a whole number of at least ``least``."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise InputError(f"{name} is {value!r}, but it must be a whole number, {least} or more.")


def flag(name: str, value: object) -> None:
    """Raise ``InputError`` for what is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}, but it must be True or False.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
