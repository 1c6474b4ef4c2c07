"""Names that users read: of the intercept, and in lists."""

from __future__ import annotations

from collections.abc import Sequence

INTERCEPT = "(intercept)"


def listed(names: Sequence[str], limit: int = 6) -> str:
    """Return names in quotes as an English list, the tail beyond ``limit`` as a count."""
    quoted = [f"'{name}'" for name in names[:limit]]
    if len(names) > limit:
        return ", ".join(quoted) + f" and {len(names) - limit} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
