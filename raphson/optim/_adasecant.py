r"""The adaptive secant method: a learning rate for every parameter, from differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import HALF, single
from raphson.optim._options import positive, share

_START, _SHORTEST, _LONGEST = 2.2, 1.5, 1e8
"""Memory of the averages in steps: at the start and after an outlier, at least, and at most (Gulcehre et al. 2014)."""

_OUTLIER = 2.0
"""Standard deviations from the mean beyond which a gradient, or a change of it, is an outlier."""

_ARITHMETIC = frozenset({torch.float64, torch.float32, *HALF})
"""Types of parameters."""

_KEPT = frozenset({
    *("mean", "square", "change", "change_square", "cross", "numerator", "denominator", "last"),
    *("step_mean", "step_square", "memory"),
})
"""What is kept of each tensor."""

_GAMMA = 1.8
"""Largest weight of the mean gradient against the present one (Gulcehre et al. 2014)."""


class Adasecant(torch.optim.Optimizer):
    r"""Steps from secants, without a learning rate to tune (Gulcehre et al. 2014, 2017).

    With the gradient :math:`g` of each tensor scaled to unit length, :math:`\alpha` its change since the last step and
    :math:`\Delta` the last step, each entry has the rate

    .. math:: \eta = \frac{\sqrt{E[\Delta^2]}}{\sqrt{E[\alpha^2]}} - \frac{E[\alpha \Delta]}{E[\alpha^2]}, \qquad
        \Delta \leftarrow -\text{lr} \cdot \eta\, \frac{g + \gamma E[g]}{1 + \gamma},

    a robust estimate of the directional Newton step :math:`\Delta / \alpha`. The averages E have a memory
    :math:`\tau \leftarrow (1 - E[\Delta]^2 / E[\Delta^2])\, \tau + 1` of their own for each entry, which starts anew
    where a gradient or its change is more than two standard deviations from its mean. The variance reduction
    :math:`\gamma` is the root mean square of :math:`(g - g')(g' - E[g])` over that of
    :math:`(E[g] - g)(g' - E[g])`, with :math:`g'` the last gradient.

    Args:
        params: Parameters, or groups, as for every torch optimizer.
        lr: Factor of every step; torch's schedulers change it.
        first_step: Length of the first step of each tensor.
        decay: Share of the average of the gradients that stays.
        eps: What is added to squares under a root.

    Raises:
        InputError: An argument makes no sense.

    References:
        C. Gulcehre, M. Moczulski and Y. Bengio (2014), ADASECANT: robust adaptive secant method for stochastic
        gradient, arXiv:1412.7419. C. Gulcehre, J. Sotelo, M. Moczulski and Y. Bengio (2017), A robust adaptive
        stochastic gradient method for deep learning, IJCNN.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> theta = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        >>> opt = rp.optim.Adasecant([theta])
        >>> for _ in range(200):
        ...     opt.zero_grad()
        ...     (theta**2).sum().backward()
        ...     _ = opt.step()
        >>> bool(theta.norm() < 1.0)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1.0,
        first_step: float = 0.1,
        decay: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("first_step", first_step), ("eps", eps)):
            positive(name, value)
        share("decay", decay)
        super().__init__(params, {"lr": lr, "first_step": first_step, "decay": decay, "eps": eps})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state_dict: What ``state_dict`` returned.

        Raises:
            InputError: It is that of another optimizer, or of tensors of other shapes; nothing has changed.
        """
        kept = state_dict.get("state") if isinstance(state_dict, Mapping) else None
        if not isinstance(kept, Mapping) or not {"lr", "decay", "eps", "first_step"} <= {
            *(name for group in state_dict.get("param_groups", ()) for name in group)
        }:
            raise InputError("This is not the state of an Adasecant optimizer. Nothing was loaded.")
        tensors = [p for group in self.param_groups for p in group["params"]]
        for i, own in kept.items():
            shape = tuple(tensors[i].shape) if isinstance(i, int) and 0 <= i < len(tensors) else None
            if set(own) != _KEPT or any(tuple(value.shape) != shape for value in own.values()):
                raise InputError(
                    f"The saved state of parameter {i} is not that of Adasecant for a tensor of shape {shape}: it is "
                    "of another network, optimizer or version. Nothing was loaded."
                )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients in the parameters.

        Args:
            closure: Evaluates the loss again and returns it.

        Returns:
            What the closure returned; None without one.

        Raises:
            InputError: A gradient is not finite, or of complex numbers; no parameter or average has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for i, (p, _) in enumerate(work):
            if p.dtype not in _ARITHMETIC:
                raise InputError(
                    f"Parameter {i} of those with a gradient, of shape {tuple(p.shape)}, has type {p.dtype}, but steps "
                    "are made of real numbers that are added and divided. Give its real and imaginary parts "
                    "(torch.view_as_real), or convert it, by model.float()."
                )
            if not bool(torch.isfinite(p.grad).all()):
                raise InputError(
                    f"The gradient of parameter {i} of those with one, of shape {tuple(p.shape)}, is not finite. "
                    "Nothing was changed. Skip the batch, or look for extreme values in it."
                )
        for p, group in work:
            self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, eps = self.state[p], group["eps"]
        state.update({name: single(value) for name, value in state.items()})  # torch loads it in the parameter's type
        assert p.grad is not None
        g = single(p.grad)  # squares of small entries, and the memory of an average, are nothing in half precision
        g = g / (g.norm() + eps)
        if not state:
            zero = torch.zeros_like(g, memory_format=torch.preserve_format)
            for name in ("mean", "square", "change", "change_square", "cross", "numerator", "denominator", "last"):
                state[name] = zero.clone()
            state["step_mean"] = group["first_step"] * g
            state["step_square"] = state["step_mean"].square()
            state["memory"] = torch.full_like(g, _START)
        new = 1.0 / state["memory"]
        last, keep = state["last"], group["decay"]
        mean = state["mean"].mul_(keep).add_(g, alpha=1 - keep)
        square = state["square"].mul_(keep).addcmul_(g, g, value=1 - keep)
        state["numerator"].lerp_(((g - last) * (last - mean)).square_(), new)
        state["denominator"].lerp_(((mean - g) * (last - mean)).square_(), new)
        gamma = (state["numerator"] / (state["denominator"] + eps**2)).sqrt_().clamp_max_(_GAMMA)
        reduced = (g + gamma * mean) / (1 + gamma)
        change = g - last
        change_mean = state["change"].lerp_(change, new)
        change_square = state["change_square"].lerp_(change.square(), new)
        rate = (state["step_square"] + eps**2).sqrt() / (change_square + eps**2).sqrt()
        rate -= state["cross"] / (change_square + eps**2)
        step = -group["lr"] * rate * reduced
        memory = (1 - state["step_mean"].square() / (state["step_square"] + eps**2)) * state["memory"] + 1
        spread = (square - mean.square()).clamp_min(0).sqrt()
        change_spread = (change_square - change_mean.square()).clamp_min(0).sqrt()
        outlier = ((g - mean).abs() > _OUTLIER * spread) | ((change - change_mean).abs() > _OUTLIER * change_spread)
        state["cross"].lerp_(step * change, new)
        state["step_mean"].lerp_(step, new)
        state["step_square"].lerp_(step.square(), new)
        state["memory"] = torch.where(outlier, _START, memory).clamp_(_SHORTEST, _LONGEST)
        state["last"].copy_(g)
        p.add_(step.to(p.dtype))
