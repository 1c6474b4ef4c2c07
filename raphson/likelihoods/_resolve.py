r"""The one place that knows losses by their class: from a torch loss to the likelihood that it is.

Add a family by adding its conversion to ``_CONVERSIONS``; nothing else in the library looks at the type of
a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from raphson._errors import InputError

from ._bernoulli import Bernoulli
from ._categorical import Categorical
from ._gaussian import Gaussian
from ._likelihood import Likelihood
from ._scaled import ScaledLikelihood

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, eq=False)
class Resolved:
    r"""A likelihood together with the reduction that its loss asks for.

    ``"mean"`` is :math:`(1/W) \sum_n w_n \ell_n` with :math:`W = \sum_n w_n` and :math:`w_n` from
    ``likelihood.weight(y)`` (class weights are inside :math:`\ell_n` already), over all leading dimensions;
    ``"sum"`` is :math:`\sum_n \ell_n`. ``None``: a likelihood says nothing about it.

    Attributes:
        likelihood: The likelihood of one row.
        reduction: How rows combine.
    """

    likelihood: Likelihood
    reduction: Reduction | None


def as_likelihood(loss: Likelihood | nn.Module) -> Likelihood:
    """Return the likelihood that a loss stands for.

    The value, gradient and Hessian are those of the torch loss with every option it has; see ``resolve_loss``
    for the reduction. Outputs have classes, labels or responses on the **last** axis, ``(N, T, K)``, where
    torch's ``CrossEntropyLoss`` has them on axis 1, ``(N, K, T)``.

    Args:
        loss: A likelihood, which is returned as it is, or one of torch's ``CrossEntropyLoss``,
            ``BCEWithLogitsLoss`` and ``MSELoss``.

    Returns:
        The likelihood.

    Examples:
        >>> from torch import nn
        >>> from raphson.likelihoods import as_likelihood
        >>> as_likelihood(nn.CrossEntropyLoss(label_smoothing=0.1))
        Categorical(class_weight=None, ignore_index=-100, label_smoothing=0.1)
    """
    return resolve_loss(loss).likelihood


def resolve_loss(loss: Likelihood | nn.Module) -> Resolved:
    """Return the likelihood that a loss stands for and how it combines rows.

    torch averages ``BCEWithLogitsLoss`` and ``MSELoss`` over rows and outputs alike, so that with ``"mean"``
    the likelihood of a row is the average over its outputs.

    Args:
        loss: A likelihood or a torch loss, as for ``as_likelihood``.

    Returns:
        Likelihood and reduction.

    Raises:
        InputError: The loss is not known, or it does not reduce to a number.
    """
    if isinstance(loss, Likelihood):
        return Resolved(loss, None)
    # The exact class: a subclass may compute something else.
    convert = _CONVERSIONS.get(type(loss))
    if convert is None:
        known = ", ".join(f"torch.nn.{kind.__name__}" for kind in _CONVERSIONS)
        raise InputError(
            f"{type(loss).__name__} is not a known loss. Known are {known} and raphson's own likelihoods "
            "(Categorical, Bernoulli, Gaussian); write a subclass of Likelihood for another."
        )
    reduction: Any = loss.reduction
    if reduction not in {"mean", "sum"}:
        raise InputError(
            f"{type(loss).__name__} has reduction={reduction!r}, which leaves one value per row, but "
            "derivatives need a single number: use reduction='mean' or reduction='sum'."
        )
    return Resolved(convert(loss), reduction)


def _cross_entropy(loss: nn.CrossEntropyLoss) -> Likelihood:
    return Categorical(loss.weight, loss.ignore_index, loss.label_smoothing)


def _binary_cross_entropy(loss: nn.BCEWithLogitsLoss) -> Likelihood:
    base = Bernoulli(_per_output(loss.pos_weight, "pos_weight"), _per_output(loss.weight, "weight"))
    return ScaledLikelihood(base, mean_over_outputs=True) if loss.reduction == "mean" else base


def _squared_error(loss: nn.MSELoss) -> Likelihood:
    # Variance 1/2 makes the Gaussian exponent the plain square.
    base = Gaussian(scale=math.sqrt(0.5), normalized=False)
    return ScaledLikelihood(base, mean_over_outputs=True) if loss.reduction == "mean" else base


def _per_output(w: Tensor | None, name: str) -> Tensor | None:
    if w is None or w.ndim <= 1:
        return w
    if w.shape[:-1].numel() != 1:
        raise InputError(
            f"BCEWithLogitsLoss has a {name} of shape {tuple(w.shape)}, more than one number per output. "
            "A weight per example belongs to the data: pass it as example weights."
        )
    return w.reshape(-1)


_CONVERSIONS: dict[type, Callable[..., Likelihood]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.MSELoss: _squared_error,
}
