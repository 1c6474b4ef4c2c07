"""What a forward pass does that no operation of PyTorch shows: it draws random numbers, or puts hooks on a graph.

It is seen by what is called, not by what comes out. Random numbers are seen by the states of the global generators
(PyTorch's random operations are seen as such in ``_checks``), by calls of the system's source of randomness (from which
a generator without a seed is made), and by the states of all generators that a function in the forward pass can name.
Clocks may be read: a pass may time itself, and outputs that depend on the time differ in a second pass.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson.network._call_place import place_of_call

_SYSTEM = {"posix.urandom", "posix.getrandom", "nt.urandom"}
_HOOKS = {"register_hook", "register_prehook"}
_NAMES = {name.partition(".")[2] for name in _SYSTEM} | {"seed", "random", "getrandbits", *_HOOKS}
"""Names of all compiled functions that matter."""

_SEED = random.Random.seed.__code__

_OWN = {"torch", "numpy", "raphson"}
_PASSING = {"numpy", *sys.stdlib_module_names}
_ELSEWHERE = {"logging", "warnings", "threading", "tempfile", "tqdm"}
"""Modules that draw a name for what they do themselves, and not for what a model computes."""

_GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_PLAIN = (Tensor, str, bytes, int, float, complex, type, types.FunctionType, types.CodeType)

_MOST = 2000
"""Values that are looked at when a function is called, at most."""

_REMEDY = (
    ": the loss is then no fixed function of the parameters. Call model.eval(), or take the random part out of the "
    "model."
)


class WatchedCalls:
    """Watches the calls of one forward pass, which is run inside of it.

    Calls in other threads, and what compiled code draws by itself, are not seen; nor is any call while a profiler in C
    watches them already (cProfile, before Python 3.12).

    Args:
        model: The model.
        random: Whether it may draw random numbers.

    Attributes:
        trouble: A sentence on the first source of random numbers, or hook, or None.
    """

    def __init__(self, model: Any, random: bool = False) -> None:
        self._model, self._random = model, random
        self.trouble: str | None = None
        self._seen: dict[int, tuple[Any, Any]] = {}  # generators, and their states when they were seen first
        self._names: dict[types.CodeType, frozenset[str]] = {}
        self._profiler: Any = None
        self._importing: FrameType | None = None

    def __enter__(self) -> WatchedCalls:
        self._before = {key: _state(generator) for key, (_, generator) in _GLOBAL.items()}
        self._torch = torch.get_rng_state()
        self._profiler = sys.getprofile()
        self._collects = gc.isenabled()
        gc.disable()  # callbacks and finalizers of a collection are no part of the pass
        if self._watches():
            sys.setprofile(self._profile)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._watches():
            sys.setprofile(self._profiler)
        if self._collects:
            gc.enable()
        if kind is not None:
            self.restore()
        elif self.trouble is None and not self._random:
            drawn = [name for key, (name, made) in _GLOBAL.items() if _differ(_state(made), self._before[key])]
            drawn += [] if torch.equal(self._torch, torch.get_rng_state()) else ["torch's generator"]
            if drawn:
                self.trouble = f"The model draws random numbers (from {', '.join(drawn)}){_REMEDY}"

    def _watches(self) -> bool:
        # a profiler in Python is called, too; one in C could not be put back
        return self._profiler is None or callable(self._profiler)

    @property
    def saw_generators(self) -> bool:
        """Whether there are generators other than the global ones, which a second pass has to be compared for."""
        return bool(self._seen)

    def difference(self, again: WatchedCalls) -> str | None:
        """Return a sentence if generators had other states in a second pass, as those have that outlive a pass."""
        both = self._seen.keys() & again._seen.keys()
        if not any(_differ(self._seen[key][1], again._seen[key][1]) for key in both):
            return None
        return f"The model draws random numbers (from a generator of its own){_REMEDY}"

    def restore(self) -> None:
        """Put the states of all generators but torch's back to what they were before."""
        for key, state in self._before.items():
            _restore(_GLOBAL[key][1], state)
        for generator, state in self._seen.values():
            _restore(generator, state)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._profiler is not None:
            self._profiler(frame, event, arg)
        if self._importing is not None:  # the first call may import what it needs, which is no part of it
            if event == "return" and frame is self._importing:
                self._importing = None
        elif event == "call":
            names = self._names.get(frame.f_code)
            if names is None or names:
                self._look(frame)
        elif event == "c_call" and getattr(arg, "__name__", "") in _NAMES:
            self._look_at_call(frame, arg)

    def _look_at_call(self, frame: FrameType, function: Any) -> None:
        """See a call of compiled code."""
        owner = getattr(function, "__self__", None)
        kind = owner.__name__ if isinstance(owner, type | types.ModuleType) else ""
        name = f"{kind}.{function.__name__}"
        if isinstance(owner, random.Random):
            self._see(owner)
        elif isinstance(owner, torch.Generator):
            self._blame(frame, "torch.Generator.seed")
        elif name in _SYSTEM:
            self._blame(frame, name)
        elif isinstance(owner, torch.autograd.graph.Node) and _package(frame) not in _OWN and self.trouble is None:
            self.trouble = (
                f"{place_of_call(self._model, frame)} puts a hook on a graph (grad_fn.{function.__name__}), which may "
                "change gradients on their way back: they would belong to no loss. Take the hook out of the forward "
                "pass."
            )

    def _look(self, frame: FrameType) -> None:
        """See the generators that a function can name, as it is called."""
        code, names = frame.f_code, self._names.get(frame.f_code)
        if names is None:
            package = _package(frame)
            if code is _SEED and frame.f_locals.get("a") is None:
                self._blame(frame, "random.Random()")
            elif package == "importlib" and code.co_name == "_find_and_load":
                self._importing = frame
            elif code is not _SEED:
                passing = package in _OWN | _PASSING
                names = self._names[code] = frozenset() if passing else frozenset(["", *code.co_names])
        if not names:
            return
        values = deque([
            *frame.f_locals.values(),
            *(frame.f_globals[name] for name in names if name in frame.f_globals),
        ])
        known: set[int] = set()
        while values and len(known) < _MOST:
            value = values.popleft()
            if id(value) in known:
                continue
            known.add(id(value))
            # by its type: asking the value itself could run code
            if issubclass(type(value), _GENERATORS):
                self._see(value)
            elif not issubclass(type(value), _PLAIN):
                values.extend(_inside(value, names))

    def _see(self, generator: Any) -> None:
        known = id(generator) in self._seen or id(generator) in _GLOBAL
        if not known and not isinstance(generator, random.SystemRandom):
            self._seen[id(generator)] = generator, _state(generator)

    def _blame(self, frame: FrameType, name: str) -> None:
        """Name a source of random numbers, unless it is PyTorch or a message that asks for it."""
        at: FrameType | None = frame
        while at is not None and _package(at) in _PASSING:
            if _package(at) in _ELSEWHERE:
                return
            at = at.f_back
        if self._random or self.trouble is not None or at is None or _package(at) in _OWN | _ELSEWHERE:
            return
        place = place_of_call(self._model, at)
        self.trouble = f"{place} draws random numbers (from {name}, as a generator without a seed does){_REMEDY}"


