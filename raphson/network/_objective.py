r"""The loss of a network over data as one function of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raphson._errors import InputError, RaphsonWarning
from raphson.data import Batch, Batches, take, tree_map
from raphson.likelihoods import Likelihood, from_torch
from raphson.linalg import SymmetricOperator, is_near, widest_float
from raphson.network._batch_checks import (
    check_classes_last,
    check_form,
    check_infinite_inputs,
    check_target_axes,
    checked_penalty,
    form_of,
    not_finite,
)
from raphson.network._checks import probe, twice
from raphson.network._half_precision import SingleBatches, in_single_words
from raphson.network._module import Model
from raphson.network._module_parts import refuse_training_mode
from raphson.network._parameters import ParameterSpace
from raphson.network._progress import shown
from raphson.network._tensor_memory import in_place_versions
from raphson.network.autodiff._adjoint import check_adjoint
from raphson.network.autodiff._linearize import refuse_constant
from raphson.network.layers._feed_forward import FeedForward, find_feed_forward

Reduction = Literal["mean", "sum"]

_ROWS = 4096
"""Positions whose losses are computed at once where they are only checked."""


class Objective:
    r"""A network, a likelihood and data as one function of the parameters.

    .. math::
        L(\theta) = s \sum_n w_n\, \ell(f(x_n; \theta), y_n) + \frac{\lambda}{2} \|\theta\|^2, \qquad
        s = 1 / W \text{ (mean) or } 1 \text{ (sum)},

    where :math:`n` runs over examples and, for sequences, over their positions, and
    :math:`W = \sum_n w_n v_n` with the weights :math:`v` that the likelihood itself gives to targets (class weights;
    0 for ignored ones). A weight of 3 means the same as three rows. Every curvature of an objective is that of
    :math:`L` as it stands: scale, weights and :math:`\lambda I` included.

    The data are read once here (to add up :math:`W`, to check them, and to remember what they were) and once for every
    quantity; batches must be the same each time. The model must be in evaluation mode, and is left as it is. Its parts
    are looked at once: values of parameters are always the present ones, but after a layer was replaced, a hook
    registered, a mode or a number in an attribute changed, every use is refused, and a new objective is needed.

    Sums over data lose the few digits of half precision (a loss in bfloat16 over 400 batches was off by a tenth): of
    a network with parameters in half precision there is a copy in single, which follows its values, and what an
    objective gives is in single. Under ``torch.autocast`` inside of ``forward`` a network computes as it does.

    Random numbers are refused by what the forward pass calls when the objective is made (random operations, generators,
    the system's randomness), and a model whose outputs differ on the same inputs twice is refused. Not seen
    are changes below rounding by compiled extensions, other threads or addresses of objects (``id``), and a model that
    begins to differ later by something outside of it (a global variable, a file).

    Args:
        model: A module, or a function ``f(params, *x)``; outputs ``(N, ..., C)``, the ``C`` of them last. A compiled
            module is taken as the module that it wraps, which has second derivatives.
        likelihood: A likelihood, or a torch loss that stands for one.
        data: ``(x, y)`` or ``(x, y, weight)`` of tensors, or a repeatable iterable of such (a ``DataLoader``); ``x`` is
            a tensor, a tuple of positional arguments or a dictionary of named ones; ``weight`` is ``(N,)``.
        params: Names or prefixes of the parameters to differentiate; None for those with ``requires_grad=True``.
            For a function: the dictionary of its parameters.
        reduction: ``"mean"`` or ``"sum"``; None takes that of a torch loss, and ``"mean"`` for a likelihood.
        l2: :math:`\lambda`, on the differentiated parameters.
        progress: Whether a pass over the data shows a line on standard error while it runs.

    Attributes:
        model: The model as ``f(params, x)``.
        likelihood: The likelihood.
        reduction: ``"mean"`` or ``"sum"``.
        l2: :math:`\lambda`.
        n_examples: Number of examples ``N``.
        n_batches: Number of batches.
        traits: What one evaluation showed about the model.
        total_weight: :math:`W`.
        notes: What was done differently than usual, in sentences.

    Raises:
        InputError: The model is in training mode, random, hooked or mixes examples, a parameter is not finite, or data
            or arguments do not fit.

    Examples:
        Least squares with one parameter: :math:`L = \tfrac12 \cdot \tfrac12 (1 + 9)` at 0, up to a constant.

        >>> import torch
        >>> from raphson.likelihoods import Gaussian
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
        >>> objective = Objective(model, Gaussian(normalized=False), (x, y))
        >>> objective.value_and_gradient()
        (tensor(2.5000), tensor([-3.5000]))
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | nn.Module,
        data: Any,
        *,
        params: Mapping[str, Tensor] | str | Iterable[str] | None = None,
        reduction: Reduction | None = None,
        l2: float = 0.0,
        progress: bool = False,
    ) -> None:
        given = from_torch(likelihood)
        if reduction not in {None, "mean", "sum"}:
            raise InputError(f"reduction is {reduction!r}, but it must be 'mean' or 'sum'.")
        if given.reduction is not None and reduction not in {None, given.reduction}:
            raise InputError(
                f"{type(likelihood).__name__} has reduction='{given.reduction}', but the objective was given "
                f"reduction='{reduction}': make them the same, or leave the objective's out."
            )
        l2 = checked_penalty(l2)
        self.model = Model(model, params, widened=True)
        self.likelihood, self.l2, self.progress = given.likelihood, l2, progress
        self.reduction: Reduction = given.reduction or reduction or "mean"
        refuse_training_mode(self.model.module)
        self._classes_second = isinstance(likelihood, nn.CrossEntropyLoss)
        batches = Batches(data, self.model.space.device, in_place_versions)
        self._batches: Iterable[Batch] = SingleBatches(batches) if self.model.in_half else batches
        self._unseen: list[Tensor] = []
        self._looking = False
        self._read()

    def __repr__(self) -> str:
        return (
            f"<Objective of {self.likelihood}: total weight {self.total_weight:g}, {self.n_outputs} outputs, "
            f"{self.n_parameters} parameters, {self.reduction}{f', l2={self.l2:g}' if self.l2 else ''}>"
        )

    @property
    def space(self) -> ParameterSpace:
        """The parameters that are differentiated."""
        return self.model.space

    @property
    def n_parameters(self) -> int:
        """Number of parameters ``P``."""
        return self.space.numel

    @property
    def n_outputs(self) -> int:
        """Number of outputs ``C`` of one example, or of one position of it."""
        return self._outputs.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters."""
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.space.device

    @cached_property
    def feed_forward(self) -> FeedForward | None:
        """The network as linear layers and elementwise activations, which have closed forms; None for any other."""
        return find_feed_forward(self.model.module)

    @property
    def is_linear(self) -> bool:
        """Whether the outputs are linear in the parameters, as those of a single linear layer are."""
        network = self.feed_forward
        return network is not None and len(network.layers) == 1 and not network.layers[0].activations

    curvatures: ClassVar[dict[str, Callable[[Objective], SymmetricOperator]]] = {}
    """What computes a curvature of an objective, by name: put here by the files that define it, which import this."""

    def curvature(self, name: str) -> SymmetricOperator:
        """Return ``"hessian"`` or ``"gauss-newton"``, ``(P, P)``, as products."""
        return self.curvatures[name](self)

    @property
    def information_is_observed(self) -> bool:
        """Whether the expected information equals the observed Hessian, as it does with canonical links.

        Seen at the outputs of the first batch's first and last example: for another link the two agree only where a
        target is exactly its mean.
        """
        f, y = self._outputs, self._probed_targets
        direction = torch.linspace(1.0, 2.0, self.n_outputs, dtype=f.dtype, device=f.device).expand(f.shape)
        observed, expected = self.likelihood.hessian(f, y).mv(direction), self.likelihood.fisher(f, y).mv(direction)
        return torch.allclose(observed, expected, rtol=1e-5, atol=0.0)

    @property
    def scale(self) -> float:
        r"""The factor of the sum over the data: :math:`1/W` for a mean, 1 for a sum."""
        return 1.0 / self.total_weight if self.reduction == "mean" else 1.0

    def batches(self) -> Iterator[Batch]:
        """Return the batches, on the device of the model.

        ``InputError`` if they are not those of the first pass, or the model is not made of what it was.
        """
        self.model.refresh()
        return self._passed()

    def _passed(self) -> Iterator[Batch]:
        yield from shown(self._batches, "batches", self.progress, self.n_batches or None)
        self._look_at_losses()

    def restricted(self, params: str | Iterable[str]) -> Objective:
        """Return the same objective, differentiated in some of the parameters only.

        Args:
            params: Names or prefixes of names.

        Returns:
            The objective; the penalty is on these parameters only.
        """
        copy = object.__new__(Objective)
        copy.__dict__.update(self.__dict__)
        copy.model = self.model.restricted(params)
        return copy

    def with_likelihood(self, likelihood: Likelihood) -> Objective:
        """Return the same objective with another likelihood for the same targets and outputs (another scale, say)."""
        copy = object.__new__(Objective)
        copy.__dict__.update(self.__dict__)
        copy.likelihood = likelihood
        return copy

    def example_inputs(self) -> Any:
        """Return made-up inputs, one or two, of the shapes and types of the data: numbers at random, or zeros."""
        generator = torch.Generator(self.device).manual_seed(0)

        def made(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return torch.zeros_like(t)
            return torch.empty_like(t).normal_(generator=generator)

        return tree_map(made, self._probed_inputs)

    def position_weights(self, batch: Batch) -> Tensor | None:
        """Return the example weights of a batch for each position, ``(N, ...)``, or None where all are 1.

        What the likelihood gives to targets is inside its derivatives already.
        """
        if batch.weight is None:
            return None
        shape = batch.y.shape[: self._outputs.ndim - 1]
        return batch.weight.to(self.dtype).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)

    def outputs(self, batch: Batch, index: int, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the outputs ``(N, ..., C)`` of batch ``index``; ``InputError`` if they do not fit the targets."""
        f = self.model.call(params, batch.x)
        self.check_shape(f, batch.y, index)
        return f

    def check_outputs(self, f: Tensor, batch: Batch, index: int) -> None:
        """Raise ``InputError`` unless outputs fit the targets and every loss is finite, naming batch and row."""
        self.check_shape(f, batch.y, index)
        self.check_losses(f, batch.y, index)

    def check_losses(self, f: Tensor, y: Tensor, index: int, first: int = 0) -> None:
        """Raise ``InputError``, naming batch and row, for the first loss that is not finite.

        Outputs ``(N, ..., C)`` and targets are those of a batch, or of a part of it that begins with row ``first``.
        Where looking at a value means to wait for a device, all are looked at when the pass over the data ends.
        """
        if self.likelihood.always_finite:
            low, high = torch.aminmax(f.detach())
            if self._surely(torch.maximum(-low, high) < torch.finfo(f.dtype).max ** 0.5):
                return
        rows, targets = f.reshape(-1, f.shape[-1]), y.reshape(-1, *y.shape[f.ndim - 1 :])
        with torch.no_grad():
            parts = [slice(start, start + _ROWS) for start in range(0, len(rows), _ROWS)]
            nll = [self.likelihood.nll(rows[part], targets[part]) for part in parts]
        self._check_finite(torch.cat(nll).reshape(f.shape[:-1]), index, first)

    def check_shape(self, f: Tensor, y: Tensor, index: int) -> None:
        """Raise ``InputError`` unless the outputs of a batch fit its targets."""
        if f.shape[:-1] != y.shape[: f.ndim - 1]:
            raise InputError(
                f"Batch {index}: the outputs have shape {tuple(f.shape)} and the targets {tuple(y.shape)}, but "
                "the outputs must have the axes of the targets and then one for the outputs of each, (N, ..., C) "
                "(torch's cross-entropy has classes on axis 1: move them to the end, as in logits.movedim(1, -1))."
            )

    def check_products(self, second: bool = False) -> None:
        """Raise ``InputError`` if products with this model's Jacobian (or its derivatives) would be wrong.

        Looks at the first batch's first and last example, once for each choice of parameters.
        """
        if self.feed_forward is None:
            self.model.refresh()
            check_adjoint(self.model, self._probed_inputs, self.traits, second)

    def value(self, theta: Tensor | None = None) -> Tensor:
        """Return the objective, a number; ``InputError`` names the batch and row where it is not finite.

        Args:
            theta: ``(P,)`` parameters to take in place of the model's, which stay as they are.

        Returns:
            The objective.
        """
        # in memory of their own: what a model sees as complex numbers must begin at an even place
        params = None if theta is None else {name: t.clone() for name, t in self.space.unflatten(theta).items()}
        with torch.no_grad():
            losses = (self._loss(self.outputs(b, i, params), b, i) for i, b in enumerate(self.batches()))
            total = sum(losses, self._zero())
        return total + self._penalty(theta)

    def gradient(self) -> Tensor:
        """Return the gradient, ``(P,)``."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the objective and its gradient, ``(P,)``, from one pass over the data."""
        batches = self.batches()
        total, gradient = self._zero(), self.l2 * self.space.vector()
        for index, batch in enumerate(batches):
            leaves = self.model.leaves()
            with torch.enable_grad():
                f = self.outputs(batch, index, leaves)
            refuse_constant(f, self.space.names)
            total += self._loss(f.detach(), batch, index)
            with torch.no_grad():
                g = self.scaled(self.likelihood.gradient(f.detach(), batch.y), batch)
            parts = torch.autograd.grad(f, list(leaves.values()), g, materialize_grads=True)
            gradient += torch.cat([part.reshape(-1) for part in parts])
        if not is_near(gradient) or bool(torch.isfinite(gradient).all()):
            return total + self._penalty(), gradient
        raise not_finite(self.space, gradient)

    def scaled(self, values: Tensor, batch: Batch) -> Tensor:
        """Return values per output ``(..., N, ..., C)`` times the example weights and the scale."""
        weights = self.position_weights(batch)
        values = values * self.scale if self.scale != 1.0 else values
        return values if weights is None else values * weights.unsqueeze(-1)

    def _check_finite(self, nll: Tensor, index: int, first: int = 0) -> None:
        """Raise ``InputError`` for the first of losses ``(N, ...)`` that is not finite, rows counted from ``first``."""
        finite = torch.isfinite(nll)
        if not self._surely(finite.all()):
            place = (~finite).nonzero()[0].tolist()
            position = f", position {', '.join(map(str, place[1:]))}" if place[1:] else ""
            value, row = float(nll[tuple(place)]), first + place[0]
            raise InputError(
                f"The loss in batch {index}, row {row}{position} is {value:g}. Check that row for missing or extreme "
                "inputs, and that the parameters of the model are finite and not too large."
            )

    def _surely(self, fine: Tensor) -> bool:
        """Return whether what was found is fine, or True where that is looked at later, with all of the pass."""
        if is_near(fine) or self._looking:
            return bool(fine)
        self._unseen.append(fine)
        return True

    def _look_at_losses(self) -> None:
        """Raise for losses of a pass that nobody has looked at, which are computed once more if one is not finite."""
        fine = list(self._unseen)
        self._unseen.clear()
        if not fine or bool(torch.stack(fine).all()):
            return
        self._looking = True
        try:
            for index, batch in enumerate(self._batches):
                with torch.no_grad():
                    self.check_losses(self.outputs(batch, index), batch.y, index)
        finally:
            self._looking = False

    def _loss(self, f: Tensor, batch: Batch, index: int) -> Tensor:
        nll = self.likelihood.nll(f, batch.y)
        self._check_finite(nll, index)
        weights = self.position_weights(batch)
        return self.scale * (nll if weights is None else nll * weights).sum()

    def _penalty(self, theta: Tensor | None = None) -> Tensor:
        return 0.5 * self.l2 * (self.space.vector() if theta is None else theta).square().sum()

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=self.device)

    def _read(self) -> None:
        """Read the data once: check them, add up the weights and remember the batches."""
        self.n_examples, self.n_batches, wide = 0, 0, widest_float(self.device)
        total = torch.zeros((), dtype=wide, device=self.device)  # read once, when all batches were seen
        self.model.refuse_infinite()
        forms: set[Any] = set()
        for index, batch in enumerate(self.batches()):
            if index == 0:
                self._probe(batch)
            elif form_of(batch.x) not in forms:
                check_form(self.model, batch, self._outputs, index)
            forms.add(form_of(batch.x))
            try:
                self.likelihood.check(batch.y, self.n_outputs)
            except InputError as error:
                raise InputError(f"Batch {index}: {error}") from error
            check_target_axes(self.likelihood, self._outputs[:1], batch.y, index)
            check_infinite_inputs(self.model, self.likelihood, batch, index)
            shape = batch.y.shape[: self._outputs.ndim - 1]
            weight = self.likelihood.weight(batch.y)
            weight = torch.ones((), dtype=wide, device=self.device) if weight is None else weight.to(wide)
            if batch.weight is not None:
                weight = weight * batch.weight.to(wide).reshape(-1, *[1] * (len(shape) - 1))
            total += weight.expand(shape).sum()
            self.n_examples += batch.n_examples
            self.n_batches += 1
        self.total_weight = float(total)
        if not self.total_weight > 0:
            raise InputError(
                "The weights of all examples add up to 0 (all weights zero, or every target ignored), so that there "
                "is nothing to average. Give some example a positive weight."
            )

    def _probe(self, batch: Batch) -> None:
        n = batch.n_examples
        try:
            self._outputs, self.traits = probe(self.model, batch.x, n)
        except InputError as error:
            if not self.model.in_half:
                raise
            raise in_single_words(error) from error
        self._probed_inputs = tree_map(torch.clone, take(batch.x, slice(0, n, max(1, n - 1)), n))
        self._probed_targets = batch.y[:: n - 1] if n > 1 else twice(batch.y)
        self.check_shape(self._outputs, self._probed_targets, 0)
        if self._classes_second:
            check_classes_last(self._outputs, batch.y)
        self.notes = self.traits.notes(self.model.checkpointed)
        for note in self.notes:
            warnings.warn(note, RaphsonWarning, stacklevel=4)
