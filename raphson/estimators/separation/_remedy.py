"""What to do about coefficients without a finite estimate: one text for every place that says it."""

_PENALTY = "penalty='jeffreys' for estimates with standard errors, l2=1e-3 for predictions alone"

REMEDIES = {
    "classes": f"{_PENALTY}, merge the class or drop the column",
    "rows": f"{_PENALTY}, merge the groups or drop the column",
    "absent": "drop the class",
    "unknown": f"{_PENALTY}, drop or merge the column, or choose a likelihood in which that parameter is fixed",
}
"""By cause, as they follow "Remedy: ", without a full stop."""
