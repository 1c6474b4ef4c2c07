"""What to do about coefficients without a finite estimate: one text for every place that says it."""

from __future__ import annotations


def remedy(*, by_class: bool = False, absent: bool = False) -> str:
    """Return the remedy, as it follows "Remedy: ".

    Args:
        by_class: Whether classes are separated, which can be merged.
        absent: Whether all that is wrong is a class without rows.

    Returns:
        The text, without a full stop.
    """
    if absent:
        return "drop the class"
    return f"add a penalty (l2=1e-3), merge the {'class' if by_class else 'groups'} or drop the column"
