"""An encoder before a penalty on its Jacobian: in any mode, but with derivatives that belong to each example."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.network._call_place import runnable
from raphson.network._chance import undisturbed
from raphson.network._checks import Traits, observe
from raphson.network._module_parts import refuse_gradient_hooks, signature, unwrapped
from raphson.network._plain_run import plain_run, refuse_surroundings
from raphson.network.autodiff._adjoint import is_derivative, mixture
from raphson.network.autodiff._double_backward import differentiable_kernels
from raphson.network.autodiff._vjp_rules import custom_functions, graph_nodes

Function = Callable[[Tensor], Tensor]


class _Seen(NamedTuple):
    """What an evaluation showed.

    Attributes:
        looked: The signatures of the modules at that time.
        traits: What is known about the encoder.
        checkpointed: Whether it uses checkpoints.
    """

    looked: tuple[Any, ...]
    traits: Traits
    checkpointed: bool


_SEEN: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Seen]] = weakref.WeakKeyDictionary()
"""What is known of encoders, by the first module in them: a penalty is asked for at every step of a training."""


def checked_encoder(encoder: Function, x: Tensor) -> Function:
    """Return an encoder as it is run for second derivatives; it is looked at once, on the first and the last input.

    It may be random, as in training: the penalty is then that of the encoder as it was drawn.

    Args:
        encoder: A module, or a function.
        x: Inputs ``(N, ...)``.

    Returns:
        The encoder as a function of inputs. ``InputError`` if it has hooks on gradients, mixes examples, cannot be
        differentiated twice or cannot be run; or under autocast, in inference mode or with hooks on saved tensors.
    """
    encoder = unwrapped(encoder)
    kind = x.device.type
    refuse_surroundings(kind if torch.amp.is_autocast_available(kind) else None)
    modules = list(_modules(encoder))
    for module in modules:
        refuse_gradient_hooks(module)
    looked = tuple(map(signature, modules))
    known = _SEEN.setdefault(modules[0], {}) if modules else {}
    key = getattr(encoder, "__code__", getattr(encoder, "__func__", None))
    seen = known.get(key)
    if seen is None or seen.looked != looked:
        seen = known[key] = _look(encoder, modules, x.detach()[:: max(1, len(x) - 1)][:2], looked)
    return functools.partial(_run, encoder, seen)


def _modules(encoder: Any) -> Iterator[nn.Module]:
    """Yield the modules that a function can be seen to run: itself, that of a method, those around or bound to it."""
    if isinstance(encoder, nn.Module):
        yield encoder
    elif isinstance(encoder, functools.partial):
        for part in (encoder.func, *encoder.args, *encoder.keywords.values()):
            yield from _modules(part)
    elif isinstance(encoder, types.MethodType):
        yield from _modules(encoder.__self__)
    elif isinstance(encoder, types.FunctionType):
        for cell in encoder.__closure__ or ():
            if isinstance(cell.cell_contents, nn.Module):
                yield cell.cell_contents


def _run(encoder: Function, seen: _Seen, x: Tensor) -> Tensor:
    with plain_run(seen.checkpointed), differentiable_kernels(seen.traits):
        return _codes(encoder, x)


def _codes(encoder: Function, x: Tensor) -> Tensor:
    """Return the codes; ``InputError``, with the layer's name, where the encoder cannot be run."""
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
    with runnable(encoder, x, next((p.dtype for p in parameters), x.dtype)):
        codes = encoder(x)
    if not isinstance(codes, Tensor) or codes.ndim == 0:
        raise InputError(f"The encoder made a {type(codes).__name__}, but codes must be one tensor (N, ...).")
    if codes.shape[:1] != x.shape[:1]:
        raise InputError(
            f"The encoder made codes of shape {tuple(codes.shape)} of inputs {tuple(x.shape)}: examples must stay on "
            "the first axis."
        )
    return codes


def _look(encoder: Function, modules: list[nn.Module], x: Tensor, looked: tuple[Any, ...]) -> _Seen:
    module = nn.ModuleList(modules) if modules else None
    traits, checkpointed = observe(encoder, module, x.device, lambda: _codes(encoder, x))
    seen = _Seen(looked, traits, checkpointed)

    def pulled(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # with the same random numbers each time
        with undisturbed(module, x.device), torch.enable_grad():
            inputs = at.detach().requires_grad_()
            codes = _run(encoder, seen, inputs)
            (g,) = torch.autograd.grad(
                codes, inputs, mixture(codes), create_graph=True, materialize_grads=True, allow_unused=True
            )
            return inputs, codes, g

    with undisturbed(module, x.device), torch.enable_grad():
        inputs = x.detach().requires_grad_()
        codes = _run(encoder, seen, inputs)
        first = mixture(codes)
        first[1:] = 0
        g = None
        if codes.requires_grad:
            (g,) = torch.autograd.grad(codes, inputs, first, retain_graph=True, allow_unused=True)
        if g is None:
            raise InputError(
                "The codes do not depend on the inputs: the encoder detaches them, runs under torch.no_grad(), or is "
                "constant. A penalty on its Jacobian would be 0 whatever its parameters are."
            )
        custom = custom_functions(graph_nodes(codes)[0])
    eps = torch.finfo(x.dtype).eps
    if len(x) > 1 and bool(g[1:].abs().amax() > eps * g.abs().amax()):
        raise InputError(
            "The code of an example changes with the inputs of the others: the encoder mixes examples across the "
            "batch, so that none has a Jacobian of its own. Use normalization with fixed statistics (encoder.eval(), "
            "or the norms alone)."
        )
    if custom:
        name = ", ".join(map(repr, custom))
        why = "its second derivative is missing or wrong"
        try:
            good = is_derivative(pulled, x)
        except RuntimeError as error:
            good, why = False, str(error).split(". ")[0].strip()
        if not good:
            raise InputError(
                f"The function {name} in the encoder cannot be differentiated twice ({why}), which the gradient of a "
                "penalty on its Jacobian needs. Give its backward pass as differentiable operations."
            )
    return seen
