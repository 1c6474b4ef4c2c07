"""Rows of a file in messages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import raphson as rp


def in_file(positions: Sequence[int] | Any) -> AbstractContextManager[None]:
    """Let messages raised inside name rows by ``positions`` in the file, as "data row" counted from 1."""
    return rp.InputError.naming_rows(positions, "data row", 1)
