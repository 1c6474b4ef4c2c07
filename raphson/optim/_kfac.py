r"""K-FAC as an optimizer for an ordinary training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Batch, checked_batch
from raphson.likelihoods import Likelihood
from raphson.network import Given, LayerReport, TrainedModel, TrainingPass
from raphson.optim._average import IterateAverage, averaged_gradient
from raphson.optim._damping import DampingSchedule
from raphson.optim._full_batch import SPREAD, FullBatch, is_same
from raphson.optim._gathered import Gathered
from raphson.optim._groups import GroupValues, checked_groups, group_lines, group_names, torch_groups
from raphson.optim._options import CurvatureOptions, DampingOptions, StepSize, flag, not_negative, one_of
from raphson.optim._position import Position
from raphson.optim._preconditioner import Damped, Preconditioner
from raphson.optim._progress import Progress
from raphson.optim._quadratic_model import QuadraticModel, combination, quadratic_model
from raphson.optim._saved_state import refuse_other_state
from raphson.optim._step_size import FixedStep, QuadraticStep

LARGE_BATCH = 256
"""Examples from which on a mini-batch's own quadratic model decides on the step: its minimum then generalizes."""


class KFAC(torch.optim.Optimizer):
    r"""Natural-gradient steps with Kronecker-factored curvature (K-FAC).

    A step goes along :math:`\Delta = -(\hat G + \lambda I)^{-p} m`, where :math:`m` is the running average of the
    gradients and :math:`\hat G` that of the Gauss-Newton matrix, stored for each layer as a Kronecker product of two
    small matrices, between which :math:`\lambda` is split (``rp.kfac`` has the formula; with ``structure="ekfac"`` it
    is added to their product). For mini-batches of 256 examples and more its length minimizes the exact quadratic model
    of the mini-batch, and :math:`p = 0.7` for whole steps (``QuadraticStep``); for smaller ones, whose own model is too
    optimistic, it is fixed, and :math:`p = 1` (``FixedStep``). Where every batch is the same and the likelihood is not
    concave, a step is a few iterations of conjugate gradients on the model (``QuadraticStep``), with a damping that is
    spread by layer, and is taken back where it fails. Otherwise one forward pass serves the loss, the gradient, the
    factors and the model. The network stays in the mode that it is in: with batch statistics or dropout, gradient and
    curvature are those of the network as it was sampled in that pass.

    Linear layers, convolutions and embeddings have Kronecker factors. All other parameters (scales and shifts of norms,
    weights in recurrent kernels, tables of positions that all examples share) have diagonal curvature, from samples;
    ``report()`` lists what is stored, in how many bytes. A loss or gradient that is not finite raises ``InputError``,
    which names the layer, before anything has changed.

    Args:
        model: A module, in any mode, or a function ``f(params, *x)``; outputs ``(N, ..., C)``.
        likelihood: A likelihood, or a torch loss that stands for one.
        params: Names or prefixes of the parameters; None for those with ``requires_grad=True``; or groups
            ``{"params": names, "lr": ..., "weight_decay": ...}``. For a function, the dictionary of its parameters.
        lr: Factor of every step; torch's schedulers change it. With mini-batches let it fall to zero where the number
            of steps is known.
        weight_decay: :math:`\eta` of the penalty :math:`\tfrac{\eta}{2} \|\theta\|^2`, in gradient and curvature.
        damping: :math:`\lambda` at the start, or ``DampingOptions``; None: found at the first step.
        step_size: ``"quadratic"``, ``"fixed"``, a ``QuadraticStep`` or ``FixedStep``; ``"auto"``: by the size of the
            first mini-batch.
        curvature: How curvature is estimated: ``CurvatureOptions``.
        averaging: Whether to keep an average of the iterates, for ``averaged()``.

    Raises:
        InputError: An argument is not one of those above.

    References:
        J. Martens and R. Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature.
        R. Grosse and J. Martens (2016), A Kronecker-factored approximate Fisher matrix for convolution layers.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> opt = rp.optim.KFAC(model, rp.Gaussian(), damping=1e-6, step_size="quadratic")
        >>> loss = opt.step(x, y)
        >>> round(model.weight.item(), 3)  # the loss is quadratic: one step is enough
        2.0
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | nn.Module,
        params: Mapping[str, Tensor] | str | Iterable[Any] | None = None,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        damping: float | DampingOptions | None = None,
        step_size: StepSize | QuadraticStep | FixedStep = "auto",
        curvature: CurvatureOptions | None = None,
        averaging: bool = True,
    ) -> None:
        names, groups = group_names(params)
        self._trained = TrainedModel(model, likelihood, names)
        not_negative("lr", lr)
        not_negative("weight_decay", weight_decay)
        flag("averaging", averaging)
        if curvature is not None and not isinstance(curvature, CurvatureOptions):
            raise InputError(f"curvature is {curvature!r}, but it must be rp.optim.CurvatureOptions(...).")
        super().__init__(torch_groups(self._trained.tensors, groups), {"lr": lr, "weight_decay": weight_decay})
        self._options = curvature or CurvatureOptions()
        if not isinstance(step_size, QuadraticStep | FixedStep):
            one_of("step_size", step_size, ("auto", "quadratic", "fixed"))
        named: dict[str, QuadraticStep | FixedStep] = {"quadratic": QuadraticStep(), "fixed": FixedStep()}
        self._rule: QuadraticStep | FixedStep | None = None
        self._damping = DampingSchedule(damping if isinstance(damping, DampingOptions) else DampingOptions(damping))
        self._curvature = Preconditioner(self._trained.space, self._options)
        self._follow(named.get(step_size) if isinstance(step_size, str) else step_size)
        self._average = IterateAverage(list(self._trained.tensors.values())) if averaging else None
        self._gathered: Gathered | None = None
        self._compared = False
        self._position = Position(self._trained)
        self._progress = Progress()

    def __repr__(self) -> str:
        """Return a line on the optimizer and one on each group."""
        rule = "step by the size of the first batch" if self._rule is None else repr(self._rule)
        damping = "damping not chosen yet" if self.damping is None else f"damping {self.damping:.3g}"
        head = f"KFAC({self._trained.likelihood!r}, {rule}, {damping}, {self._progress.count} steps)"
        return "\n".join([head, *group_lines(self.param_groups)])

    @property
    def damping(self) -> float | None:
        """The present damping; None before the first step."""
        return self._damping.value

    @property
    def diagonal_parameters(self) -> tuple[str, ...]:
        """Names of the parameters without Kronecker factors; known after the first step."""
        return self._curvature.diagonal_names

    def report(self) -> LayerReport:
        """Return layer by layer what is stored, in how many bytes; known after the first step."""
        vectors = 2 + (self._average is not None)
        return self._curvature.report(vectors)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the average of its iterates, for evaluation or saving.

        Returns:
            A context manager; running statistics of the model are not averaged.

        Raises:
            InputError: ``averaging`` is off.
        """
        if self._average is None:
            raise InputError("There is no average of the iterates: give KFAC(..., averaging=True).")
        return self._average.swapped()

    def accumulate(self, x: Any, y: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Take a batch into the next step, which is then one for all batches together; memory is that for one.

        Args:
            x: Inputs, or a closure, as for ``step``.
            y: Targets.
            weight: Example weights ``(N,)``.

        Returns:
            The loss of the batch.
        """
        gathered, made = self._gather(x, y, weight)
        gathered.release()
        self._gathered = gathered
        return made.loss

    @torch.no_grad()
    def step(self, x: Any, y: Tensor | None = None, weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Take a step for a mini-batch.

        Args:
            x: Inputs: a tensor, a tuple of positional or a dictionary of named arguments; or a closure, which runs the
                model and returns ``(outputs, targets)`` or ``(outputs, targets, weight)``, and may be called again.
            y: Targets.
            weight: Example weights ``(N,)``.

        Returns:
            The loss before the step, the penalty aside: of all batches since the last step.

        Raises:
            InputError: The loss or its gradient is not finite, or the batch does not fit; nothing has changed.
        """  # noqa: DOC502
        now, alone = self._progress, self._gathered is None
        gathered, _ = self._gather(x, y, weight)
        if self._is_all(gathered) and now.count == 1:
            if self._trained.likelihood.concave:
                now.same, now.expected = True, None
                self._damping.forget()
            if alone and now.previous is not None:
                # the first step was not bounded: nothing told yet that every batch is the same
                self._position.move(-now.previous)
                now.previous = None
                gathered, _ = self._gather(x, y, weight)
        self._gathered = None
        values = GroupValues(self._trained.space.slices, self.param_groups)
        rule, gradient = self._rule, gathered.gradient
        assert rule is not None
        if values.common("weight_decay") != 0.0:
            gradient = gradient + values.times("weight_decay", self._trained.space.vector())
        average = averaged_gradient(now.gradient, gradient, rule.averaging)
        self._curvature.take(gathered.measured, now.count)
        self._curvature.shorten(self._largest_lr if now.expected is None else 0.0)
        if now.expected is not None:
            assert isinstance(rule, QuadraticStep)
            found = FullBatch(self._position, gathered, self._curvature, self._damping, values)
            theta = self._trained.space.vector()
            taken, now.expected = found.step(theta, gradient, now.previous, rule.iterations, now.count)
            average = gradient
        else:
            towards = averaged_gradient(average, gradient, rule.averaging) if rule.ahead else average
            taken = self._taken(gathered, gradient, towards, values)
            self._position.move(taken)
            if now.count == 0 and self._damping.adapts and self._bends and _iterates(rule):
                now.expected = gathered.given_again(float(gathered.loss_now()))
        now.previous, now.gradient, now.loss = taken, average, gathered.loss
        now.count += 1
        if self._average is not None:
            self._average.update()
        return gathered.loss

    def _taken(self, gathered: Gathered, gradient: Tensor, average: Tensor, values: GroupValues) -> Tensor:
        """Return the step along the preconditioned average of the gradients, and keep what its model promises."""
        now, rule = self._progress, self._rule
        spread = SPREAD if now.same else 0.0
        if self._damping.value is None:
            guess = max(self._curvature.mean, torch.finfo(gradient.dtype).tiny)
            towards = self._curvature.trials(gradient, now.count, spread)
            self._damping.begin(lambda damping: self._trial(damping, towards, gathered, gradient, values), guess)
        damping = self._damping.value
        assert rule is not None and damping is not None
        self._curvature.refresh(_damped(damping, values), now.count, spread)
        direction = self._curvature.solve(average).neg_()
        model: QuadraticModel | None = None
        if isinstance(rule, QuadraticStep):
            moving = [now.previous] if rule.momentum and now.previous is not None else []
            parts = [] if rule.momentum else self._curvature.apart(direction)
            slopes = [float(torch.dot(average, d)) for d in (direction, *parts)]
            directions = [direction, *moving, *parts]
            if self._products:
                last = self._curvature.output_jvp if parts and not gathered.released else None
                model = quadratic_model(gathered, directions, gradient, damping, values, last)
                coefficients = model.longer() if parts else model.minimum()
            else:
                coefficients = torch.tensor(now.length.along(slopes))
            step = combination(directions, coefficients)
        else:
            step = rule.step(direction, average, self._largest_lr, gathered.targets)
        taken, lr = self._position.checked(values.times("lr", step)), values.common("lr")
        if isinstance(rule, QuadraticStep) and model is not None:
            now.length.put(coefficients.tolist()[: len(slopes)], slopes, now.count, rule.period)
        now.promised = None
        if not self._compared:
            return taken
        if model is None or lr is None:
            model = quadratic_model(gathered, [taken], gradient, damping, values)
            now.promised = model.change(torch.ones(1).double())
        else:
            now.promised = model.change(lr * coefficients)
        return taken

    def _is_all(self, gathered: Gathered) -> bool:
        """Whether every batch so far was the same one: its loss is what that of the last one was after the step."""
        now = self._progress
        if now.expected is None or not is_same(float(gathered.loss), now.expected, gathered.loss.dtype):
            now.expected = None
            return False
        if now.count == 1:
            self._damping.restart(self._curvature.mean)
        return True

    @property
    def _bends(self) -> bool:
        """Whether the curvature of an output depends on other outputs, as that of a mean does on the scale."""
        likelihood = self._trained.likelihood
        return not likelihood.concave or len(likelihood.parameters) > 1

    @property
    def _products(self) -> bool:
        """Whether the next step needs the quadratic model of its mini-batch."""
        now, rule = self._progress, self._rule
        if self._damping.value is None or now.expected is not None or self._compared:
            return True
        return isinstance(rule, QuadraticStep) and (rule.momentum or now.length.due(now.count))

    @property
    def _largest_lr(self) -> float:
        return max(float(group["lr"]) for group in self.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing of importance: gradients are not kept in the parameters."""
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as tensors and numbers; the model's own state is apart.

        Batches that were accumulated since the last step are not in it.
        """
        found = super().state_dict()
        for group in found["param_groups"]:
            group.pop("names", None)
        found["kfac"] = {
            **self._made_of(),
            **self._progress.state(),
            "quadratic": isinstance(self._rule, QuadraticStep) if self._rule is not None else None,
            "damping": self._damping.value,
            "damping_seen": self._damping.seen,
            "damping_gap": self._damping.gap,
            "curvature": self._curvature.state_dict(),
            "average": None if self._average is None else self._average.values,
            "averaged": 0 if self._average is None else self._average.count,
        }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, bit for bit if model and data do.

        Args:
            state_dict: What ``state_dict`` returned.

        Raises:
            InputError: It is that of another optimizer, network, likelihood, version or division into groups; nothing
                has changed.
        """  # noqa: DOC502
        space, averaging = self._trained.space, self._average is not None
        refuse_other_state(state_dict, self.state_dict(), space, self._options.structure, averaging)
        self._curvature.refuse_other(state_dict["kfac"]["curvature"])
        names = [group["names"] for group in self.param_groups]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "kfac"})
        for group, own in zip(self.param_groups, names, strict=True):
            group["names"] = own
        own = copy.deepcopy(state_dict["kfac"])
        self._progress.load(own)
        self._damping.value, self._damping.seen = own["damping"], own["damping_seen"]
        self._damping.gap = own["damping_gap"]
        if self._rule is None and own["quadratic"] is not None:
            self._follow(QuadraticStep() if own["quadratic"] else FixedStep())
        self._curvature.load_state_dict(own["curvature"])
        if self._average is not None:
            self._average.values, self._average.count = own["average"], own["averaged"]

    def _made_of(self) -> dict[str, Any]:
        """Return what tells whether a state is of the same network, as plain values."""
        space = self._trained.space
        return {
            "parameters": list(space.names),
            "shapes": [tuple(shape) for shape in space.shapes],
            "likelihood": type(self._trained.likelihood).__name__,
        }

    def _follow(self, rule: QuadraticStep | FixedStep | None) -> None:
        self._rule = rule
        if rule is not None:
            self._curvature.exponent = rule.exponent

    def _gather(self, x: Any, y: Tensor | None, weight: Tensor | None) -> tuple[Gathered, TrainingPass]:
        """Run a batch and add what the step needs of it to what was accumulated."""
        checked_groups(self.param_groups)
        given: Given
        if callable(x) and y is None:
            given = x
        elif y is None and isinstance(x, Mapping):
            given = checked_batch(x)  # which says how labels in a dictionary are given
        elif y is None:
            raise InputError("step(x, y) needs targets: give a batch, or a closure that returns (model(x), y).")
        else:
            given = checked_batch((x, y) if weight is None else (x, y, weight))
        if self._rule is None:
            large = not isinstance(given, Batch) or given.n_examples >= LARGE_BATCH
            self._follow(QuadraticStep() if large else FixedStep())
        if self._gathered is None:
            self._compared = self._damping.due(self._progress.count + 1)
        before = lost = None
        if self._gathered is None and self._progress.promised is not None:
            before, lost = self._loss_before(given)
        with self._trained.unharmed():
            made = self._trained.run(given, self._products)
            gradient = made.gradient(keep=self._options.estimator == "empirical")
            measured = self._curvature.measure(made, self._progress.count)
        if before is not None and lost is not None and self._progress.promised is not None:
            last = self._progress.loss
            if last is not None and not is_same(before, float(last), last.dtype):
                self._progress.same = False
            change = float(made.loss) - before - lost
            self._damping.adapt(change, self._progress.promised, self._largest_lr, self._curvature.mean)
            self._progress.promised = None
        elif self._gathered is None and self._progress.expected is None and self._progress.count:
            self._damping.follow(lambda: self._curvature.mean, self._progress.count)
        gathered = self._gathered or Gathered(self._trained.reduction)
        return gathered.with_pass(made, gradient, measured), made

    @torch.no_grad()
    def _loss_before(self, given: Given) -> tuple[float, float]:
        """Return the loss of a mini-batch where the last step began, and the penalty there less that of now."""
        assert self._progress.previous is not None
        values = GroupValues(self._trained.space.slices, self.param_groups)
        after = self._position.penalty(values)
        with self._position.moved(self._progress.previous, -1.0):
            return float(self._trained.loss(given)), self._position.penalty(values) - after

    def _trial(
        self,
        damping: float,
        towards: Callable[[Damped], Tensor],
        gathered: Gathered,
        gradient: Tensor,
        values: GroupValues,
    ) -> float:
        """Return the change of the loss by a first step with a damping; the parameters are left as they are."""
        direction = towards(_damped(damping, values)).neg_()
        model = quadratic_model(gathered, [direction], gradient, damping, values)
        with self._position.moved(combination([direction], model.minimum())):
            return float(gathered.loss_now() - gathered.loss)


def _iterates(rule: QuadraticStep | FixedStep) -> bool:
    return isinstance(rule, QuadraticStep) and rule.iterations > 0 and not rule.momentum


def _damped(damping: float, values: GroupValues) -> Damped:
    return lambda name: damping + values.at("weight_decay", name)
