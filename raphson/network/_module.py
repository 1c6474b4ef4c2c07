"""A module or a function as ``f(params, x)``, without a trace on it: no hook, attribute or flag changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raphson._errors import InputError, RaphsonError
from raphson.data import tree_map
from raphson.linalg import single
from raphson.network._call_place import out_of_range
from raphson.network._half_precision import SingleCopy
from raphson.network._module_parts import ModuleStructure, refuse_gradient_hooks, refuse_without_values, unwrapped
from raphson.network._parameters import ParameterSpace, chosen, refuse_other_tensor
from raphson.network._plain_run import plain_run, refuse_surroundings
from raphson.network._tensor_memory import Entries, in_place_version, in_place_versions, in_same_memory, memory_of

Inputs = Any

_COMPARED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that PyTorch finds the smallest and largest number of."""


@dataclass(eq=False)
class _Latest:
    """Where in memory the parameters and buffers of a model were when somebody looked last.

    Attributes:
        tensors: The same memory under other names, which stay where it was.
        places: What ``memory_of`` says of them.
        entries: Some entries of those on the processor, in place.
    """

    tensors: list[Tensor]
    places: list[Any] | None = None
    entries: Entries | None = None


class Model:
    r"""A network as a function :math:`f(\theta, x)` of its parameters, with outputs ``(N, ..., C)``.

    Args:
        model: A module, or a function ``f(params, *x)`` of a dictionary of tensors and the inputs.
        params: For a module: names or prefixes of the parameters to differentiate, which may be frozen ones; None
            for all with ``requires_grad=True``. For a function: the dictionary of tensors.
        widened: Whether parameters in half precision are taken in single, with a copy of the module.

    Attributes:
        in_half: Whether the parameters that were given are in half precision.
        checkpointed: Whether the model uses checkpoints, as far as is known: its calls then keep what they make.

    Raises:
        InputError: A function comes without its parameters, a name matches none, or the module is one that cannot be
            differentiated.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        params: Mapping[str, Tensor] | str | Iterable[str] | None = None,
        *,
        widened: bool = False,
    ) -> None:
        model = unwrapped(model)
        if isinstance(model, type) or not callable(model):
            seen = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
            raise InputError(f"The model is {seen}, but it must be a torch module, or a function f(params, x).")
        self.module: nn.Module | None = model if isinstance(model, nn.Module) else None
        self.function: Callable[..., Any] = model
        self._structure: ModuleStructure | None = None
        self.checkpointed, self.in_half = False, False
        self._copy: SingleCopy | None = None
        self._in_half: dict[str, Tensor] = {}
        if self.module is not None:
            refuse_without_values(self.module)
            refuse_gradient_hooks(self.module)
            if isinstance(params, Mapping):
                raise InputError("params of a module must be names: give a list of them, or None for all.")
            self._take(self.module, params)
            if widened and self.in_half:
                self._copy = SingleCopy(self.module, params is not None)
                self.module = self.function = self._copy.module
                self._take(self.module, params)
                self.in_half = True
        else:
            if not isinstance(params, Mapping):
                raise InputError("A model that is a function f(params, x) needs params={name: tensor, ...}.")
            self.everything = {name: p.detach() for name, p in params.items()}
            self.space = ParameterSpace(dict(self.everything))
            self._given, self.in_half = params, self.space.in_half
            if widened and self.in_half:
                self._in_half = self.everything
                self.everything = {name: single(p) for name, p in self.everything.items()}
                self.space = ParameterSpace(dict(self.everything))
        kind = self.space.device.type
        self._device_type = kind if torch.amp.is_autocast_available(kind) else None
        self._latest = _Latest([])
        self._mine: list[Any] | None = None

    def _take(self, module: nn.Module, params: str | Iterable[str] | None) -> None:
        self.everything = {name: p.detach() for name, p in module.named_parameters()}
        if not self.everything:
            raise InputError(
                f"The model ({type(module).__name__}) has no parameters at all, as a quantized one has none: give the "
                "model that it was made of."
            )
        self._structure = ModuleStructure(module, params is not None)
        trained = {name: self.everything[name] for name, p in module.named_parameters() if p.requires_grad}
        self.space = ParameterSpace(trained) if params is None else chosen(self.everything, params)
        self.in_half = self.space.in_half

    def restricted(self, params: str | Iterable[str]) -> Model:
        """Return the same function, differentiated in some of its parameters only."""
        copy = object.__new__(Model)
        copy.__dict__.update(self.__dict__)
        copy.space = chosen(self.everything, params)
        return copy

    def refresh(self) -> None:
        """See to it that the model is what it was made of, with the present values of its parameters.

        Values written in place are there by themselves; a tensor in place of another one of the same kind is followed
        (``p.data = ...``, ``load_state_dict(assign=True)``). ``InputError`` if a parameter has another shape, type or
        device, or the module has other parts.
        """
        self._look()

    def refuse_surroundings(self) -> None:
        """Raise ``InputError`` in a context that keeps derivatives from being those of the model."""
        refuse_surroundings(self._device_type)

    def refuse_half(self, what: str) -> None:
        """Refuse to train parameters in half precision, in which short steps are lost.

        Args:
            what: What would train them, as the beginning of a sentence.

        Raises:
            InputError: They are in half precision.
        """
        if self.in_half:
            raise InputError(
                f"{what} needs parameters in single or double precision, and '{self.space.names[0]}' is in half: "
                "averages and inverses of curvature, and steps much shorter than a weight, are lost there. Convert the "
                "model, by model.float(), and let it compute in half precision where that is wanted, by torch.autocast "
                "inside of its forward."
            )

    def _look(self) -> list[Any]:
        """Do the same, and return where parameters and buffers are in memory, in which form."""
        self.refuse_surroundings()
        latest = self._latest
        if self._copy is not None:
            self._copy.follow()
        if self._structure is None:
            current = self._widened() if self._in_half else self._given
            tensors = [current[name] for name in self.everything if name in current]
        else:
            current = self._structure.check()
            tensors = [*current.values(), *self._structure.buffers()]
        if latest.places is None or not in_same_memory(tensors, latest.tensors):
            self._follow(current)
            latest.tensors, latest.places = [t.detach() for t in tensors], memory_of(tensors)
            latest.entries = Entries([t for t in latest.tensors if t.dtype in _COMPARED])
        if self._mine is not latest.places:  # a restricted model shares all but its space
            self.space.tensors.update({name: self.everything[name] for name in self.space.tensors})
            self._mine = latest.places
        return latest.places

    def _widened(self) -> dict[str, Tensor]:
        """Return the parameters of a function in single precision, with the values that they have in half."""
        for name, mine in self._in_half.items():
            p = self._given.get(name)
            refuse_other_tensor(name, p, mine)
            if p is not None and not bool((self.everything[name] == p).all()):
                self.everything[name].copy_(p.detach())
        return self.everything

    def _follow(self, current: Mapping[str, Tensor]) -> None:
        for name, mine in self.everything.items():
            p = current.get(name)
            refuse_other_tensor(name, p, mine)
            assert p is not None
            self.everything[name] = p.detach()

    def refuse_infinite(self) -> None:
        """Raise ``InputError``, naming the entry, for a parameter that is infinite or nan, or a buffer that is nan."""
        if self.module is not None:
            constants = {name: b for name, b in self.module.named_buffers() if b.dtype in _COMPARED and b.numel()}
            broken = [name for name, b in constants.items() if bool(torch.isnan(b).any())]
            if broken:
                at = torch.isnan(constants[broken[0]]).nonzero()[0].tolist()
                raise InputError(
                    f"Buffer '{broken[0]}' is nan at {at}: nothing computed with it has a value. Load or train the "
                    "model again, from where it was finite."
                )
        found = {name: p for name, p in self.everything.items() if p.numel() and p.dtype in _COMPARED}
        if not found:
            return
        fine = torch.stack([torch.isfinite(torch.stack(torch.aminmax(p))).all() for p in found.values()])
        if bool(fine.all()):
            return
        name, p = [*found.items()][int((~fine).nonzero()[0])]
        place: tuple[int, ...] = tuple((~torch.isfinite(p)).nonzero()[0].tolist())
        raise InputError(
            f"Parameter '{name}' is {float(p[place]):g} at {list(place)}: nothing computed with it has a value. "
            "Load or train the model again, from where its parameters were finite."
        )

    def buffer_versions(self) -> dict[str, tuple[Tensor, int]]:
        """Return the buffers of floating-point type, and how often each has been written into."""
        buffers = () if self.module is None else self.module.named_buffers()
        return {name: (b, in_place_version(b)) for name, b in buffers if b.is_floating_point()}

    def check_buffers(self, before: Mapping[str, tuple[Tensor, int]]) -> None:
        """Raise ``InputError``, naming the buffer, if one has been written into since ``buffer_versions``."""
        for name, (buffer, version) in before.items():
            if in_place_version(buffer) != version:
                raise InputError(
                    f"The forward pass writes into the buffer '{name}': its result depends on what was evaluated "
                    "before. Call model.eval(), or keep that buffer fixed."
                )

    def versions(self) -> list[Any]:
        """Return what changes when a parameter or buffer is written into, or replaced (``refresh``).

        What is written through ``p.data`` leaves no trace but the values, of which some are looked at.
        """
        places = self._look()
        entries = self._latest.entries
        return [places, in_place_versions(self._latest.tensors), entries and entries.now()]

    def check_unchanged(self, versions: list[Any]) -> None:
        """Raise ``RaphsonError`` unless parameters and buffers are as they were when ``versions`` were taken."""
        if versions != self.versions():
            raise RaphsonError(
                "The parameters of the model changed after this operator was made, which describes the model where "
                "they were. Make a new operator, or keep its dense form."
            )

    def leaves(self) -> dict[str, Tensor]:
        """Return the parameters of the space as new leaves that share their memory and require gradients."""
        return {name: p.detach().requires_grad_() for name, p in self.space.tensors.items()}

    def call(self, params: Mapping[str, Tensor] | None, x: Inputs) -> Tensor:
        """Return the outputs ``(N, ..., C)``, or the ``logits`` of an output with some (as transformers' models give).

        Args:
            params: Some of the parameters; others are as they are, without gradients.
            x: Inputs.

        Returns:
            The outputs.

        Raises:
            InputError: The outputs are no tensor, or an index is outside of its table.
        """
        values = {**self.everything, **(params or {})}
        x = tree_map(single, x) if self._copy is not None or self._in_half else x
        args, kwargs = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})
        with plain_run(self.checkpointed):
            try:
                if self.module is None or self._structure is None:
                    out = self.function(values, *args, **kwargs)
                else:
                    places = {place: values[name] for place, name in self._structure.places.items()}
                    try:
                        out = functional_call(self.module, places, args, kwargs, tie_weights=False)
                    finally:
                        self._structure.settle()
            except IndexError as error:  # only some rows have such an index: not those that were looked at first
                raise InputError(out_of_range(self.function, error)) from error
        return self.outputs(out)

    def outputs(self, out: Any) -> Tensor:
        """Return what the model returned as outputs ``(N, ..., C)`` of the parameters' type.

        Args:
            out: A tensor, or an output with ``logits`` (as transformers' models give).

        Returns:
            The tensor.

        Raises:
            InputError: It is not a tensor of at least one axis for examples and one for outputs.
        """
        out = getattr(out, "logits", out)
        if not isinstance(out, Tensor) or out.ndim < 2:
            seen = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise InputError(
                f"The model returned {seen}, but outputs must be one tensor (N, ..., C), examples first and outputs "
                "last. Wrap the model so that it returns that (a single output needs a last axis of 1)."
            )
        if not out.is_floating_point() or out.layout is not torch.strided:
            what = f"of type {out.dtype}" if out.layout is torch.strided else f"with layout {out.layout}"
            raise InputError(
                f"The model returned outputs {what}, but outputs must be a dense tensor of real numbers, which has "
                "derivatives: wrap the model so that it returns that (logits, not labels)."
            )
        # under torch.autocast outputs are of another type than parameters
        return out.to(self.space.dtype)
