r"""KFRA: the Gauss-Newton matrix of the pre-activations, averaged over the data layer by layer.

With the pre-activations h of a layer, W the weight above it and b = f'(h) the slopes in between,

.. math:: H_{l} = \bigl(W_{l+1}^T H_{l+1} W_{l+1}\bigr) \odot \overline{b_l b_l^T}

(Botev, Ritter and Barber 2017, eq. 20): exact for one example, and no backward pass for any number of outputs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.linalg import Dense
from raphson.model import ParameterSpace

from ._columns import add_output_gram, average_weights
from ._gram import Gram
from ._kronecker_factors import MatmulTerm
from ._layer_operator import LayerOperator
from ._layer_plan import Bias
from ._layer_sums import Block, assemble, joined, whole
from ._objective import Objective

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity, nn.Dropout),
)
"""Modules that act on each entry alone; dropout is the identity in evaluation mode, which an objective asks for."""


def kfra(objective: Objective, bias: Bias) -> LayerOperator:
    """Return the Kronecker factors with the recursive output side.

    Args:
        objective: Of a ``Sequential`` network of linear layers and elementwise activations.
        bias: Whether biases share the block of their weight.

    Returns:
        The block-diagonal operator.
    """
    before, chain = _chain(objective.model.module)
    layers = [_Layer(linear, activations, objective, bias == "joint") for linear, activations in chain]
    c = layers[-1].linear.out_features
    h = Gram(1, c, objective.space.empty())
    for index, batch in enumerate(objective.batches()):
        x = before(batch.x[0] if isinstance(batch.x, tuple) else batch.x)
        weights, _ = average_weights(objective, batch, x.shape[:-1])
        with torch.no_grad():
            for layer in layers:
                x = layer.add(x, weights)
            objective.check_finite(objective.likelihood.nll(x, batch.y), index)
            add_output_gram(h, objective, batch, x)
    blocks = layers[-1].blocks(h.total()[0] * layers[-1].mean_slopes())
    for lower, upper in zip(layers[-2::-1], layers[:0:-1], strict=True):
        blocks += lower.blocks(upper.pulled_back() * lower.mean_slopes())
    return assemble(objective, blocks)


class _Layer:
    """A linear layer and the activations after it, with averages over the data.

    Args:
        linear: The layer.
        activations: What follows, up to the next layer.
        objective: Whose parameters are differentiated.
        joint: Whether the bias shares the block of the weight.
    """

    def __init__(self, linear: nn.Linear, activations: list[nn.Module], objective: Objective, joint: bool) -> None:
        self.linear, self._activations, self._objective = linear, activations, objective
        assert objective.model.module is not None
        names = {id(p): name for name, p in objective.model.module.named_parameters()}
        self._weight_name, self._bias_name = (
            name if (name := names.get(id(p))) in objective.space.tensors else None
            for p in (linear.weight, linear.bias)
        )
        joint = joint and self._weight_name is not None and self._bias_name is not None
        d, like = linear.out_features, objective.space.empty()
        self._term = MatmulTerm((1, d, linear.in_features), "expand", joint, False, like)
        self._slopes = Gram(1, d, like)
        self._weight = 0.0

    def add(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Add inputs ``(..., in)``, with weights of the positions, and return the activations."""
        rows = x.reshape(-1, x.shape[-1])
        if self._weight_name is not None:
            self._term.add_rows(rows[:, None, :, None], weights)
        h: Tensor = self.linear(x)
        if not self._activations:
            return h
        with torch.enable_grad():
            before = h.requires_grad_()
            after: Tensor = before * 1  # an activation may work in place
            for module in self._activations:
                after = module(after)
            (slope,) = torch.autograd.grad(after.sum(), before)
        slope = slope.reshape(-1, slope.shape[-1])
        self._weight += slope.shape[0] if weights is None else float(weights.sum())
        slope = slope if weights is None else slope * weights.sqrt()[:, None]
        self._slopes.add(slope[:, None, :, None])
        return after.detach()

    def mean_slopes(self) -> Tensor:
        """Return the average outer product of the slopes, ``(out, out)``; ones without activation."""
        total = self._slopes.total()[0]
        return total / self._weight if self._weight > 0 else torch.ones_like(total)

    def pulled_back(self) -> Tensor:
        """Return ``W^T H W``, once ``blocks`` has set H."""
        w = self.linear.weight.detach()
        pulled: Tensor = w.mT @ self._h @ w
        return pulled

    def blocks(self, h: Tensor) -> list[Block]:
        """Return the blocks of those of weight and bias that are differentiated."""
        self._h = h
        space, weight, bias = self._objective.space, self._weight_name, self._bias_name
        found: list[Block] = []
        if weight is not None:
            both = [weight, bias] if self._term.joint and bias is not None else [weight]
            places = partial(_rows, space, both, self.linear.weight.shape)
            product = self._term.operator(h.unsqueeze(0))
            found.append(Block(", ".join(both), space.slices[weight].start, places, product))
            bias = None if self._term.joint else bias
        if bias is not None:
            found.append(Block(bias, space.slices[bias].start, partial(whole, space, bias), Dense(h)))
        return found


def _rows(space: ParameterSpace, names: list[str], shape: torch.Size) -> Tensor:
    """Return the places of a weight, or of a weight and a bias row by row."""
    places = whole(space, names[0]).view(1, *shape)
    return places.reshape(-1) if len(names) == 1 else joined(places, whole(space, names[1]))


def _chain(module: nn.Module | None) -> tuple[nn.Sequential, list[tuple[nn.Linear, list[nn.Module]]]]:
    """Return what comes before the first linear layer, and each with the activations after it."""
    if module is None:
        raise InputError("estimator='recursive' needs a torch.nn.Sequential, and the model is a function.")
    before: list[nn.Module] = []
    chain: list[tuple[nn.Linear, list[nn.Module]]] = []

    def visit(part: nn.Module, name: str) -> None:
        if type(part) is nn.Sequential:
            for key, child in part._modules.items():  # named_children() leaves out a module used twice
                assert child is not None
                visit(child, f"{name}.{key}" if name else key)
        elif type(part) is nn.Linear:
            chain.append((part, []))
        elif type(part) in _ACTIVATIONS:
            (chain[-1][1] if chain else before).append(part)
        elif type(part) is nn.Flatten and not chain:
            before.append(part)
        else:
            where = f"module '{name}'" if name else "the model"
            raise InputError(
                f"estimator='recursive' (KFRA) goes through linear layers and elementwise activations of a Sequential, "
                f"but {where} is a {type(part).__name__}. Use estimator='exact' or 'mc'."
            )

    visit(module, "")
    if not chain or len({id(linear.weight) for linear, _ in chain}) < len(chain):
        raise InputError(
            "estimator='recursive' (KFRA) needs linear layers, each with a weight of its own. Use estimator='exact'."
        )
    return nn.Sequential(*before), chain
