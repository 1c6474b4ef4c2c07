"""What structure proves about the convexity of an objective at every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from raphson.likelihoods import Likelihood
from raphson.linalg import SymmetricOperator

Convexity = Literal["strongly convex", "convex", "not convex", "undecided"]


@dataclass(frozen=True)
class Everywhere:
    """Convexity at every point.

    Attributes:
        convex: ``"strongly convex"``, ``"convex"``, ``"not convex"`` or ``"undecided"``.
        constant: The Hessian's smallest eigenvalue is at least this everywhere, on the parameters of ``where``.
        sentence: The same with its reason.
    """

    convex: Convexity
    constant: float
    sentence: str


@dataclass(frozen=True)
class Subject:
    """What is diagnosed.

    Attributes:
        operator: The Hessian, ``(p, p)``.
        title: What it is, in words.
        everywhere: What structure proves, or None.
        congruent: An operator with the same signs of eigenvalues that is better scaled, or None.
        penalty: The penalty's part of the Hessian, or None.
        expand: From ``(p,)`` to the labeled parameters, where ``operator`` has others; None for the identity.
        labels: Names of the parameters.
        second: What is judged beside it, a Gauss-Newton matrix; made when it is asked for; or None.
        constant_hessian: Whether the Hessian is the same everywhere.
    """

    operator: SymmetricOperator
    title: str = "operator"
    everywhere: Everywhere | None = None
    congruent: SymmetricOperator | None = None
    penalty: SymmetricOperator | None = None
    expand: Callable[[Tensor], Tensor] | None = None
    labels: tuple[str, ...] | None = None
    second: Callable[[], Subject] | None = None
    constant_hessian: bool = False


def everywhere(
    likelihood: Likelihood, *, linear: bool, constant: float, free: tuple[str, ...] = (), where: str = "parameters"
) -> Everywhere:
    r"""Return what likelihood, model and penalty prove about the objective at every point.

    Args:
        likelihood: The likelihood; ``concave`` says whether :math:`-\log p` is convex in the outputs.
        linear: Whether the outputs are linear in the parameters.
        constant: The penalty's Hessian is at least this on the penalized parameters; 0 for no penalty.
        free: Names of parameters without penalty.
        where: What the constant is of.

    Returns:
        The verdict with its reason.

    Examples:
        >>> from raphson.likelihoods import Poisson
        >>> everywhere(Poisson(), linear=True, constant=0.1).convex
        'strongly convex'
    """
    name = type(likelihood).__name__
    if not linear:
        return Everywhere(
            "undecided", 0.0, "Everywhere: undecided, because the outputs are not known to be linear in the parameters."
        )
    if not likelihood.concave:
        known = getattr(likelihood, "definiteness", None)
        why = known.sentence if known is not None else f"the log-likelihood of {name} is not concave in the outputs."
        return Everywhere("undecided", 0.0, f"Everywhere: not proven convex: {why}")
    reason = f"the negative log-likelihood of {name} is convex in the outputs, which are linear in the parameters"
    if not constant > 0:
        return Everywhere("convex", 0.0, f"Everywhere: convex, because {reason}.")
    if not free:
        sentence = (
            f"Everywhere: strongly convex with constant {constant:g}, because {reason}, and the penalty adds "
            f"{constant:g} along all {where}."
        )
        return Everywhere("strongly convex", constant, sentence)
    names = ", ".join(free[:4]) + (", ..." if len(free) > 4 else "")
    sentence = (
        f"Everywhere: convex, because {reason}; strongly convex with constant {constant:g} in the penalized {where}, "
        f"but not along the unpenalized {names}, where the curvature comes from the data alone and has no bound that "
        "holds at every point."
    )
    return Everywhere("convex", constant, sentence)
