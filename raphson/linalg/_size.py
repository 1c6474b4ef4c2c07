"""Sizes: up to which dense arrays are formed, and up to which NumPy multiplies on one thread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from raphson._errors import TooLargeError

MAX_DENSE_ELEMENTS = 2**28
"""Largest number of elements of an array that an operator forms: 2 GB in float64."""

SERIAL_ENTRIES = 9216
"""Entries of a matrix up to which OpenBLAS multiplies it by a vector without threads of its own, which would fight with
PyTorch's: NumPy, whose calls take half to a third of the time of PyTorch's, may be called up to there."""


def check_dense_size(shape: Sequence[int], dtype: torch.dtype, alternative: str) -> None:
    """Raise ``TooLargeError`` for an array that is too large to be formed without being asked for.

    Args:
        shape: Of the array.
        dtype: Its element type.
        alternative: What to call instead, as the end of the sentence "Use ...".

    Raises:
        TooLargeError: It has more than ``MAX_DENSE_ELEMENTS`` elements; the message names its size in GB.
    """
    elements = math.prod(shape)
    if elements > MAX_DENSE_ELEMENTS:
        size = elements * dtype.itemsize / 1e9
        raise TooLargeError(
            f"This call would form a dense {' x '.join(map(str, shape))} array of {size:.1f} GB "
            f"(more than {MAX_DENSE_ELEMENTS} elements). Use {alternative}."
        )
