"""Everything raphson raises or warns, in one place.

A message says what was seen, the likely cause and the remedy, in whole sentences, and names the row, column,
class, module or file. ``InputError`` is what the command line turns into exit code 2.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any


class RaphsonError(Exception):
    """Base of every error that raphson raises on purpose."""


class InputError(RaphsonError, ValueError):
    """The data, a file or an argument cannot be used; the message names where and what to do.

    Attributes:
        row: The row that the message names as "row N", counted from 0 in what was checked; None if it names none.
    """

    def __init__(self, message: str = "", *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row

    @staticmethod
    @contextmanager
    def naming_rows(positions: Sequence[int] | Any, name: str = "row", first: int = 0) -> Generator[None]:
        """Name rows as the caller knows them, where messages raised inside count those of a part of a table.

        Args:
            positions: Where each row of the part is in the table, from 0.
            name: What a row of the table is called.
            first: The number of its first row.

        Raises:
            InputError: The one that is raised inside, with the row's other name.
        """
        try:
            yield
        except InputError as error:
            if error.row is None:
                raise
            row = int(positions[error.row])
            message = re.sub(rf"\brow {error.row}\b", f"{name} {row + first}", str(error), count=1)
            raise InputError(message, row=row) from None


class NotEstimableError(RaphsonError, ValueError):
    """The data do not determine what was asked for (separation, collinearity, a penalized fit)."""


class IndefiniteError(RaphsonError, ValueError):
    """An operation that needs a positive definite operator met one that is not."""


class TooLargeError(RaphsonError, MemoryError):
    """A call would form an array of an unreasonable size; the message gives the size and the alternative."""


class RaphsonWarning(UserWarning):
    """Base of every warning that raphson gives."""


class SeparationWarning(RaphsonWarning):
    """Some classes are separated by the columns: their maximum likelihood estimates are infinite."""


class CollinearityWarning(RaphsonWarning):
    """Some columns are linear combinations of others: only some contrasts of coefficients are estimable."""
