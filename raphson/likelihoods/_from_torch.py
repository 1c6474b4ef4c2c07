r"""The one place that knows losses by their class: from a torch loss to the likelihood that it is.

Add a family by adding its conversion to ``_CONVERSIONS``; nothing else in the library looks at the type of
a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard, Unpack

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import Link
from raphson.likelihoods._support import NONNEGATIVE, POSITIVE, REAL
from raphson.likelihoods.composed._automatic import AutomaticLikelihood, Predictions
from raphson.likelihoods.composed._distribution import from_distribution
from raphson.likelihoods.composed._function import FunctionOptions, from_function
from raphson.likelihoods.composed._linked import Linked
from raphson.likelihoods.composed._scaled import ScaledLikelihood
from raphson.likelihoods.families._bernoulli import Bernoulli
from raphson.likelihoods.families._categorical import Categorical
from raphson.likelihoods.families._gaussian import Gaussian

Reduction = Literal["mean", "sum"]
Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Loss: TypeAlias = Likelihood | nn.Module | type[Distribution] | Function


@dataclass(frozen=True, eq=False)
class TorchLoss:
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


def as_likelihood(
    loss: Loss,
    *,
    links: str | Link | Sequence[str | Link] | Mapping[str, str | Link] | None = None,
    fixed: Mapping[str, float] | None = None,
    **options: Unpack[FunctionOptions],
) -> Likelihood:
    r"""Return the likelihood that a loss, a function or a family of distributions stands for.

    * A **torch loss**: value, gradient and Hessian are those of the loss with every option it has; see
      ``from_torch`` for the reduction. Outputs have classes, labels or responses on the **last** axis,
      ``(N, T, K)``, where torch's ``CrossEntropyLoss`` has them on axis 1, ``(N, K, T)``.
    * A **function** ``nll(f, y)`` of one example, outputs ``(C,)`` and its target, that returns a number: it is
      applied to all examples at once, and differentiated by torch. ``FunctionOptions`` lists what may be told
      about it. The Fisher information of a function with ``sample=`` and no ``fisher=`` is an average over
      256 sampled targets per row (``draws=``): 8.8 percent relative standard error on the diagonal of one
      row's for a Gaussian score, and :math:`\sqrt N` times less in a mean over ``N`` rows.
    * A **family of** ``torch.distributions`` with scalar targets: the negative log density, with a link from
      each output to a parameter. Its Fisher information is exact where torch knows the Kullback-Leibler
      divergence of the family, and by sampling elsewhere.

    Args:
        loss: A likelihood, which is returned as it is, a torch loss, a function or a class of distributions.
        links: From each output to a parameter (see ``Linked``). For a family by name, in the order of the
            outputs, ``{"concentration": "exp", "rate": "exp"}``, with suitable ones by default. For anything
            else one for all outputs or one for each parameter.
        fixed: Values of a family's parameters that are known.
        **options: What is known of a function (``FunctionOptions``); a family takes ``draws`` of them.

    Returns:
        The likelihood.

    Raises:
        InputError: The loss is not known, or an option does not belong to it.

    Examples:
        >>> import torch
        >>> from raphson.likelihoods import as_likelihood
        >>> as_likelihood(torch.nn.CrossEntropyLoss(label_smoothing=0.1))
        Categorical(class_weight=None, ignore_index=-100, label_smoothing=0.1)

        The Poisson with a log mean, as a function and as a family: gradient e^f - y, Hessian e^f.

        >>> f, y = torch.zeros(1, 1), torch.tensor([3.0])
        >>> poisson = as_likelihood(lambda f, y: f.exp().sum() - y * f.sum(), parameters=("log_mean",))
        >>> poisson.gradient(f, y), poisson.hessian(f, y).to_dense()
        (tensor([[-2.]]), tensor([[[1.]]]))
        >>> family = as_likelihood(torch.distributions.Poisson, links={"rate": "exp"})
        >>> family.gradient(f, y), family.fisher(f).to_dense()
        (tensor([[-2.]]), tensor([[[1.]]]))
    """
    if _is_family(loss):
        if links is not None and not isinstance(links, Mapping):
            raise InputError(
                "The links of a family of distributions are given by parameter, {'concentration': 'exp', ...}, "
                f"not as {links!r}."
            )
        _refuse_options(loss.__name__, set(options) - {"draws"})
        return from_distribution(loss, links, fixed, options.get("draws", 256))
    if fixed is not None:
        raise InputError("fixed holds parameters of a family of torch.distributions, and this is not one.")
    if isinstance(links, Mapping):
        raise InputError("Links by name belong to a family of torch.distributions: give them in order here.")
    if _is_function(loss):
        likelihood: Likelihood = from_function(loss, options)
    else:
        _refuse_options(type(loss).__name__, set(options))
        likelihood = from_torch(loss).likelihood
    return likelihood if links is None else Linked(likelihood, links)


def from_torch(loss: Loss) -> TorchLoss:
    """Return the likelihood that a loss stands for and how it combines rows.

    torch averages ``BCEWithLogitsLoss``, ``MSELoss`` and its other elementwise losses over outputs as well as
    rows, so that with ``"mean"`` the likelihood of a row is the average over its outputs.

    Raises:
        InputError: The loss is not known, or it does not reduce to a number.
    """
    if isinstance(loss, Likelihood):
        return TorchLoss(loss, None)
    if _is_function(loss) or _is_family(loss):
        return TorchLoss(as_likelihood(loss), None)
    # The exact class: a subclass may compute something else.
    convert = _CONVERSIONS.get(type(loss))
    if convert is None:
        if isinstance(loss, type):
            raise InputError(
                f"The loss is the class {loss.__name__}: give one of its members, as in {loss.__name__}()."
            )
        known = ", ".join(f"torch.nn.{kind.__name__}" for kind in _CONVERSIONS)
        why = _REFUSED.get(type(loss), "Write it as a function nll(f, y) of one example and pass that")
        raise InputError(
            f"{type(loss).__name__} is not a known loss. Known are {known}, raphson's own likelihoods and families "
            f"of torch.distributions. {why}."
        )
    module: Any = loss
    reduction = module.reduction
    if reduction not in {"mean", "sum"}:
        raise InputError(
            f"{type(loss).__name__} has reduction={reduction!r}, which leaves one value per row, but "
            "derivatives need a single number: use reduction='mean' or reduction='sum'."
        )
    return TorchLoss(convert(module), reduction)


def _is_family(loss: object) -> TypeGuard[type[Distribution]]:
    return isinstance(loss, type) and issubclass(loss, Distribution)


def _is_function(loss: object) -> TypeGuard[Function]:
    # a module may hold parameters and a batch reduction; a class is a constructor, not a function of (f, y)
    return callable(loss) and not isinstance(loss, nn.Module | type)


def _refuse_options(name: str, given: set[str]) -> None:
    if given:
        raise InputError(f"{sorted(given)[0]}= belongs to a function nll(f, y), and {name} is not one.")


def _cross_entropy(loss: nn.CrossEntropyLoss) -> Likelihood:
    return Categorical(loss.weight, loss.ignore_index, loss.label_smoothing)


def _binary_cross_entropy(loss: nn.BCEWithLogitsLoss) -> Likelihood:
    base = Bernoulli(_per_output(loss.pos_weight, "pos_weight"), _per_output(loss.weight, "weight"))
    return _reduced(base, loss)


def _squared_error(loss: nn.MSELoss) -> Likelihood:
    # Variance 1/2 makes the Gaussian exponent the plain square.
    base = Gaussian(scale=math.sqrt(0.5), normalized=False)
    return _reduced(base, loss)


def _probability_cross_entropy(loss: nn.BCELoss) -> Likelihood:
    return _reduced(Linked(Bernoulli(label_weight=_per_output(loss.weight, "weight", "BCELoss")), "logit"), loss)


def _huber(loss: nn.HuberLoss) -> Likelihood:
    return _of_residual(loss, lambda f, y: nn.functional.huber_loss(f, y, reduction="none", delta=loss.delta))


def _smooth_absolute_error(loss: nn.SmoothL1Loss) -> Likelihood:
    if loss.beta == 0:
        raise InputError(f"SmoothL1Loss with beta=0 is L1Loss. {_REFUSED[nn.L1Loss]}.")
    return _of_residual(loss, lambda f, y: nn.functional.smooth_l1_loss(f, y, reduction="none", beta=loss.beta))


def _of_residual(loss: nn.Module, value: Function) -> Likelihood:
    title = f"torch.nn.{type(loss).__name__}"
    # quadratic near zero and linear beyond; not the logarithm of a density, so that nothing can be sampled
    each = AutomaticLikelihood(lambda f, y: value(f[:, 0], y), ("location",), concave=True, title=title)
    return _reduced(each, loss)


def _poisson(loss: nn.PoissonNLLLoss) -> Likelihood:
    """Return torch's loss to the number: without log y!, or with Stirling's approximation of it."""
    log_input, eps = loss.log_input, loss.eps

    def value(f: Tensor, y: Tensor) -> Tensor:
        return nn.functional.poisson_nll_loss(f[:, 0], y, log_input, loss.full, eps=eps, reduction="none")

    def rate(f: Tensor) -> Tensor:
        return f[:, 0].exp() if log_input else f[:, 0]

    def fisher(f: Tensor) -> Tensor:
        return (f.exp() if log_input else f / (f + eps).square()).unsqueeze(-1)

    predictions = Predictions(
        lambda f, generator: torch.poisson(rate(f), generator=generator), mean=rate, variance=rate, fisher=fisher
    )
    name, limit = ("log_mean", REAL) if log_input else ("mean", POSITIVE)
    title = "torch.nn.PoissonNLLLoss"
    each = AutomaticLikelihood(value, (name,), (limit,), NONNEGATIVE, predictions, concave=True, title=title)
    return _reduced(each, loss)


def _reduced(base: Likelihood, loss: Any) -> Likelihood:
    return ScaledLikelihood(base, mean_over_outputs=True) if loss.reduction == "mean" else base


def _per_output(w: Tensor | None, name: str, kind: str = "BCEWithLogitsLoss") -> Tensor | None:
    if w is None or w.ndim <= 1:
        return w
    if w.shape[:-1].numel() != 1:
        raise InputError(
            f"{kind} has a {name} of shape {tuple(w.shape)}, more than one number per output. "
            "A weight per example belongs to the data: pass it as example weights."
        )
    return w.reshape(-1)


_CONVERSIONS: dict[type, Callable[..., Likelihood]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.BCELoss: _probability_cross_entropy,
    nn.MSELoss: _squared_error,
    nn.HuberLoss: _huber,
    nn.SmoothL1Loss: _smooth_absolute_error,
    nn.PoissonNLLLoss: _poisson,
}

# What to do instead, for losses that have no second-order meaning of their own.
_REFUSED: dict[type, str] = {
    str: "Names are for VectorGLM and the command line: give the likelihood itself, such as rp.Poisson()",
    nn.L1Loss: (
        "The second derivative of an absolute error is zero wherever it exists, so that Newton has nothing to go "
        "by: use HuberLoss, SmoothL1Loss or StudentT, which are smooth near zero"
    ),
    nn.NLLLoss: (
        "It is linear in the log probabilities it is given, so that its Hessian is zero there: leave out the "
        "LogSoftmax before it and use CrossEntropyLoss on the logits"
    ),
    nn.GaussianNLLLoss: (
        "It takes the variance as an argument apart from the outputs: use HeteroscedasticGaussian('mean_variance'), "
        "whose outputs are the mean and the variance of each response"
    ),
}