_GLOBAL: dict[int, tuple[str, Any]] = {
    id(made): (name, made)
    for name, made in (
        ("Python's random", getattr(random.random, "__self__", None)),
        ("NumPy's generator", np.random.mtrand._rand),
    )
}
"""The generators of modules, by name; what is drawn from them needs no watching."""


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _inside(value: Any, names: frozenset[str]) -> Iterator[Any]:
    """Yield what a function with these names can reach from a value, without running code of the value's."""
    kind = type(value)
    if issubclass(kind, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif issubclass(kind, list | tuple | set | frozenset):
        yield from value
    elif issubclass(kind, dict):
        yield from dict.values(value)
    elif issubclass(kind, types.ModuleType):
        if value.__name__.partition(".")[0] not in _OWN:
            yield from (vars(value)[name] for name in names if name in vars(value))
    elif "__self__" in vars(kind):  # a method, also one of compiled code
        yield value.__self__
    else:
        yield from _attributes(value, names)


def _attributes(value: Any, names: frozenset[str]) -> Iterator[Any]:
    """Yield the attributes of an object with one of these names, of its classes too."""
    with contextlib.suppress(AttributeError):
        own = object.__getattribute__(value, "__dict__")
        yield from (own[name] for name in names if name in own)
    for kind in type(value).__mro__:
        if kind.__module__.partition(".")[0] in _OWN or kind is object:
            break
        for name in names & vars(kind).keys():
            found = vars(kind)[name]
            if isinstance(found, types.MemberDescriptorType):  # of a slot, which may be empty
                with contextlib.suppress(AttributeError):
                    found = found.__get__(value)
            yield found


_WORDS: Any = random.Random.__base__


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    if isinstance(generator, random.Random):  # which may be seen before it is complete
        return _WORDS.getstate(generator), getattr(generator, "gauss_next", None)
    return generator.get_state(legacy=False)


def _differ(state: Any, other: Any) -> bool:
    return pickle.dumps(state) != pickle.dumps(other)


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, random.Random):
        _WORDS.setstate(generator, state[0])
        vars(generator)["gauss_next"] = state[1]
    else:
        generator.set_state(state)
