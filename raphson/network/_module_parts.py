"""PyTorch's private account of what is inside a module, and the parts that keep it from being a fixed function.

All private names for this purpose are used here only; ``tests/network/test_private_torch.py`` holds what they must do.
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from raphson._errors import InputError


def refuse_hooks_on_all() -> None:
    """Raise ``InputError`` for hooks that run in every module there is, unless they are PyTorch's, which only look."""
    if not (_EVERY[0] or _EVERY[1] or _EVERY[2] or _EVERY[3]):
        return
    for hook in (hook for some in _EVERY for hook in some.values()):
        if not str(getattr(hook, "__module__", "")).startswith("torch."):
            name = getattr(hook, "__qualname__", repr(hook))
            raise InputError(
                f"A hook on all modules is registered ({name}, by torch.nn.modules.module.register_module_...hook): it "
                "may change what every layer computes, or gradients on their way back. Remove it (handle.remove())."
            )


_EVERY = (_global_forward_hooks, _global_forward_pre_hooks, _global_backward_hooks, _global_backward_pre_hooks)


def unwrapped(model: Any) -> Any:
    """Return the module that a compiled or a parallel one wraps, which has second derivatives; others as they are."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel) else inner
        if inner is model:
            return model
        model = inner


def refuse_without_values(module: nn.Module) -> None:
    """Raise ``InputError`` for a module that is a script, or whose parameters hold no values; it names the remedy."""
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "The model is a torch.jit module, whose parameters cannot be replaced: give the module that it was made "
            "of, or a function f(params, x)."
        )
    tensors = [
        *(("Parameter", *p) for p in module.named_parameters()),
        *(("Buffer", *b) for b in module.named_buffers()),
    ]
    for kind, name, p in tensors:
        if isinstance(p, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"{kind} '{name}' has no shape yet, which a lazy module finds out when it is first called: call the "
                "model once on some inputs."
            )
        if p.is_inference():
            raise InputError(
                f"{kind} '{name}' was made in torch.inference_mode(), so that it has no derivatives: make the model "
                "outside of it."
            )
        if p.device.type == "meta":
            raise InputError(
                f"{kind} '{name}' is on the meta device, where it has a shape but no values: load the model's "
                "weights first (model.to_empty(device='cpu'), then load_state_dict)."
            )


def children(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in a module, one that is used twice two times, unlike ``named_children``."""
    return ((name, child) for name, child in part._modules.items() if child is not None)


