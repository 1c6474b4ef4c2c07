"""Batches of weighted examples from tensors, loaders and iterables, the same on every pass."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError, RaphsonWarning

Inputs: TypeAlias = Any
"""What goes into a model: a tensor, a tuple of positional arguments or a mapping of named ones."""

_SAMPLE = 4096
"""Entries of a tensor that its checksum reads, evenly spaced: enough to see a shuffle, cheap beside a product."""

_FEWEST_INDICES = 3
_FEWEST_SCATTERED = 8
"""Numbers, in a row without gaps or at all, of which counts are hardly ever all different, but indices always."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples: inputs, targets and weights.

    Attributes:
        x: Inputs, ``(N, ...)`` or a tuple or mapping of such.
        y: Targets, ``(N, ...)``.
        weight: ``(N,)``, or None for 1 each.
        made_of: The tensors that these were converted from; none where they were not.
    """

    x: Inputs
    y: Tensor
    weight: Tensor | None
    made_of: tuple[Tensor, ...] = ()

    @property
    def n_examples(self) -> int:
        """Number of examples ``N``."""
        return self.y.shape[0]

    def tensors(self) -> list[Tensor]:
        """Return all tensors: inputs, targets and weights, or what they were converted from."""
        if self.made_of:
            return [*self.made_of]
        return [*_tensors(self.x), self.y, *([] if self.weight is None else [self.weight])]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(move(self.x, device), self.y.to(device), weight)

    def rows(self, rows: slice) -> Batch:
        """Return some of the examples, as views."""
        weight = None if self.weight is None else self.weight[rows]
        return Batch(take(self.x, rows, self.n_examples), self.y[rows], weight)


def tree_map(function: Any, x: Inputs) -> Inputs:
    """Return inputs of the same form with a function applied to every tensor."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {key: tree_map(function, value) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return tuple(tree_map(function, value) for value in x)
    return x


def move(x: Inputs, device: torch.device) -> Inputs:
    """Return inputs on a device."""
    return tree_map(lambda tensor: tensor.to(device), x)


def take(x: Inputs, rows: slice, n: int) -> Inputs:
    """Return inputs of some of ``n`` examples; tensors whose first axis is not that of the examples stay whole."""
    return tree_map(lambda tensor: tensor[rows] if tensor.ndim and tensor.shape[0] == n else tensor, x)


