r"""The contractive penalty: how much an encoder's output moves with its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.network._call_place import runnable
from raphson.network._chance import check_draws
from raphson.network._encoder import checked_encoder
from raphson.network.layers._feed_forward import find_feed_forward

Function = Callable[[Tensor], Tensor]


class PenaltyEstimate(NamedTuple):
    """An estimated penalty.

    Attributes:
        value: The penalty, differentiable.
        standard_error: Standard error of the estimate, given the examples.

    Examples:
        >>> encoder = nn.Linear(2, 1)
        >>> found = contractive_penalty_estimate(encoder, torch.ones(3, 2))
        >>> torch.allclose(found.value, encoder.weight.square().sum()), found.standard_error.item()
        (True, 0.0)
    """

    value: Tensor
    standard_error: Tensor


def contractive_penalty(
    encoder: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    method: Literal["exact", "hutchinson"] = "exact",
    *,
    samples: int = 1,
    higher_order: float = 0.0,
    noise: float = 0.1,
    corruptions: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the squared Frobenius norm of an encoder's input Jacobian, averaged over examples (CAE).

    .. math:: \frac1N \sum_n \|J(x_n)\|_F^2 \;+\; \gamma\, \frac1N \sum_n E_\epsilon \|J(x_n) - J(x_n + \epsilon)\|_F^2,
        \qquad J(x) = \frac{\partial h}{\partial x}, \quad \epsilon \sim N(0, \sigma^2 I)

    The second term (CAE+H) penalizes the curvature of the encoder. For a linear layer with an elementwise activation,
    :math:`\|J\|_F^2 = \sum_j \varphi'(z_j)^2 \sum_i W_{ji}^2` costs no more than the layer; any other encoder takes as
    many backward passes as it has outputs, made together. ``"hutchinson"`` takes one for each sample: with random signs
    v, :math:`\|J^\top v\|^2` has the mean :math:`\|J\|_F^2` and the variance
    :math:`2 (\|J J^\top\|_F^2 - \sum_j (J J^\top)_{jj}^2)`; ``contractive_penalty_estimate`` returns it with its error.

    Args:
        encoder: From inputs ``(N, ...)`` to codes ``(N, ...)``, each example by itself. It may be in training mode and
            random: the penalty is that of the encoder as it was drawn. What is seen of it on two inputs is remembered
            as long as its modules, their modes and hooks are the same.
        x: Inputs ``(N, ...)``.
        method: ``"exact"`` or ``"hutchinson"``.
        samples: Number of random vectors an example, for ``"hutchinson"``.
        higher_order: :math:`\gamma`; 0 leaves the second term out.
        noise: :math:`\sigma`.
        corruptions: Number of :math:`\epsilon` for each example.
        generator: Source of signs and noise; None for torch's own.

    Returns:
        A scalar, differentiable in the encoder's parameters; ``InputError`` if an argument makes no sense.

    References:
        S. Rifai, P. Vincent, X. Muller, X. Glorot and Y. Bengio (2011), Contractive auto-encoders: explicit invariance
        during feature extraction, ICML. S. Rifai et al. (2011), Higher order contractive auto-encoder, ECML.

    Examples:
        The Jacobian of a linear encoder is its weight.

        >>> import torch
        >>> import raphson as rp
        >>> encoder = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.constant_(encoder.weight, 3.0)
        >>> rp.contractive_penalty(encoder, torch.randn(5, 2)).item()
        18.0
    """
    squares = _squares(encoder, x, method, samples, higher_order, noise, corruptions, generator)
    return squares.mean()


def contractive_penalty_estimate(
    encoder: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    samples: int = 2,
    generator: torch.Generator | None = None,
) -> PenaltyEstimate:
    """Return the penalty by random vectors with its standard error, from the spread of each example's samples.

    Args:
        encoder: As for ``contractive_penalty``.
        x: Inputs ``(N, ...)``.
        samples: Number of random vectors an example, 2 or more.
        generator: Source of signs; None for torch's own.

    Returns:
        Penalty and standard error.

    Raises:
        InputError: There is only one sample.

    Examples:
        With one output there is nothing to estimate.

        >>> import torch
        >>> import raphson as rp
        >>> rp.contractive_penalty_estimate(torch.nn.Linear(2, 1), torch.randn(5, 2)).standard_error.item()
        0.0
    """
    if not isinstance(samples, int) or samples < 2:
        raise InputError(f"samples is {samples!r}, but a standard error takes two samples or more.")
    squares = _squares(encoder, x, "hutchinson", samples, 0.0, 0.0, 1, generator)
    variance = squares.detach().var(0) / samples
    return PenaltyEstimate(squares.mean(), variance.sum().sqrt() / squares.shape[1])