def is_plain(part: nn.Module) -> bool:
    """Whether calling a module is running the ``forward`` of its class: no hook, no other ``forward``."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def signature(module: nn.Module | None) -> tuple[Any, ...]:
    """Return what tells whether a module is still made of the same parts, in the same modes, with the same hooks.

    Object identities: equal ones say that nobody has to look again; a copy has others.
    """
    parts = module.modules() if module is not None else ()
    return tuple((id(part), type(part), part.training, *map(id, _calls(part))) for part in parts)


def refuse_gradient_hooks(module: nn.Module | None) -> None:
    """Raise ``InputError`` for the first part with a hook that may change gradients on their way back."""
    for name, part in module.named_modules() if module is not None else ():
        if part._backward_hooks or part._backward_pre_hooks:
            raise InputError(
                f"{_words(part, name)} has a backward hook, which may change gradients on their way back: they would "
                "belong to no loss. Remove it (handle.remove())."
            )


def refuse_training_mode(module: nn.Module | None) -> None:
    """Raise ``InputError`` for the first part that is random, or mixes examples, because it is in training mode."""
    for name, part in module.named_modules() if module is not None else ():
        trouble = _training_trouble(part) if part.training else None
        if trouble is not None:
            where = f"Module '{name}'" if name else "The model"
            raise InputError(
                f"{where} ({type(part).__name__}) is in training mode, where {trouble}: the loss is then no fixed sum "
                "over examples. Call model.eval() first."
            )


def _training_trouble(part: nn.Module) -> str | None:
    if isinstance(part, _DropoutNd) and part.p > 0:
        return f"it drops values at random (p={part.p:g})"
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0 and getattr(part, "num_layers", 2) > 1:
        return f"it drops values at random (dropout={part.dropout:g})"
    if isinstance(part, nn.RReLU):
        return "its slopes are random"
    if isinstance(part, _BatchNorm):
        return "it normalizes with the statistics of the batch"
    if isinstance(part, _InstanceNorm) and part.track_running_stats:
        return "it updates its running statistics"
    return None


class ModuleStructure:
    """What a module is made of at one moment: parts, modes, hooks, and in which places which parameters are.

    Objects are remembered, not their addresses, which a copy has others of. ``check`` looks at no value.

    Args:
        module: The module.
        chosen: Whether the parameters to differentiate are named, so that ``requires_grad`` does not matter.

    Attributes:
        places: The name of the parameter in every place that holds one, each place once. Tied parameters lie in several
            places. A module that is used twice does not appear twice: torch's ``tie_weights`` would put its parameters
            back in the wrong order and leave the copies in the module.
    """

    def __init__(self, module: nn.Module, chosen: bool) -> None:
        named = dict(module.named_parameters())
        names = {id(p): name for name, p in named.items()}
        parts = list(module.named_modules())
        self._parts = [
            (part, name, type(part), part.training, dict(part._modules.items()), _calls(part)) for name, part in parts
        ]
        self._owners = [
            (part, key, f"{prefix}.{key}" if prefix else key, names[id(p)] if p is not None else None)
            for prefix, part in parts
            for key, p in part._parameters.items()
        ]
        self._counts = [(part, len(part._parameters), name) for name, part in parts]
        self.places = {place: name for _, _, place, name in self._owners if name is not None}
        self._trained = None if chosen else {name: p.requires_grad for name, p in named.items()}
        self._settings = [(part, name, _settings(part)) for name, part in parts]
        self._take(dict(named))

    def check(self) -> dict[str, Tensor]:
        """Return the parameters by name, as they are now; the same dictionary as long as nothing was replaced.

        ``InputError`` names the place if a part, its mode, a hook, or which parameters there are has changed.
        """
        if not self._sight.same():
            self._check_parts()
            self._take(self._parameters())
        return self._found

    def buffers(self) -> list[Tensor]:
        """Return the buffers, and tensors in attributes, as they were when ``check`` looked last."""
        return self._sight.buffers

    def settle(self) -> None:
        """Take what differs in attributes as the work of the forward pass that just ran, and no change of the model.

        A module may count its calls, or store what it made; the tensors that it had are put back, since those of a
        transformation outlive it as shells only.
        """
        if not self._sight.same():
            for part, _, settings in self._settings:
                for key in [key for key, value in settings.items() if _is_other(vars(part).get(key), value)]:
                    if isinstance(settings[key], Tensor) and isinstance(vars(part).get(key), Tensor):
                        vars(part)[key] = settings[key]
                    else:
                        del settings[key]

    def _take(self, found: dict[str, Tensor]) -> None:
        self._found = found
        constants: list[Tensor] = []
        for part, _, settings in self._settings:
            settings.update({key: vars(part)[key] for key, v in settings.items() if isinstance(v, Tensor)})
            constants += [v for v in settings.values() if isinstance(v, Tensor)]
        trained = [] if self._trained is None else [*found.values()]
        self._sight = _Sight([part for part, *_ in self._parts], trained, constants)

    def _check_parts(self) -> None:
        for part, name, kind, training, inside, calls in self._parts:
            if part._modules != inside:
                self._refuse_children(part, name, inside)
            if type(part) is not kind or _calls(part) != calls:
                raise InputError(_changed(f"A hook or another forward was put on, or taken from, {_words(part, name)}"))
            # torch's own layers do the same in both modes, apart from those with a trouble in training mode
            if part.training is not training and (
                not kind.__module__.startswith("torch.nn.modules.") or (part.training and _training_trouble(part))
            ):
                now, before = ("training", "evaluation") if part.training else ("evaluation", "training")
                raise InputError(
                    _changed(f"{_words(part, name)} is in {now} mode and was in {before} mode", "model.eval()")
                )
        for part, name, settings in self._settings:
            for key, value in settings.items():
                present = vars(part).get(key)
                if _is_other(present, value) and not (isinstance(value, Tensor) and isinstance(present, Tensor)):
                    raise InputError(
                        _changed(f"'{key}' of {_words(part, name)} is {_brief(present)} and was {_brief(value)}")
                    )

    def _refuse_children(self, part: nn.Module, name: str, inside: dict[str, Any]) -> None:
        now = part._modules
        key = next((key for key in {**inside, **now} if now.get(key) is not inside.get(key)), "")
        raise InputError(_changed(f"Module '{f'{name}.{key}' if name else key}' was replaced, added or removed"))

    def _parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part, count, name in self._counts:
            if len(part._parameters) != count:
                raise InputError(_changed(f"{_words(part, name)} has other parameters"))
        for part, key, place, name in self._owners:
            p = part._parameters.get(key)
            if (p is None) is not (name is None):
                raise InputError(_changed(f"Parameter '{place}' was added or removed"))
            if p is not None and found.setdefault(str(name), p) is not p:
                raise InputError(_changed(f"Parameter '{place}' is no longer tied to '{name}'"))
            if p is not None and self._trained is not None and p.requires_grad is not self._trained[str(name)]:
                raise InputError(
                    _changed(f"Parameter '{name}' has requires_grad={p.requires_grad} and had the opposite")
                )
        if len({id(p) for p in found.values()}) < len(found):
            raise InputError(_changed("Parameters were tied"))
        return found


class _Sight:
    """What can be seen of modules without looking at one by itself: as much as ``ModuleStructure`` compares, and fast.

    Modules are asked before every product, a hundred of them in the time of a small matrix product. What the modules,
    their attributes and the dictionaries inside them refer to is one list, made by one call of the garbage collector's
    account (100 modules: 14 microseconds, where loops over them in Python took 40).

    Args:
        parts: The modules.
        trained: The parameters whose ``requires_grad`` matters.
        constants: Tensors in attributes.

    Attributes:
        buffers: The buffers in the modules, and the constants.
    """

    def __init__(self, parts: list[nn.Module], trained: list[Tensor], constants: list[Tensor]) -> None:
        inside: list[dict[Any, Any]] = []
        for part in parts:
            inside += [part._modules, part._parameters, part._buffers, *_hooks(part)]
        self._owners = (*parts, *map(vars, parts), *inside)
        self.buffers = [*(b for part in parts for b in part._buffers.values() if b is not None), *constants]
        self._on, self._off = [p for p in trained if p.requires_grad], [p for p in trained if not p.requires_grad]
        # what can be equal and another one: a module with an equality of its own, a number in a tensor
        self._alike = [(d, key, v) for d in inside for key, v in d.items() if _has_own_equality(v)]
        self._objects = gc.get_referents(*self._owners)

    def same(self) -> bool:
        """Whether everything is as it was."""
        try:
            same = gc.get_referents(*self._owners) == self._objects
        except Exception:  # a tensor in the place of another one, say, to which it is not equal or unequal
            return False
        return (
            same
            and all(d.get(key) is value for d, key, value in self._alike)
            and all(map(_TRAINED, self._on))
            and not any(map(_TRAINED, self._off))
        )


_TRAINED = operator.attrgetter("requires_grad")


_BOOKKEEPING = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, str, type(None), torch.dtype)


def _settings(part: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are numbers, words, tuples of such, or tensors: what it computes with."""
    return {key: value for key, value in vars(part).items() if key not in _BOOKKEEPING and _is_setting(value)}


