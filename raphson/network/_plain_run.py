"""A model run operation by operation: as it is written, without what PyTorch puts in the place of its operations."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raphson._errors import InputError
from raphson.network._module_parts import refuse_hooks_on_all
from raphson.network._tensor_memory import saved_tensor_hooks


@contextlib.contextmanager
def plain_run(checkpointed: bool) -> Generator[None, None, None]:
    """Run what is inside without compiled graphs, fused attention layers that skip padding, or checkpoints.

    A compiled part has no second derivative and hides its layers. The fast path of ``nn.TransformerEncoder``, taken
    where no gradient is asked for, gives other outputs at padded positions than the model has where one is. A
    checkpoint runs its part once more in the backward pass, when parameters and modes are no longer those of the
    forward pass.

    Yields:
        Nothing.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # nothing is compiled where this was never imported, and importing it takes seconds
        compiled = "torch._dynamo" in sys.modules
        with (
            torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext(),
            _Kept() if checkpointed else contextlib.nullcontext(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def refuse_surroundings(device_type: str | None) -> None:
    """Refuse contexts that keep derivatives from being those of the model.

    Args:
        device_type: The type of the model's device; None for one without autocast.

    Raises:
        InputError: This runs in inference mode, under autocast, or with hooks on all modules or on saved tensors.
    """
    refuse_hooks_on_all()
    hook = saved_tensor_hooks()
    if hook is not None:
        raise InputError(
            f"This was called inside torch.autograd.graph.saved_tensors_hooks ({hook}), where gradients are those of "
            "what was unpacked: call it outside."
        )
    if torch.is_inference_mode_enabled():
        raise InputError(
            "This was called inside torch.inference_mode(), where nothing has derivatives: call it outside."
        )
    if device_type is not None and torch.is_autocast_enabled(device_type):
        raise InputError(
            "This was called inside torch.autocast(), which would round curvature, too: call it outside, and put "
            "autocast into the forward pass of the model."
        )


class _Kept(TorchFunctionMode):
    """Lets every operation keep what its backward pass needs, whatever hooks are around it."""

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            return func(*args, **kwargs or {})


def _same(t: Tensor) -> Tensor:
    return t


def checkpoint_around() -> str | None:
    """Return which kind of checkpoint is running, ``"reentrant"`` or ``"plain"``; None where none is."""
    found = None
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            if frame.f_code.co_qualname == "CheckpointFunction.forward":
                return "reentrant"
            found = "plain"
        frame = frame.f_back
    return found
