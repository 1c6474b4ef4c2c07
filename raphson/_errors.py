"""Everything raphson raises or warns, in one place.

A message says what was seen, the likely cause and the remedy, in whole sentences, and names the row, column,
class, module or file. ``InputError`` is what the command line turns into exit code 2.
"""

from __future__ import annotations


class RaphsonError(Exception):
    """Base of every error that raphson raises on purpose."""


class InputError(RaphsonError, ValueError):
    """The data, a file or an argument cannot be used; the message names where and what to do."""


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
