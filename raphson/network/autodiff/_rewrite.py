r"""Calls written so that all their derivatives are cheap: convolutions, and batch norms with fixed statistics.

Torch's backward passes of both are made to run once. Differentiated again, that of a convolution also computes what
nobody asked for, and that of a batch norm recomputes everything; here the first is one of three maps that are each
other's derivatives, and the second a product and a sum. A batch norm right after a convolution is part of it: its
scale goes into the weight and its shift into a bias, so that no derivative passes over the images once more for it.
The largest of rectified numbers is the rectified largest one: a pool right after a rectifier goes before it, so that
derivatives of the rectifier pass over the pooled images only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raphson.network._tensor_memory import in_place_version

_INPUT, _WEIGHT, _OUTPUT = range(3)


@dataclass(frozen=True)
class _Convolution:
    r"""The form :math:`\langle g, w * x \rangle`, linear in the input x, the weight w and the output gradient g.

    With two of the three given it is a linear function of the third: the convolution, the gradient of its input or
    that of its weight.

    Attributes:
        shapes: Of input and weight.
        options: Stride, padding, dilation, whether transposed, output padding, groups.
        order: Order in memory that all tensors are brought into.
        once: Whether gradients are differentiated in the output gradient only, in which they are linear: a graph of
            them is made at an output gradient of zero.
    """

    shapes: tuple[torch.Size, torch.Size]
    options: tuple[Any, ...]
    order: torch.memory_format
    once: bool

    def __call__(self, role: int, a: Tensor, b: Tensor) -> Tensor:
        """Return the linear function of role ``role`` for the other two, in the order of the roles."""
        a, b = (t.contiguous(memory_format=self.order) for t in (a, b))
        if role == _OUTPUT:
            return torch.ops.aten.convolution(a, b, None, *self.options)  # type: ignore[no-any-return]
        # what is asked for enters by its shape only
        blank = torch.empty(self.shapes[role], dtype=a.dtype, device=a.device, memory_format=self.order)
        x, w = (blank, a) if role == _INPUT else (a, blank)
        mask = [role == _INPUT, role == _WEIGHT, False]
        return torch.ops.aten.convolution_backward(b, x, w, None, *self.options, mask)[role]  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """One of the three linear functions; its derivatives are the two others."""

    @staticmethod
    def forward(ctx: Any, form: _Convolution, role: int, a: Tensor, b: Tensor, value: Tensor | None = None) -> Tensor:
        ctx.form, ctx.role = form, role
        ctx.save_for_backward(a, b)
        return form(role, a, b) if value is None else value

    @staticmethod
    def backward(ctx: Any, *t: Tensor) -> Any:
        saved = [a.detach() if ctx.form.once and ctx.role == _OUTPUT else a for a in ctx.saved_tensors]
        known = dict(zip(_others(ctx.role), saved, strict=True)) | {ctx.role: t[0]}
        found: list[Tensor | None] = [None, None]
        # a graph of gradients that is linear is made at zero, where there is nothing to compute
        zero = t[0].new_zeros(()) if ctx.form.once and ctx.role == _OUTPUT and torch.is_grad_enabled() else None
        for i, role in enumerate(_others(ctx.role)):
            if ctx.needs_input_grad[2 + i]:
                value = None if zero is None else zero.expand(ctx.form.shapes[role])
                found[i] = _Product.apply(ctx.form, role, *(known[r] for r in _others(role)), value)  # type: ignore[no-untyped-call]
        return None, None, *found, None

    @staticmethod
    def batched_backward(ctx: Any, wanted: Sequence[bool], *t: Tensor) -> Any:
        """Return the derivatives that are wanted for many gradients, ``(k, ...)``: beside a weight they are images."""
        g, roles = t[0], _others(ctx.role)
        found: list[Tensor | None] = [None] * len(wanted)
        for i, role in enumerate(roles):
            known = {roles[1 - i]: ctx.saved_tensors[1 - i]}
            if wanted[i] and _WEIGHT in known:
                images = torch.Size((g.shape[0] * g.shape[1], *ctx.form.shapes[_INPUT][1:]))
                form = replace(ctx.form, shapes=(images, ctx.form.shapes[_WEIGHT]))
                found[i] = _evaluated(form, role, known | {ctx.role: g.flatten(0, 1)}).unflatten(0, g.shape[:2])  # type: ignore[no-untyped-call]
            elif wanted[i]:
                found[i] = torch.stack([_evaluated(ctx.form, role, known | {ctx.role: column}) for column in g])
        return found


def _evaluated(form: _Convolution, role: int, known: dict[int, Tensor]) -> Tensor:
    return form(role, *(known[r] for r in _others(role)))


def _others(role: int) -> tuple[int, ...]:
    return tuple(r for r in (_INPUT, _WEIGHT, _OUTPUT) if r != role)


class _Made(NamedTuple):
    """A convolution as it was made.

    Attributes:
        out: What it returned.
        version: How often that had been changed in place then.
        form: The convolution.
        input: Its input.
        weight: Its weight.
        bias: Its bias, or None.
    """

    out: Tensor
    version: int
    form: _Convolution
    input: Tensor
    weight: Tensor
    bias: Tensor | None


class _Ordered(torch.autograd.Function):
    """The identity, whose gradients have the channels of images last in memory, as pools are many times faster with."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return g[0].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def batched_backward(ctx: Any, wanted: Sequence[bool], *g: Tensor) -> Any:
        """Return many gradients, ``(k, N, ...)``."""
        return [g[0].flatten(0, 1).clone(memory_format=torch.channels_last).view(g[0].shape)]


