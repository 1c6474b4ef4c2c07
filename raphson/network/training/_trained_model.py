"""A network and a likelihood that are trained: what stays the same between mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Batch, checked_weights, warn_of_indices
from raphson.likelihoods import Likelihood, from_torch
from raphson.network._batch_checks import check_classes_last
from raphson.network._call_place import runnable
from raphson.network._chance import statistics_unharmed, undisturbed
from raphson.network._checks import Traits, observe
from raphson.network._module import Model
from raphson.network._module_parts import refuse_gradient_hooks, signature
from raphson.network._parameters import ParameterSpace
from raphson.network._plain_run import plain_run
from raphson.network.layers._feed_forward import FeedForward
from raphson.network.training._feed_forward_run import FeedForwardRun, closed_form
from raphson.network.training._recorded_run import NetworkRun, RecordedRun
from raphson.network.training._training_pass import TrainingPass, total_weight, weighted_nll

Given = Batch | Callable[[], tuple[Tensor, ...]]
"""A batch; or a closure, which runs the network and returns outputs, targets and perhaps example weights."""


class TrainedModel:
    """A network with a likelihood, for passes over mini-batches in the mode that the network is in.

    Unlike for an ``Objective``, examples of a batch may depend on each other (batch statistics) and on chance
    (dropout): what a pass gives belongs to the network as it was sampled in that pass.

    Args:
        model: A module, or a function ``f(params, *x)``; outputs ``(N, ..., C)``.
        likelihood: A likelihood, or a torch loss that stands for one, with its reduction.
        params: Names or prefixes of the parameters; None for those with ``requires_grad=True``. For a function: the
            dictionary of its parameters.

    Attributes:
        likelihood: The likelihood.
        reduction: ``"mean"`` or ``"sum"``.
        tensors: The parameters by name: the tensors that are updated.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | nn.Module,
        params: Mapping[str, Tensor] | str | Iterable[str] | None = None,
    ) -> None:
        given = from_torch(likelihood)
        self.likelihood, self.reduction = given.likelihood, given.reduction or "mean"
        self._model = Model(model, params)
        self._model.refuse_half("K-FAC")
        module = self._model.module
        self._all: dict[str, Tensor] = dict(params) if isinstance(params, Mapping) else {}
        if module is not None:
            self._all.update(module.named_parameters())
        self.tensors = {name: self._all[name] for name in self.space.names}
        self._required = {name: p.requires_grad for name, p in self.tensors.items()}
        self._classes_second = isinstance(likelihood, nn.CrossEntropyLoss)
        self._fresh = True
        self._traits: Traits | None = None
        self._looked: tuple[Any, ...] = ()
        self._feed_forward: FeedForward | None = None

    @property
    def space(self) -> ParameterSpace:
        """The parameters as one vector."""
        return self._model.space

    @property
    def module(self) -> nn.Module | None:
        """The module; None for a function."""
        return self._model.module

    def run(self, given: Given, products: bool) -> TrainingPass:
        """Return a pass over a batch.

        Args:
            given: The batch, or a closure.
            products: Whether products with the Jacobian will be asked for.

        Returns:
            The pass; ``InputError`` if outputs do not fit the targets.
        """
        forward, batch, leaves = self._prepared(given)
        if self._traits is None:
            target = self.module or self._model.function
            self._traits, self._model.checkpointed = observe(target, self.module, self.space.device, forward)
            self._feed_forward = closed_form(self.module, self.space)
        traits, network = self._traits, self._feed_forward

        def run() -> NetworkRun:
            if network is None or not _is_plain(given, self.space):
                return RecordedRun(forward, leaves(), traits, self.space, products)
            x = batch().x
            with runnable(self.module, x, self.space.dtype):
                return FeedForwardRun(network, self.space, x)

        made = TrainingPass(self, batch, run, forward)
        if self._classes_second:
            check_classes_last(made.f, made.batch.y)
        if self._fresh and made.batch.weight is not None:
            warn_of_indices([made.batch.weight], "The weights of the batch")
        self._fresh = False
        return made

    def unharmed(self) -> AbstractContextManager[None]:
        """Return a context that puts running statistics back if a batch is refused inside."""
        return statistics_unharmed(self.module)

    def loss(self, given: Given) -> Tensor:
        """Return the loss of a batch at the present parameters, with the random numbers that the next pass has, too."""
        forward, batch, _ = self._prepared(given)
        with undisturbed(self.module, self.space.device), torch.no_grad():
            f = forward()
        made = batch()
        total = weighted_nll(self.likelihood, f, made)
        return total / total_weight(self.likelihood, f, made) if self.reduction == "mean" else total

    def _prepared(
        self, given: Given
    ) -> tuple[Callable[[], Tensor], Callable[[], Batch], Callable[[], Mapping[str, Tensor]]]:
        """Return what runs the network, what returns the batch after that, and the parameters that it computes with."""
        self._model.refuse_surroundings()
        refuse_gradient_hooks(self.module)
        self._check_unchanged()
        self._follow()
        parts = signature(self.module)
        if parts != self._looked:
            self._looked, self._traits, self._feed_forward = parts, None, None
        device = self.space.device
        if isinstance(given, Batch):
            batch = given.to(device)
            leaves = cache(self._model.leaves)

            def run() -> Tensor:
                with runnable(self.module or self._model.function, batch.x, self.space.dtype):
                    if not torch.is_grad_enabled() and self._feed_forward is not None and _is_plain(batch, self.space):
                        return self._feed_forward.outputs(batch.x)
                    return self._model.call(leaves(), batch.x)

            return run, lambda: batch, leaves
        if self.module is None:
            raise InputError("A model that is a function takes a batch, step(x, y), not a closure.")
        frozen = [name for name, p in self.tensors.items() if not p.requires_grad]
        if frozen:
            raise InputError(
                f"Parameter '{frozen[0]}' has requires_grad=False, so that a closure gives it no gradient: set it, or "
                "give the batch itself, step(x, y)."
            )
        found: list[Any] = []

        def forward() -> Tensor:
            with plain_run(self._model.checkpointed):
                found[:] = _outputs_and_targets(given())
            return self._model.outputs(found[0])

        def batch_of() -> Batch:
            y, weight = found[1].to(device), found[2]
            return Batch(None, y, weight if weight is None else checked_weights(weight, y.shape[0]).to(device))

        return forward, batch_of, lambda: self.tensors

    def _check_unchanged(self) -> None:
        """Raise ``InputError`` where the module has other parameters than it had: steps would go past them."""
        if self.module is None:
            return
        now = dict(self.module.named_parameters())
        other = next((name for name in [*self._all, *now] if now.get(name) is not self._all.get(name)), None)
        if other is not None:
            what = "is new" if other not in self._all else "is gone" if other not in now else "is another tensor"
            raise InputError(
                f"Parameter '{other}' of the model {what} since the optimizer was made (a layer was added, removed or "
                "replaced). Nothing was changed. Make the optimizer after the model is complete."
            )
        for name, p in self.tensors.items():
            if p.requires_grad is not self._required[name]:
                raise InputError(
                    f"Parameter '{name}' has requires_grad={p.requires_grad}, which it had not when the optimizer was "
                    "made. Nothing was changed. Make the optimizer anew, or give the parameter a group with lr=0."
                )

    def _follow(self) -> None:
        """See to it that values are the present ones where a tensor was put in place of another (``p.data = ...``)."""
        for name, p in self._all.items():
            mine = self._model.everything[name]
            if (p.shape, p.dtype, p.device) != (mine.shape, mine.dtype, mine.device):
                raise InputError(
                    f"Parameter '{name}' is now {tuple(p.shape)} of type {p.dtype} on {p.device}, and was "
                    f"{tuple(mine.shape)} of type {mine.dtype} on {mine.device} when the optimizer was made. Nothing "
                    "was changed. Make the optimizer after the model is converted or moved."
                )
            if p.data_ptr() != mine.data_ptr() or p.stride() != mine.stride():
                self._model.everything[name] = p.detach()
                if name in self.space.tensors:
                    self.space.tensors[name] = self._model.everything[name]


def _is_plain(given: Given, space: ParameterSpace) -> bool:
    """Whether inputs are what a feed-forward network takes without a word: others are told by the network itself."""
    x = given.x if isinstance(given, Batch) else None
    return type(x) is Tensor and x.ndim > 1 and x.dtype == space.dtype and not x.requires_grad


def _outputs_and_targets(found: Any) -> tuple[Any, Tensor, Tensor | None]:
    if not isinstance(found, tuple) or len(found) not in (2, 3) or not isinstance(found[1], Tensor):
        seen = f"a {type(found).__name__}" if not isinstance(found, tuple) else f"a tuple of {len(found)}"
        raise InputError(
            f"The closure returned {seen}, but curvature needs outputs and targets: return (model(x), y), or "
            "(model(x), y, weight), not the loss. The likelihood is the optimizer's."
        )
    return found[0], found[1], found[2] if len(found) == 3 else None
