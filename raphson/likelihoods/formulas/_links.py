"""Parameters as functions of an output, in symbols."""

from __future__ import annotations

from collections.abc import Callable

from raphson.likelihoods.formulas._algebra import Expr, Symbol, positive, real, sympy
from raphson.likelihoods.formulas._definition import Abbreviation, exponential, logistic

normal_cdf = sympy.Function("Phi")
normal_density = sympy.Function("φ")


def output_symbol(name: str, letter: str) -> Symbol:
    """Return the symbol of an output that a function of ``as_function`` is of: positive where it is defined there."""
    return (positive if name in _POSITIVE else real)(letter)


def as_function(name: str, f: Expr, theta: Expr, helper: Expr) -> list[Abbreviation]:
    """Return the parameter ``theta`` as a named function of the output ``f``, after what its derivative needs.

    ``helper`` is the symbol of that piece; there are no abbreviations for the identity.
    """
    if name == "softplus":
        return [logistic(helper, f), Abbreviation(theta, sympy.log(1 + sympy.exp(f)), {f: helper})]
    if name == "normal_cdf":
        density = sympy.exp(-(f**2) / 2) / sympy.sqrt(2 * sympy.pi)
        cdf = sympy.erfc(-f / sympy.sqrt(2)) / 2
        return [
            Abbreviation(helper, density, {f: -f * helper}, shown=normal_density(f)),
            Abbreviation(theta, cdf, {f: helper}, shown=normal_cdf(f)),
        ]
    if name == "exp":
        return [exponential(theta, f)]
    if name == "sigmoid":
        return [logistic(theta, f)]
    meaning, rate = _SIMPLE[name](f, theta)
    return [Abbreviation(theta, meaning, {f: rate})]


_POSITIVE = {"log", "inverse", "square", "inverse_square_root"}
_SIMPLE: dict[str, Callable[[Expr, Expr], tuple[Expr, Expr]]] = {
    "identity": lambda f, theta: (f, sympy.Integer(1)),
    "log": lambda f, theta: (sympy.log(f), 1 / f),
    "logit": lambda f, theta: (sympy.log(f / (1 - f)), 1 / (f * (1 - f))),
    "square": lambda f, theta: (f**2, 2 * f),
    "inverse": lambda f, theta: (1 / f, -(theta**2)),
    "inverse_square_root": lambda f, theta: (1 / sympy.sqrt(f), -(theta**3) / 2),
    "cloglog_inverse": lambda f, theta: (1 - sympy.exp(-sympy.exp(f)), (1 - theta) * sympy.exp(f)),
    "loglog_inverse": lambda f, theta: (sympy.exp(-sympy.exp(-f)), theta * sympy.exp(-f)),
    "cauchy_cdf": lambda f, theta: (sympy.Rational(1, 2) + sympy.atan(f) / sympy.pi, 1 / (sympy.pi * (1 + f**2))),
}
