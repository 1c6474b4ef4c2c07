"""Models in half precision, whose curvature has no decomposition there: a copy in single precision stands for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from raphson.data import tree_map
from raphson.linalg import HALF, single


def in_single(
    model: nn.Module | Callable[..., Tensor], data: Any, params: Mapping[str, Tensor] | None
) -> tuple[nn.Module | Callable[..., Tensor], Any, Mapping[str, Tensor] | None]:
    """Return model, data and parameters in single precision where the model is in half, else as they are."""
    values = list(model.parameters()) if isinstance(model, nn.Module) else list((params or {}).values())
    if not any(value.dtype in HALF for value in values):
        return model, data, params
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).float()
    else:
        params = {name: single(value) for name, value in (params or {}).items()}
    whole = isinstance(data, tuple | list) and len(data) > 1 and isinstance(data[1], Tensor)
    return model, tree_map(single, tuple(data)) if whole else _Widened(data), params


class _Widened:
    """Batches in single precision, each time that they are read."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return (tree_map(single, tuple(batch)) for batch in self._batches)