class _Rectified(NamedTuple):
    """A rectifier as it was called: what it returned, how often that had been changed in place then, and its input."""

    out: Tensor
    version: int
    input: Tensor


class Rewritten(TorchFunctionMode):
    """Replaces the calls of a model by those of this module while it is active.

    Args:
        channels_last: Whether images have their channels next to each other in memory, which convolutions with few
            channels on a processor are several times faster with.
        once: Whether only derivatives in the outputs are differentiated again, as for Jacobian products: those of
            the model in its parameters are differentiated once.
        fold: Whether a batch norm of a convolution's output is a convolution of its own, with another weight: the
            graph of the result then does not go through that output.
    """

    def __init__(self, channels_last: bool, once: bool = True, fold: bool = False) -> None:
        super().__init__()
        self._channels_last, self._once, self._fold = channels_last, once, fold
        self._last: _Made | None = None
        self._rectified: _Rectified | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return self._convolution(func, *args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is F.max_pool2d:
            return self._max_pool(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _RECTIFIERS:
            input = args[0] if args else kwargs["input"]
            # in place there is no input left to pool
            self._rectified = None if out is input else _Rectified(out, in_place_version(out), input)
        return out

    def _max_pool(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made, self._rectified = self._rectified, None
        after = made is not None and made.out is input and made.version == in_place_version(input)
        out = F.max_pool2d(made.input if after else input, *args, **kwargs)  # type: ignore[union-attr]
        out = F.relu(out) if after else out
        last = self._channels_last and out.ndim == 4 and out.device.type == "cpu"
        return _Ordered.apply(out) if last else out  # type: ignore[no-untyped-call]

    def _convolution(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        n = weight.ndim - 2
        if isinstance(padding, str) or input.ndim != weight.ndim or input.dtype != weight.dtype:
            return func(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
        last = self._channels_last and n == 2 and input.device.type == "cpu"
        order = torch.channels_last if last else torch.contiguous_format
        sizes = (
            [v] * n if isinstance(v, int) else list(v) * (n if len(v) == 1 else 1) for v in (stride, padding, dilation)
        )
        form = _Convolution((input.shape, weight.shape), (*sizes, False, [0] * n, groups), order, self._once)
        images = input.contiguous(memory_format=order)
        out: Tensor = _Product.apply(form, _OUTPUT, images, weight)  # type: ignore[no-untyped-call]
        out = out if bias is None else out + bias.view(-1, *[1] * n)
        if self._fold:
            self._last = _Made(out, in_place_version(out), form, images, weight, bias)
        return out

    def _batch_norm(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = _scale_and_shift(input, *args, **kwargs)
        if found is None:
            return F.batch_norm(input, *args, **kwargs)
        scale, shift = found
        shape = (-1, *[1] * (input.ndim - 2))
        made, self._last = self._last, None
        if made is None or made.out is not input or made.version != in_place_version(input):
            return input * scale.view(shape) + shift.view(shape)
        if made.bias is not None:
            shift = shift + made.bias * scale
        with torch.no_grad():
            value = input * scale.view(shape)
            if made.bias is not None:
                value -= (made.bias * scale).view(shape)
        weight = made.weight * scale.view(-1, *[1] * (made.weight.ndim - 1))
        out: Tensor = _Product.apply(made.form, _OUTPUT, made.input, weight, value)  # type: ignore[no-untyped-call]
        return out + shift.view(shape)


def _scale_and_shift(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor] | None:
    """Return what a batch norm multiplies each channel with and adds to it, None where that depends on the batch."""
    if training or running_mean is None or running_var is None or running_var.dtype != input.dtype:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return scale, shift


_RECTIFIERS = {F.relu, torch.relu, Tensor.relu}
_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