def _squares(
    encoder: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    method: str,
    samples: int,
    higher_order: float,
    noise: float,
    corruptions: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the penalty of each sample and example, ``(S, N)``."""
    if method not in {"exact", "hutchinson"}:
        raise InputError(f"method is {method!r}, but it must be 'exact' or 'hutchinson'.")
    if not isinstance(corruptions, int) or corruptions < 1:
        raise InputError(f"corruptions is {corruptions!r}, but it must be a whole number, 1 or more.")
    for name, size in (("higher_order", higher_order), ("noise", noise)):
        if not isinstance(size, int | float) or not 0 <= size < float("inf"):
            raise InputError(f"{name} is {size!r}, but it must be a finite number that is not negative.")
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}, but inputs must be a tensor (N, ...): torch.as_tensor makes one.")
    if not x.is_floating_point() or x.ndim < 2:
        raise InputError(
            f"x has type {x.dtype} and shape {tuple(x.shape)}: a penalty on a Jacobian takes inputs (N, ...) of a "
            "floating-point type, examples first."
        )
    if not len(x):
        raise InputError("x holds no example: give at least one.")
    check_draws(samples, generator)
    if not callable(encoder):
        raise InputError(f"The encoder is a {type(encoder).__name__}, but it must be a torch module, or a function.")
    with torch.enable_grad():
        part, squared = _parts(encoder, x, method, samples, generator)
        here = part(x)
        total = squared(here)
        for _ in range(corruptions if higher_order else 0):
            shift = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=_device(generator, x)).to(x.device)
            total = total + (higher_order / corruptions) * squared(here - part(x + noise * shift))
    return total


def _parts(
    encoder: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    method: str,
    samples: int,
    generator: torch.Generator | None,
) -> tuple[Function, Function]:
    """Return what of the Jacobian is needed at an input, as a linear function of it, and its squared norms."""
    run = checked_encoder(encoder, x)
    if method == "hutchinson":
        v = _signs(run, x, samples, generator)
        return (lambda at: _pulled(run, at, v)), _each_sample
    layer = _single_layer(encoder)
    if layer is not None:
        return layer.derivative, layer.squares
    return (lambda at: _pulled(run, at, None)), _all_rows


class _SingleLayer:
    """A linear layer with elementwise activations, whose Jacobian is ``diag(phi') W``."""

    def __init__(self, linear: nn.Linear, activations: tuple[nn.Module, ...], flatten: tuple[nn.Module, ...]) -> None:
        self._linear, self._activations, self._flatten = linear, activations, flatten

    def derivative(self, x: Tensor) -> Tensor:
        """Return the derivatives of the activation, ``(N, ..., out)``, with a graph."""
        with runnable(self._linear, x, self._linear.weight.dtype):
            for module in self._flatten:
                x = module(x)
            z = F.linear(x, self._linear.weight, self._linear.bias)
        if not self._activations:
            return torch.ones_like(z)
        a = z if z.requires_grad else z.detach().requires_grad_()
        out = a * 1  # an activation may work in place
        for module in self._activations:
            out = module(out)
        (first,) = torch.autograd.grad(out.sum(), a, create_graph=True)
        return first

    def squares(self, derivative: Tensor) -> Tensor:
        """Return the squared norms of ``diag(d) W``, ``(1, N)``."""
        weights = self._linear.weight.square().sum(1)
        return (derivative.square() * weights).flatten(1).sum(1).unsqueeze(0)


def _single_layer(encoder: nn.Module | Callable[[Tensor], Tensor]) -> _SingleLayer | None:
    if not isinstance(encoder, nn.Module):
        return None
    found = find_feed_forward(encoder)
    if found is None or len(found.layers) != 1 or not all(type(part) is nn.Flatten for part in found.before):
        return None
    # closed forms are those of evaluation mode, where dropout does nothing
    if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in encoder.modules()):
        return None
    layer = found.layers[0]
    return _SingleLayer(layer.linear, layer.activations, found.before)


def _pulled(encoder: Callable[[Tensor], Tensor], x: Tensor, v: Tensor | None) -> Tensor:
    """Return ``J^T v`` for vectors ``(S, N, H)``, or all rows of J, as ``(S, N, ...)`` with a graph."""
    inputs = x if x.requires_grad else x.detach().requires_grad_()
    codes = encoder(inputs).reshape(len(x), -1)
    if v is None:
        h = codes.shape[1]
        v = torch.eye(h, dtype=codes.dtype, device=codes.device)[:, None].expand(h, len(x), h)
    try:
        (found,) = torch.autograd.grad(codes, inputs, v, create_graph=True, is_grads_batched=True)
    except (RuntimeError, NotImplementedError):  # an operation without a rule for many gradients
        parts = [torch.autograd.grad(codes, inputs, one, create_graph=True)[0] for one in v]
        found = torch.stack(parts)
    return found


def _each_sample(pulled: Tensor) -> Tensor:
    """Return the squared norms of ``J^T v``, ``(S, N)``."""
    return pulled.square().flatten(2).sum(2)


def _all_rows(rows: Tensor) -> Tensor:
    """Return the squared norms of Jacobians whose rows are on the first axis, ``(1, N)``."""
    return _each_sample(rows).sum(0, keepdim=True)


def _signs(encoder: Callable[[Tensor], Tensor], x: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    with torch.no_grad():
        h = encoder(x)[0].numel()
    drawn = torch.randint(0, 2, (samples, len(x), h), generator=generator, device=_device(generator, x))
    return drawn.to(x).mul_(2).sub_(1)


def _device(generator: torch.Generator | None, x: Tensor) -> torch.device:
    return x.device if generator is None else generator.device