class Batches:
    """Batches that are the same on every pass, on one device.

    Args:
        data: ``(x, y)`` or ``(x, y, weight)`` of tensors, or an iterable of such that can be read repeatedly
            (a list, a ``DataLoader`` that does not shuffle).
        device: Where batches go.
        versions: What gives numbers that change when tensors are written into; None to trust that nobody does.

    Raises:
        InputError: The data are of another form, or can be read only once.
    """

    def __init__(
        self, data: Any, device: torch.device, versions: Callable[[Sequence[Tensor]], list[int]] | None = None
    ) -> None:
        self._device, self._versions = device, versions
        self._sums: list[int | list[int]] = []
        self._complete = False
        self._seen: list[Tensor] | None = []
        _refuse_form(data)
        if _is_whole(data):
            self._batches: Iterable[Any] = [self._with_warning(checked_batch(data, "batch 0").to(device), True)]
            self._checked = False
            return
        if not isinstance(data, Iterable):
            raise InputError(
                f"data is a {type(data).__name__}: give (x, y) or (x, y, weight) of tensors, a DataLoader, or a "
                "list of such batches."
            )
        if isinstance(data, Iterator):
            raise InputError(
                f"data is a {type(data).__name__}, which can be read only once, but derivatives need several passes. "
                "Give a list, a DataLoader, or another object that can be iterated again."
            )
        self._batches = data
        # a list of tensors does not change between passes unless somebody writes into it
        self._checked = not isinstance(data, list | tuple)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, refusing those that differ from the first pass."""
        count = -1
        for count, item in enumerate(self._batches):
            batch = item
            if not isinstance(item, Batch):
                batch = self._with_warning(checked_batch(item, f"batch {count}", seen=self._complete))
            self._compare(count, batch)
            yield batch.to(self._device)
        if count < 0:
            raise InputError("data has no batch: give at least one, with at least one example.")
        if self._complete and self._is_compared and count + 1 != len(self._sums):
            raise InputError(f"data had {len(self._sums)} batches on the first pass and has {count + 1} now: {_REMEDY}")
        self._look_at_weights(True)
        if not self._complete:
            warn_of_dropped(self._batches)
        self._complete = True

    def _with_warning(self, batch: Batch, last: bool = False) -> Batch:
        """Return the batch, with a warning where the weights of the first ones look like indices."""
        if self._seen is not None:
            self._seen += [] if batch.weight is None else [batch.weight]
            self._look_at_weights(last)
        return batch

    def _look_at_weights(self, last: bool) -> None:
        """Look once, when there are enough of them, or no more."""
        if self._seen is None or not (last or sum(map(len, self._seen)) >= _FEWEST_SCATTERED):
            return
        seen, self._seen = self._seen, None
        warn_of_indices(seen, "The third parts of batches (x, y, weight)", stacklevel=6)

    @property
    def _is_compared(self) -> bool:
        return self._checked or self._versions is not None

    def _compare(self, index: int, batch: Batch) -> None:
        if not self._is_compared:
            return
        value = self._versions(batch.tensors()) if self._versions and not self._checked else _checksum(batch)
        if not self._complete and index == len(self._sums):
            self._sums.append(value)
        elif index >= len(self._sums):
            raise InputError(f"data had {len(self._sums)} batches on the first pass and has more now: {_REMEDY}")
        elif self._sums[index] != value and not self._checked:
            raise InputError(
                f"A tensor of batch {index} was changed in place since the first pass, and the objective is of the "
                "data as they were: make a new one, or write into a copy."
            )
        elif self._sums[index] != value:
            raise InputError(f"Batch {index} is not the one that the first pass read: {_REMEDY}")


_REMEDY = (
    "a derivative reads the data several times and needs the same batches each time. Use a DataLoader with "
    "shuffle=False and no random augmentation, or a list of batches."
)


def _is_whole(data: Any) -> bool:
    """Return whether data are ``(x, y[, weight])`` rather than an iterable of them."""
    if not isinstance(data, tuple | list) or len(data) not in {2, 3} or not isinstance(data[1], Tensor):
        return False
    return isinstance(data[0], Tensor | Mapping | tuple | list)


def _refuse_form(data: Any) -> None:
    """Raise for data that are one batch, but not of tensors."""
    if isinstance(data, Mapping):
        raise InputError(_mapping("data", data))
    first = data[0] if isinstance(data, tuple | list) and len(data) in {2, 3} else data
    if isinstance(first, np.ndarray) or (isinstance(first, Tensor) and not isinstance(data, Tensor)):
        for what, part in zip(("x", "y"), (first, data[1]), strict=True):
            # a list of batches has tuples, and is told which of them is wrong
            if not isinstance(part, Tensor | tuple):
                raise InputError(
                    f"{what} is a {type(part).__name__}, but data (x, y) or (x, y, weight) are tensors: convert it by "
                    "torch.as_tensor."
                )


def _mapping(what: str, batch: Mapping[Any, Any]) -> str:
    """Return why a dictionary is no batch, and how to make one of it."""
    start = f"{what} is a dictionary of {', '.join(map(str, batch))}, but a batch must be (x, y) or (x, y, weight)"
    if "labels" not in batch:
        return f"{start}: give the model's inputs as x, in a dictionary or not, and the targets as y."
    return (
        f"{start}: give ({{name: tensor for all but 'labels'}}, labels), and for a causal language model, whose output "
        "at a position is about the next token, the labels moved by one, F.pad(labels[:, 1:], (0, 1), value=-100)."
    )


def checked_batch(item: Any, name: str = "the batch", *, seen: bool = False) -> Batch:
    """Return a batch of ``(x, y)`` or ``(x, y, weight)``.

    Args:
        item: What was given.
        name: What messages call it.
        seen: Whether it was seen in an earlier pass, too.

    Returns:
        The batch.

    Raises:
        InputError: It has another form, or its parts do not fit each other.
    """
    if isinstance(item, Mapping):
        raise InputError(_mapping(_begin(name), item))
    if not isinstance(item, tuple | list) or len(item) not in {2, 3}:
        raise InputError(f"{_begin(name)} is a {type(item).__name__}, but a batch must be (x, y) or (x, y, weight).")
    x, y = item[0], item[1]
    weight = item[2] if len(item) == 3 else None
    if not isinstance(y, Tensor) or y.ndim == 0:
        raise InputError(f"The targets of {name} must be a tensor with one row per example.")
    tensors = _tensors(x)
    if not tensors:
        raise InputError(f"The inputs of {name} hold no tensor: give a tensor, or a tuple or dict of tensors.")
    for tensor in (*tensors, y):
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            how = f"have layout {tensor.layout}" if tensor.device.type != "meta" else "are on the meta device"
            raise InputError(f"The inputs or targets of {name} {how}: give dense tensors with values.")
    if y.is_complex():
        raise InputError(f"The targets of {name} are complex ({y.dtype}), and targets are real numbers: give y.real.")
    first = tensors[0]
    if first.ndim == 0 or first.shape[0] != y.shape[0]:
        rows = first.shape[0] if first.ndim else "no"
        raise InputError(f"{_begin(name)} has {rows} rows of inputs but {y.shape[0]} targets: give one row for each.")
    if y.shape[0] == 0:
        raise InputError(f"{_begin(name)} has no example: leave empty batches out.")
    if weight is not None:
        weight = checked_weights(weight, y.shape[0], name, seen=seen)
    # what was made in inference mode cannot be part of a graph
    return Batch(tree_map(_usable, x), _usable(y), weight)


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _begin(name: str) -> str:
    """Return a name as the beginning of a sentence."""
    return name[:1].upper() + name[1:]


def checked_weights(given: Any, n: int, name: str = "the batch", *, seen: bool = False) -> Tensor:
    """Return example weights ``(n,)``; ``InputError`` if they are not one number, finite and not negative, for each."""
    weight: Tensor = torch.as_tensor(given)
    if weight.is_complex():
        raise InputError(f"The weights of {name} are complex ({weight.dtype}), and must be real numbers.")
    if weight.shape != (n,):
        raise InputError(
            f"The weights of {name} have shape {tuple(weight.shape)}, but there must be one number for each of "
            f"its {n} examples, ({n},)."
        )
    if seen and not weight.is_cpu:  # once is enough where looking means to wait for a device
        return weight
    bad = ~(torch.isfinite(weight) & (weight >= 0))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(
            f"The weight of row {row} of {name} is {float(weight[row]):g}, but weights must be finite and not "
            "negative. Correct it, or leave the example out."
        )
    return weight


def warn_of_dropped(data: Any) -> None:
    """Warn where a loader leaves the examples of a last, smaller batch out."""
    size, n = getattr(data, "batch_size", None), getattr(data, "dataset", None)
    if getattr(data, "drop_last", False) is not True or not isinstance(size, int) or not isinstance(n, Sized):
        return
    left = len(n) % size
    if left:
        warnings.warn(
            f"The loader has drop_last=True and leaves {left} of {len(n)} examples out: sums over data, and what they "
            "say of parameters, are without these. Make it with drop_last=False.",
            RaphsonWarning,
            stacklevel=6,
        )


def warn_of_indices(weights: Sequence[Tensor], what: str, stacklevel: int = 4) -> None:
    """Warn where example weights look like the numbers of the examples, as a data set may give them, too.

    Args:
        weights: Those of some batches.
        what: What they are in the words of the caller, for the beginning of the sentence.
        stacklevel: As for ``warnings.warn``.
    """
    weight = torch.cat([w.cpu().double() for w in weights]) if weights else torch.zeros(0)
    if _like_indices(weight, all(not w.is_floating_point() for w in weights)):
        warnings.warn(
            f"{what} hold {len(weight)} different whole numbers from {int(weight.min())} to {int(weight.max())}, which "
            "look like indices of examples, by which they are weighted now. If that is not meant, leave them out: "
            "(x, y).",
            RaphsonWarning,
            stacklevel=stacklevel,
        )


def _like_indices(weight: Tensor, integers: bool) -> bool:
    """Return whether weights are whole numbers without repetition: a range in any order, or many integers."""
    n, gaps = weight.shape[0], weight.sort().values.diff()
    if n < _FEWEST_INDICES or bool((weight != weight.round()).any()) or bool((gaps == 0).any()):
        return False
    return bool((gaps == 1).all()) or (n >= _FEWEST_SCATTERED and integers)


def _tensors(x: Inputs) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda tensor: found.append(tensor), x)
    return found


def _checksum(batch: Batch) -> int:
    """Return a number that changes with the batch's shapes, types or (a sample of) entries."""
    value = 0
    for tensor in batch.tensors():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLE)].cpu().contiguous()
        value = zlib.crc32(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(sample.view(torch.uint8).numpy().data, value)
    return value
