"""Tables of the figures in ``results/``, as the README has them; without the packages that measure them."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any


def fits_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the table, and the means below it."""
    lines = [
        "| data | raphson s | lbfgs | newton-cg | newton-cholesky | best peer / raphson | lbfgs / raphson |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    best_ratios, lbfgs_ratios = [], []
    for name, result in results.items():
        ours = result["raphson"]
        cells = [f"{ours['seconds']:.4f}" + ("" if ours["credited"] else f" (gradient {ours['gradient']:.0e}!)")]
        for peer in ("lbfgs", "newton-cg", "newton-cholesky"):
            if peer not in result:
                cells.append("too large")
            else:
                r = result[peer]
                cells.append(f"{r['seconds']:.4f}" + ("" if r["credited"] else f" (gradient {r['gradient']:.0e})"))
        peers = {p: r for p, r in result.items() if p != "raphson"}
        credited = [r["seconds"] for r in peers.values() if r["credited"]] or [r["seconds"] for r in peers.values()]
        best_ratios.append(min(credited) / ours["seconds"])
        lbfgs_ratios.append(result["lbfgs"]["seconds"] / ours["seconds"])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {best_ratios[-1]:.1f} | {lbfgs_ratios[-1]:.1f} |")
    lines.append(
        f"| geometric mean | | | | | **{geometric_mean(best_ratios):.1f}** | **{geometric_mean(lbfgs_ratios):.1f}** |"
    )
    return lines
