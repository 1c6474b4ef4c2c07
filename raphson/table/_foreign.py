"""What formulas of R, patsy and mixed-model packages write otherwise: the remedy, by name."""

from __future__ import annotations

_BS = (
    "smooth terms that choose their own wiggliness are not fitted; a spline of given degrees of freedom is bs(x, df=5)"
)
_CONTRAST = "contrasts are written C(g, contr.{})"
_GROUPS = (
    "groups are named apart from the formula: groups= of standard_errors, --groups on the command line; their own "
    "effects are C(g)"
)
_APART = "{} are named apart from the formula: {}= of fit, --{} on the command line"

_REMEDIES = {
    **dict.fromkeys(("s", "te", "ti", "t2", "lo", "pb", "loess", "hs", "gp"), _BS),
    "ns": "a natural spline is cr(x, df=4, constraints='center')",
    **dict.fromkeys(("factor", "as.factor", "ordered", "as.ordered", "i"), "a factor is C(g)"),
    "relevel": "another base level is C(g, contr.treatment('b'))",
    "interaction": "all combinations of two factors are g:h, with their own effects g*h",
    "Treatment": _CONTRAST.format("treatment('b')") + ", with the base level 'b'",
    "Sum": _CONTRAST.format("sum"),
    "Helmert": _CONTRAST.format("helmert"),
    "Diff": _CONTRAST.format("diff"),
    "Poly": _CONTRAST.format("poly"),
    "Q": "a name with other signs stands between backquotes, as in `a b`",
    "c": "several values stand between brackets, as in knots=[0, 1]",
    **{name: f"write np.{name}(x)" for name in ("abs", "cos", "expm1", "log1p", "sign", "sin", "sqrt", "tanh")},
    "pmax": "write np.maximum(x, 0)",
    "pmin": "write np.minimum(x, 0)",
    "ifelse": "a truth value is I(x > 0), a kink np.maximum(x, 0)",
    **dict.fromkeys(("cut", "lag", "diff", "shift", "mo", "ave"), "compute that column in the table before the fit"),
    **dict.fromkeys(("Error", "cluster", "strata", "re", "random"), _GROUPS),
    "weights": _APART.format("weights", "sample_weight", "weights"),
    "exposure": "an exposure is offset(log(t))",
    "BitXor": "inside a function a power is **, as in I(x**2)",
    **dict.fromkeys(("TRUE", "FALSE", "NULL"), "Python writes True, False and None"),
}

MIXED = (
    "a bar, as in (1 | g), stands for random effects, or for a second right side, which are not fitted; give g effects "
    "of its own, C(g), or cluster the standard errors by groups"
)


def remedy(name: str) -> str | None:
    """Return what to write in place of a name that is known from elsewhere, or None."""
    return _REMEDIES.get(name)
