"""The parameters of a model as one vector: names, shapes, and the way between vectors and named tensors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg import HALF

MAX_LABELS = 2**16
"""Labels are text and cost about 100 bytes each: a larger space gives them one by one only."""


@dataclass(frozen=True, eq=False)
class ParameterSpace:
    r"""Named tensors laid out as one vector of length ``P``: in their order, each row-major.

    Args:
        tensors: The parameters by name, detached; of one floating-point type on one device.

    Raises:
        InputError: There is no parameter, or they differ in type or device.

    Examples:
        >>> import torch
        >>> space = ParameterSpace({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
        >>> space.numel, space.label(5), space.label(7)
        (8, 'weight[1,2]', 'bias[1]')
        >>> space.unflatten(torch.arange(8.0))["bias"]
        tensor([6., 7.])
    """

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise InputError(
                "The model has no parameter to differentiate: none has requires_grad=True. Name some with params=[...]."
            )
        first = next(iter(self.tensors))
        for name, tensor in self.tensors.items():
            _refuse_type(name, tensor.dtype)
            for what in ("dtype", "device"):
                mine, other = getattr(tensor, what), getattr(self.tensors[first], what)
                if mine != other:
                    raise InputError(
                        f"Parameter '{name}' has {what} {mine} but '{first}' has {other}: parameters must be of one "
                        "type on one device. Convert the model (model.float(), model.to(device)), or choose some of "
                        "them with params=[...]."
                    )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(self.tensors)

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the parameters, in order."""
        return tuple(tensor.shape for tensor in self.tensors.values())

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of elements of the parameters, in order."""
        return tuple(tensor.numel() for tensor in self.tensors.values())

    @cached_property
    def numel(self) -> int:
        """Length ``P`` of the vector of all parameters."""
        return sum(self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return next(iter(self.tensors.values())).dtype

    @property
    def in_half(self) -> bool:
        """Whether the parameters are in half precision."""
        return self.dtype in HALF

    @property
    def device(self) -> torch.device:
        """Device."""
        return next(iter(self.tensors.values())).device

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the vector."""
        ends = list(accumulate(self.sizes))
        return {name: slice(end - n, end) for name, n, end in zip(self.names, self.sizes, ends, strict=True)}

    def vector(self) -> Tensor:
        """Return the present values of the parameters, ``(P,)``, as a copy."""
        return self.flatten(self.tensors)

    def empty(self) -> Tensor:
        """Return a vector without entries, of the parameters' type and on their device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return named tensors as one vector ``(P,)``, or with one more, last axis ``k`` in common as ``(P, k)``."""
        columns = [values[name].reshape(n, -1) for name, n in zip(self.names, self.sizes, strict=True)]
        whole = torch.cat(columns)
        one = values[self.names[0]].ndim == self.tensors[self.names[0]].ndim
        return whole.squeeze(-1) if one else whole

    def unflatten(self, v: Tensor) -> dict[str, Tensor]:
        """Return a vector as named tensors, which are views of it.

        Args:
            v: ``(P,)`` or ``(P, k)``.

        Returns:
            Tensors of the parameters' shapes, with a last axis ``k`` if ``v`` has one; ``InputError`` if ``v`` does not
            have ``P`` rows.
        """
        self.check_length(v.shape[0] if v.ndim else 0)
        parts = v.split(self.sizes)  # type: ignore[no-untyped-call]
        named = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.reshape((*shape, *v.shape[1:])) for name, shape, part in named}

    def split_rows(self, rows: Tensor) -> list[Tensor]:
        """Return ``k`` vectors ``(k, P)`` as tensors ``(k, *shape)`` in the order of the parameters, as views."""
        self.check_length(rows.shape[-1])
        parts = rows.split(self.sizes, dim=-1)  # type: ignore[no-untyped-call]
        return [part.reshape((*rows.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def check_length(self, length: int) -> None:
        """Raise ``InputError`` unless a vector has one entry for each parameter."""
        if length != self.numel:
            raise InputError(
                f"The vector has {length} entries, but there are {self.numel} parameters "
                f"({', '.join(self.names[:3])}{', ...' if len(self.names) > 3 else ''})."
            )

    def label(self, index: int) -> str:
        """Return the name of one entry of the vector, such as ``"0.weight[3,2]"``."""
        for name, place in self.slices.items():
            if place.start <= index < place.stop:
                shape, rest, inside = self.tensors[name].shape, index - place.start, []
                for length in reversed(shape):
                    rest, position = divmod(rest, length)
                    inside.append(str(position))
                return f"{name}[{','.join(reversed(inside))}]" if shape else name
        raise InputError(f"There is no parameter {index}: they are numbered from 0 to {self.numel - 1}.")

    def labels(self) -> tuple[str, ...] | None:
        """Return the names of all entries, or None where there are more than ``MAX_LABELS`` (ask ``label`` then)."""
        return None if self.numel > MAX_LABELS else self._labels

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        pairs = zip(self.names, self.shapes, strict=True)
        return tuple(label for name, shape in pairs for label in _entries(name, shape))


_ARITHMETIC = frozenset({torch.float64, torch.float32, *HALF})
"""Types that PyTorch adds, multiplies and differentiates."""


def _refuse_type(name: str, dtype: torch.dtype) -> None:
    if dtype in _ARITHMETIC:
        return
    if dtype.is_complex:
        raise InputError(
            f"Parameter '{name}' has type {dtype}, but derivatives are those in real numbers. Keep its real and "
            "imaginary parts as one real parameter (torch.view_as_real, and torch.view_as_complex in forward), or "
            "leave it out with params=[...]."
        )
    what = "which is for storage only" if dtype.is_floating_point else "which has no derivative"
    raise InputError(
        f"Parameter '{name}' has type {dtype}, {what}: leave it out with params=[...], or convert it, by model.float()."
    )


def refuse_other_tensor(name: str, p: Tensor | None, mine: Tensor) -> None:
    """Raise ``InputError`` where a parameter is gone, or has another shape, type or device than it had."""
    if p is None or (p.shape, p.dtype, p.device) != (mine.shape, mine.dtype, mine.device):
        now = "is gone" if p is None else f"is now {tuple(p.shape)} of type {p.dtype} on {p.device}"
        raise InputError(
            f"Parameter '{name}' {now}; when the objective was made it was {tuple(mine.shape)} of type "
            f"{mine.dtype} on {mine.device}. Make a new Objective."
        )


def chosen(tensors: Mapping[str, Tensor], params: str | Iterable[str]) -> ParameterSpace:
    """Return the space of the parameters that names, or prefixes of names up to a dot, stand for, in their order.

    Raises:
        InputError: A name matches no parameter.
    """
    names: set[str] = set()
    if not isinstance(params, Iterable):
        raise InputError(f"params is a {type(params).__name__}, but parameters are named: give a list of names.")
    for want in [params] if isinstance(params, str) else list(params):
        if not isinstance(want, str):
            raise InputError(
                f"params holds a {type(want).__name__}, but parameters are named: give names or prefixes of names, as "
                f"in params={list(tensors)[:1]}."
            )
        found = {want} if want in tensors else {name for name in tensors if name.startswith(f"{want}.")}
        if not found:
            close = difflib.get_close_matches(want, tensors, 3) or list(tensors)[:3]
            raise InputError(f"There is no parameter '{want}'. Did you mean {', '.join(map(repr, close))}?")
        names |= found
    return ParameterSpace({name: tensor for name, tensor in tensors.items() if name in names})


def _entries(name: str, shape: torch.Size) -> list[str]:
    """Return the names of a tensor's entries."""
    if not shape:
        return [name]
    heads = [f"{name}["]
    for length in shape[:-1]:
        heads = [f"{head}{i}," for head in heads for i in range(length)]
    tails = [f"{i}]" for i in range(shape[-1])]
    return [head + tail for head in heads for tail in tails]
