r"""One forward pass of a mini-batch: loss, gradient, curvature factors and Jacobian products, all from one graph.

With F operations of a forward pass, the gradient is F forward, F backward and F for the weights, and it is made once.
The factors' inputs come with the forward pass; their output gradients are those of the loss (``empirical``) or one more
backward pass of F without the weights (``mc``). The gradient is linear in the output gradient :math:`u` that it starts
from, so that the derivative of its graph in :math:`u` along :math:`v` is :math:`J v`, 2F.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Batch
from raphson.likelihoods import Likelihood
from raphson.linalg import SymmetricOperator, all_finite
from raphson.network._chance import Chance, undisturbed
from raphson.network._parameters import ParameterSpace
from raphson.network.layers._layer_record import LayerRecord
from raphson.network.training._recorded_run import NetworkRun


class Trained(Protocol):
    """What is trained."""

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood."""

    @property
    def reduction(self) -> str:
        """``"mean"`` or ``"sum"``."""

    @property
    def space(self) -> ParameterSpace:
        """The parameters."""

    @property
    def module(self) -> nn.Module | None:
        """The module; None for a function."""


class TrainingPass:
    """A mini-batch with its forward pass.

    Args:
        trained: The network and the likelihood.
        batch: Returns the batch, after ``run`` or ``forward`` ran.
        run: Runs the network, for derivatives.
        forward: Runs it for its outputs alone, ``(N, ..., C)``.

    Attributes:
        f: Outputs ``(N, ..., C)``, without a graph.
        total_weight: ``W``, the weights of examples and targets added up.
        scale: The factor of the sum over the batch: ``1 / W`` for a mean, 1 for a sum.
        loss: The loss, without a penalty.

    Raises:
        InputError: Outputs do not fit the targets, or a loss is not finite.
    """

    def __init__(
        self,
        trained: Trained,
        batch: Callable[[], Batch],
        run: Callable[[], NetworkRun],
        forward: Callable[[], Tensor],
    ) -> None:
        self._trained, self._run, self._forward = trained, run, forward
        self._output_gradients: list[Tensor] = []
        self._chance = Chance.now(trained.space.device)
        self._record()
        self._given, self.batch = batch, batch()
        self._fixed = batch() is self.batch
        self._check_shape()
        self.total_weight = total_weight(trained.likelihood, self.f, self.batch)
        if not self.total_weight > 0:
            raise InputError(
                "The weights of the batch add up to 0 (all weights zero, or every target ignored): there is nothing to "
                "average. Leave the batch out."
            )
        self.scale = 1.0 / self.total_weight if trained.reduction == "mean" else 1.0
        self.loss = self._loss(self.f)
        if not bool(torch.isfinite(self.loss)):
            raise InputError(self._not_finite())

    def _record(self) -> None:
        """Run the network."""
        self._made: NetworkRun | None = self._run()
        self.f = self._now.record.output.detach()

    @property
    def _now(self) -> NetworkRun:
        """The run, made again if it was forgotten."""
        if self._made is None:
            with undisturbed(self._trained.module, self.device):
                self._chance.restore(self.device)
                self._record()
            self.gradient()
        assert self._made is not None
        return self._made

    @property
    def record(self) -> LayerRecord:
        """The layer calls."""
        return self._now.record

    @property
    def released(self) -> bool:
        """Whether the run was forgotten."""
        return self._made is None

    def release(self) -> None:
        """Forget the run, which takes the memory; it is made again, with the same random numbers, where needed."""
        self._made, self._output_gradients = None, []

    @property
    def module(self) -> nn.Module | None:
        """The module; None for a function."""
        return self._trained.module

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood."""
        return self._trained.likelihood

    @property
    def space(self) -> ParameterSpace:
        """The parameters."""
        return self._trained.space

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters."""
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.space.device

    @property
    def n_examples(self) -> int:
        """Number of examples in the batch."""
        return self.batch.n_examples

    def position_weights(self, batch: Batch) -> Tensor | None:
        """Return the example weights for each position, ``(N, ...)``, or None where all are 1."""
        return _position_weights(self.f, batch)

    def gradient(self, keep: bool = False) -> Tensor:
        """Return the gradient of the loss, ``(P,)``, from one backward pass; ``InputError`` where it is not finite.

        Args:
            keep: Whether to keep the output gradients of the layer calls, for ``empirical_gradients``.

        Returns:
            The gradient.
        """
        u = self.scaled(self.likelihood.gradient(self.f, self.batch.y))
        gradient, self._output_gradients = self._now.gradient(u, keep)
        self._check_gradient(gradient)
        return gradient

    def backward(self, u: Tensor, names: Collection[str] = ()) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the output gradients of the layer calls, and gradients by name, for ``u``, ``(N, ..., C)``.

        Args:
            u: Gradients with respect to the outputs.
            names: The parameters whose gradients are wanted.

        Returns:
            A gradient for each layer call, and for each parameter that the outputs depend on.
        """
        return self._now.backward(u, names)

    def empirical_gradients(self) -> list[Tensor]:
        """Return the gradients of the layer calls whose outer products sum to the empirical curvature.

        They are those of the loss, which came with its gradient, over the root of the scale.
        """
        if self.batch.weight is None:
            return [g / self.scale**0.5 for g in self._output_gradients]
        weights = self.position_weights(self.batch)
        assert weights is not None
        root = (weights * self.scale).sqrt().unsqueeze(-1)
        return self.backward(self.likelihood.gradient(self.f, self.batch.y) * root)[0]

    def jvp(self, v: Tensor) -> Tensor:
        """Return the Jacobian of the outputs times ``v``, ``(N, ..., C)``, for ``v`` of shape ``(P,)``."""
        return self._now.jvp(v)

    def curvature(
        self, directions: Sequence[Tensor], last: Callable[[TrainingPass, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return ``v_i^T G v_j``, ``(k, k)``, with the Gauss-Newton matrix ``G`` of the batch for directions ``(P,)``.

        The middle factor is the expected Hessian of the loss in the outputs.

        Args:
            directions: The directions.
            last: Returns the Jacobian of a pass times the last direction, where there is a shorter way.

        Returns:
            The products.
        """
        gone = self.released
        rest = directions if last is None else directions[:-1]
        moved = [self.jvp(v) for v in rest]
        if last is not None:
            moved.append(last(self, directions[-1]))
        if gone:
            self.release()
        pushed = [self.scaled(self._fisher.mv(m)).flatten() for m in moved]
        found = torch.stack([m.flatten() for m in moved]) @ torch.stack(pushed).mT
        return (found + found.mT) / 2

    def product(self, v: Tensor) -> Tensor:
        """Return the Gauss-Newton matrix of the batch times ``v``, both ``(P,)``."""
        gone = self.released
        pushed = self.scaled(self._fisher.mv(self.jvp(v)))
        named = self.backward(pushed, self.space.names)[1]
        if gone:
            self.release()
        zeros = {n: t.new_zeros(t.shape) for n, t in self.space.tensors.items() if n not in named}
        return self.space.flatten(named | zeros)

    def bounded(self, v: Tensor, most: float, halvings: int) -> tuple[float, Tensor]:
        """Return a share of a step ``(P,)`` that changes no example's curvature much, and ``v^T G v`` for all of it.

        Args:
            v: The step.
            most: Factor by which a diagonal entry of an output Hessian may grow or shrink, to first order in outputs.
            halvings: Most of the step, of which the share is made.

        Returns:
            The share, and the product.
        """
        gone = self.released
        moved = self.jvp(v)
        if gone:
            self.release()
        hessian = self._fisher
        curved = (moved * self.scaled(hessian.mv(moved))).sum()
        here, share = hessian.diagonal(), 1.0
        for _ in range(halvings):
            there = self.likelihood.fisher(self.f + share * moved, self.batch.y).diagonal()
            if bool(((there <= most * here) & (there * most >= here)).all()):
                break
            share *= 0.5
        return share, curved

    @cached_property
    def _fisher(self) -> SymmetricOperator:
        """The expected Hessian of the loss in the outputs."""
        return self.likelihood.fisher(self.f, self.batch.y)

    def scaled(self, values: Tensor) -> Tensor:
        """Return values per output ``(N, ..., C)`` times the example weights and the scale."""
        weights = self.position_weights(self.batch)
        values = values * self.scale
        return values if weights is None else values * weights.unsqueeze(-1)

    def loss_now(self) -> Tensor:
        """Return the loss of the batch at the present parameters, for the same random numbers."""
        device = self.device
        with undisturbed(self._trained.module, device), torch.no_grad():
            self._chance.restore(device)
            return self._loss(self._forward())

    def given_again(self) -> tuple[Tensor, float] | None:
        """Return loss and total weight, at the present parameters, of the batch as it is given now.

        Returns:
            None where that is the batch itself. A closure may weight examples by its outputs: now by others.
        """
        if self._fixed:
            return None
        device, likelihood = self.device, self.likelihood
        with undisturbed(self._trained.module, device), torch.no_grad():
            self._chance.restore(device)
            f = self._forward()
        batch = self._given()
        weight, total = total_weight(likelihood, f, batch), weighted_nll(likelihood, f, batch)
        return (total / weight if self._trained.reduction == "mean" else total), weight

    def _loss(self, f: Tensor) -> Tensor:
        return self.scale * weighted_nll(self.likelihood, f, self.batch)

    def _check_shape(self) -> None:
        f, y = self.f, self.batch.y
        if f.shape[:-1] != y.shape[: f.ndim - 1]:
            raise InputError(
                f"The outputs have shape {tuple(f.shape)} and the targets {tuple(y.shape)}, but the outputs must have "
                "the axes of the targets and then one for the outputs of each, (N, ..., C) (torch's cross-entropy has "
                "classes on axis 1: move them to the end, as in logits.movedim(1, -1))."
            )
        self.likelihood.check(y, f.shape[-1])

    def _not_finite(self) -> str:
        bad = (~torch.isfinite(self.likelihood.nll(self.f, self.batch.y))).nonzero()
        row = f" (row {bad[0].tolist()[0]})" if len(bad) else ""
        return (
            f"The loss of the batch is {float(self.loss):g}{row}, which begins in {self._first_not_finite()}. Nothing "
            "was changed. Look for missing or extreme values there, or take smaller steps (more damping, a smaller lr)."
        )

    def _first_not_finite(self) -> str:
        """Return in words where along the network the first value is not finite."""
        before = "the inputs"
        for call in self.record.calls:
            if call.x.is_floating_point() and not all_finite(call.x):
                return before
            before = f"what comes out of the layer with parameter '{call.name}'"
        return before if not all_finite(self.f) else "the loss itself: the outputs are finite"

    def _check_gradient(self, gradient: Tensor) -> None:
        if all_finite(gradient):
            return
        named = self.space.unflatten(gradient)
        bad = [name for name, part in named.items() if not all_finite(part)]
        where = self._first_not_finite()
        why = (
            "A derivative overflows or does not exist after that layer (a square root or logarithm at zero, a norm of "
            "zeros): look at what follows it."
            if where.startswith("the loss")
            else f"What is not finite begins in {where}: look there for missing or extreme values."
        )
        raise InputError(
            f"The gradient in parameter '{bad[-1]}' is not finite{f' (and in {len(bad) - 1} more)' * (len(bad) > 1)}, "
            f"while the loss is {float(self.loss):g}. Nothing was changed. {why}"
        )


def weighted_nll(likelihood: Likelihood, f: Tensor, batch: Batch) -> Tensor:
    """Return the sum of the losses of a batch, times the example weights."""
    nll, weights = likelihood.nll(f, batch.y), _position_weights(f, batch)
    return (nll if weights is None else nll * weights).sum()


def total_weight(likelihood: Likelihood, f: Tensor, batch: Batch) -> float:
    """Return the weights of examples and targets added up over positions."""
    total = torch.ones(f.shape[:-1], dtype=f.dtype, device=f.device)
    for w in (likelihood.weight(batch.y), _position_weights(f, batch)):
        total = total if w is None else total * w.to(total)
    return float(total.sum())


def _position_weights(f: Tensor, batch: Batch) -> Tensor | None:
    if batch.weight is None:
        return None
    shape = f.shape[:-1]
    return batch.weight.to(f.dtype).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