def _is_setting(value: Any) -> bool:
    inside = value if isinstance(value, tuple) else (value,)
    return isinstance(value, Tensor) or all(isinstance(v, _PLAIN) for v in inside)


def _is_other(present: Any, before: Any) -> bool:
    """Whether an attribute has another value: another tensor, or what is not equal."""
    if present is before or isinstance(present, Tensor) or isinstance(before, Tensor):
        return present is not before
    return type(present) is not type(before) or present != before


def _brief(value: Any) -> str:
    return f"a {type(value).__name__}" if not _is_setting(value) or isinstance(value, Tensor) else repr(value)[:60]


def _has_own_equality(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    plain: Any = object.__eq__
    return type(value).__eq__ is not plain


def _hooks(part: nn.Module) -> tuple[dict[int, Any], ...]:
    return part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks


def _calls(part: nn.Module) -> tuple[Any, ...]:
    """Return what runs when a module is called beside the ``forward`` of its class."""
    found = [hook for some in _hooks(part) for hook in some.values()]
    return (*found, part.__dict__.get("forward")) if found or not is_plain(part) else ()


def _words(part: nn.Module, name: str) -> str:
    return f"Module '{name}' ({type(part).__name__})" if name else f"The model ({type(part).__name__})"


def _changed(what: str, remedy: str = "") -> str:
    return (
        f"{what} since the objective was made, which looks at the parts of a model once. "
        f"{f'Call {remedy}, or make' if remedy else 'Make'} a new Objective."
    )
