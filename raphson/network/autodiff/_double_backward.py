"""Calls run in operations that have second derivatives, and that take many gradients at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from raphson.network._checks import Traits


@contextlib.contextmanager
def differentiable_kernels(traits: Traits) -> Generator[None, None, None]:
    """Run a model in operations that have second derivatives and take many gradients, where it has others."""
    with contextlib.ExitStack() as stack:
        if traits.fused_attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if traits.fused_recurrence:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False, allow_tf32=None))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if traits.once_differentiable:
            stack.enter_context(PlainCalls())
        yield


class PlainCalls(TorchFunctionMode):
    """Replaces calls whose derivative has none, by plainer ones."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = _PLAIN.get(func, func)
        return call(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return input.add_(3).clamp_(0, 6).div_(6) if inplace else (input + 3).clamp(0, 6) / 6


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    # under vmap the derivative of torch.cdist is wrong where gradients only are batched (torch 2.13)
    difference: Tensor = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return torch.linalg.vector_norm(difference, p, -1)  # type: ignore[no-any-return]


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # under vmap the second derivative of torch's is wrong (torch 2.13)
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    # under nested vmap the derivative of torch's has another shape, or fails (torch 2.13)
    channels = weight if weight.numel() == 1 or input.ndim < 2 else weight.view(-1, *[1] * (input.ndim - 2))
    return torch.where(input > 0, input, channels * input)


_PLAIN: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    torch.cdist: _cdist,
    torch._weight_norm: _weight_norm,
    torch.prelu: _prelu,
}
