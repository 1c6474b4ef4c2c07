r"""Feed-forward networks: linear layers and elementwise activations, evaluated with the activations' derivatives.

With inputs :math:`a`, a layer computes :math:`z = W a + b` and passes on :math:`\varphi(z)`; everything that follows
needs :math:`a`, :math:`\varphi'(z)` and, for second derivatives of the network, :math:`\varphi''(z)`. A backward pass
is then one matrix product per layer, for any number of vectors at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.linalg import is_near
from raphson.network._module_parts import children, is_plain
from raphson.network._onednn import linear, linear_tanh
from raphson.network.autodiff._double_backward import PlainCalls

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity, nn.Dropout),
)
"""Modules that act on each entry alone; dropout is the identity in evaluation mode, which an objective asks for."""

_NOTHING = (nn.Identity, nn.Dropout)


@dataclass(frozen=True, eq=False)
class FeedForwardLayer:
    """A linear layer with the activations after it.

    Attributes:
        linear: The layer.
        weight: Name of its weight in the network.
        bias: Name of its bias, or None.
        activations: What follows, up to the next layer.
    """

    linear: nn.Linear
    weight: str
    bias: str | None
    activations: tuple[nn.Module, ...]

    @property
    def w(self) -> Tensor:
        """The weight, ``(out, in)``, without a graph."""
        return self.linear.weight.detach()

    @property
    def is_tanh(self) -> bool:
        """Whether a hyperbolic tangent is all that follows."""
        return len(self.activations) == 1 and type(self.activations[0]) is nn.Tanh

    def evaluate(self, x: Tensor, second: bool = False) -> LayerValues:
        """Return what the layer does with inputs ``(..., in)``; ``second``: with second derivatives."""
        with torch.no_grad():
            if self.is_tanh and not second:
                a = linear_tanh(x, self.linear.weight, self.linear.bias)
                return LayerValues(self, x, a, torch.addcmul(a.new_ones(()), a, a, value=-1.0), None)
            z = linear(x, self.linear.weight, self.linear.bias)
            if not self.activations:
                return LayerValues(self, x, z, None, None)
            if len(self.activations) == 1 and type(self.activations[0]) is nn.ReLU:
                a = z.relu_()
                return LayerValues(self, x, a, a.sign(), None)
        with torch.enable_grad(), PlainCalls():
            z = z.requires_grad_()
            a = z * 1  # an activation may work in place
            for module in self.activations:
                a = module(a)
            (first,) = torch.autograd.grad(a.sum(), z, create_graph=second)
            curved = None
            if second and first.requires_grad:
                (curved,) = torch.autograd.grad(first.sum(), z, allow_unused=True)
        # where looking at a value costs more than computing with zeros, that is done
        curved = None if curved is None or (is_near(curved) and not bool(curved.any())) else curved
        return LayerValues(self, x, a.detach(), first.detach(), curved)


@dataclass(frozen=True, eq=False)
class LayerValues:
    """A layer at its inputs.

    Attributes:
        layer: The layer.
        inputs: ``a``, ``(..., in)``.
        outputs: ``phi(z)``, ``(..., out)``.
        derivative: ``phi'(z)``, ``(..., out)``; None for ones.
        second_derivative: ``phi''(z)``; None for zeros, or where it was not asked for.
    """

    layer: FeedForwardLayer
    inputs: Tensor
    outputs: Tensor
    derivative: Tensor | None
    second_derivative: Tensor | None

    def times_derivative(self, t: Tensor) -> Tensor:
        """Return tangents or gradients ``(k, ..., out)`` times the activation's derivative."""
        return t if self.derivative is None else t * self.derivative

    def times_derivative_(self, t: Tensor) -> Tensor:
        """Return the same in the memory of ``t``."""
        return t if self.derivative is None else t.mul_(self.derivative)

    def flat(self) -> Self:
        """Return the same with one axis of positions, ``(M, ...)``."""
        tensors = (self.inputs, self.outputs, self.derivative, self.second_derivative)
        return type(self)(self.layer, *(t if t is None else t.reshape(-1, t.shape[-1]) for t in tensors))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A ``Sequential`` of linear layers and elementwise activations.

    Attributes:
        before: What comes before the first linear layer.
        layers: The layers, each with the activations after it.
    """

    before: tuple[nn.Module, ...]
    layers: tuple[FeedForwardLayer, ...]

    def features(self, x: Any) -> Tensor:
        """Return the inputs of the first layer, ``(N, ..., in)``, from those of the network."""
        (found,) = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else (x,)
        with torch.no_grad():
            for module in self.before:
                # an activation may work in place
                found = module(found.clone() if getattr(module, "inplace", False) else found)
        return found  # type: ignore[no-any-return]

    def outputs(self, x: Any) -> Tensor:
        """Return the outputs of the network, ``(N, ..., C)``, for its inputs."""
        found = self.features(x)
        with torch.no_grad():
            for layer in self.layers:
                if layer.is_tanh:
                    found = linear_tanh(found, layer.linear.weight, layer.linear.bias)
                    continue
                found = linear(found, layer.linear.weight, layer.linear.bias)
                for module in layer.activations:
                    found = module(found)
        return found

    def forward_pass(self, features: Tensor, second: bool = False) -> Iterator[LayerValues]:
        """Yield the layers at their inputs, from the bottom up; ``second``: with second derivatives."""
        for layer in self.layers:
            at = layer.evaluate(features, second)
            yield at
            features = at.outputs


def backward_pass(layers: list[LayerValues], u: Tensor) -> Iterator[Tensor]:
    """Yield the gradients in the outputs ``z`` of linear layers, ``(k, ..., out)``, from the top down.

    The layers are a network or its upper part, ``u`` the gradients in its outputs, ``(k, ..., C)``: one matrix product
    for each layer but the lowest.
    """
    g = layers[-1].times_derivative(u)
    yield g
    for lower, upper in zip(layers[-2::-1], layers[:0:-1], strict=True):
        g = lower.times_derivative_(linear(g, upper.layer.w.mT))
        yield g


def read_feed_forward(module: nn.Module | None) -> FeedForward:
    """Return a module as a feed-forward network.

    Raises:
        InputError: It is none, or a function; the message names the part that is something else.
    """
    if module is None:
        raise InputError("the model is a function.")
    names = {id(p): name for name, p in module.named_parameters()}
    before: list[nn.Module] = []
    layers: list[tuple[nn.Linear, list[nn.Module]]] = []

    for part, where in _parts(module, ""):
        if type(part) is nn.Linear:
            layers.append((part, []))
        elif type(part) in _ACTIVATIONS:
            if type(part) not in _NOTHING:
                (layers[-1][1] if layers else before).append(part)
        elif type(part) is nn.Flatten and not layers:
            before.append(part)
        else:
            raise InputError(f"{where} is a {type(part).__name__}.")
    if not layers:
        raise InputError("the model has no linear layer.")
    own = [p for linear, _ in layers for p in (linear.weight, linear.bias) if p is not None]
    if len({id(p) for p in own}) < len(own) or any(id(p) not in names for p in own):
        raise InputError("two layers share a weight or bias.")
    found = [FeedForwardLayer(a, names[id(a.weight)], names.get(id(a.bias)), tuple(after)) for a, after in layers]
    return FeedForward(tuple(before), tuple(found))


def _parts(part: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules in a sequence of sequences, each with the words for where it is."""
    where = f"module '{name}'" if name else "the model"
    if not is_plain(part):
        raise InputError(f"{where} has a forward hook.")
    if type(part) is not nn.Sequential:
        yield part, where
        return
    for key, child in children(part):
        yield from _parts(child, f"{name}.{key}" if name else key)


def find_feed_forward(module: nn.Module | None) -> FeedForward | None:
    """Return a module as a feed-forward network, or None if it is none."""
    try:
        return read_feed_forward(module)
    except InputError:
        return None
