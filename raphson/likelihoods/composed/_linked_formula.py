r"""The formulas of a likelihood with links: the chain rule in symbols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import Link
from raphson.likelihoods.formulas import (
    Convexity,
    Definition,
    Expr,
    Matrix,
    as_function,
    factored,
    output_symbol,
    polish,
    positive,
    sympy,
    tidy,
)

_PROBES = 500


def linked_formula(member: Likelihood, links: Sequence[Link], base: Definition) -> Definition:
    """Return the definition of a likelihood whose parameters, those of base, are maps of the outputs: abbreviations."""
    maps = [links[i % len(links)] for i in range(len(base.outputs))]
    outputs, pieces, rates = [], [], []
    # links upon links: another letter for each layer
    taken = {symbol.name[:2] for symbol in (*base.outputs, *(piece.symbol for piece in base.abbreviations))}
    letter, helper = (next(x for x in letters if f"{x}_" not in taken) for letters in ("fgh", "quvx"))
    for i, (parameter, link) in enumerate(zip(base.outputs, maps, strict=True)):
        if link.name == "identity":
            outputs.append(parameter)
            rates.append(sympy.Integer(1))
            continue
        f = output_symbol(link.name, f"{letter}_{i}")
        outputs.append(f)
        parts = as_function(link.name, f, parameter, positive(f"{helper}_{i}"))
        pieces += parts
        rates.append((parts[-1].rates or {})[f])
    if not pieces:
        return replace(base, likelihood=member)
    example = _example(member, base, maps)
    definition = replace(
        base,
        likelihood=member,
        outputs=tuple(outputs),
        abbreviations=(*pieces, *base.abbreviations),
        example=example,
        convexity=_probed(member, len(outputs), example[1]),
    )
    return replace(definition, given=_chain_rule(definition, base, rates))


def _chain_rule(definition: Definition, base: Definition, rates: list[Expr]) -> tuple[Matrix, Matrix, Matrix]:
    outputs = definition.outputs
    first = sympy.diag(*rates)
    second = sympy.diag(
        *(definition.derivative(s, f) * g for s, f, g in zip(rates, outputs, base.gradient, strict=True))
    )
    gradient = (first * base.gradient).applyfunc(polish)
    congruent = (first * base.hessian * first).applyfunc(polish)
    added = second.applyfunc(factored)
    hessian = sympy.Matrix(*congruent.shape, lambda i, j: _shorter(congruent[i, j] + added[i, j]))
    return gradient, hessian, (first * base.fisher * first).applyfunc(polish)


def _shorter(entry: Expr) -> Expr:
    """Return the sum of the two terms of the chain rule, or what it simplifies to if that is shorter."""
    return min((entry, tidy(entry)), key=lambda form: form.count_ops())


def _example(member: Likelihood, base: Definition, maps: list[Link]) -> tuple[list[float], object]:
    theta = torch.tensor(base.example[0], dtype=torch.float64)
    f = [float(link.inverse(value)) for link, value in zip(maps, theta, strict=True)]
    if not all(torch.isfinite(torch.tensor(f))):
        f = [link.neutral + 0.3 for link in maps]
    return f, base.example[1]


def _probed(member: Likelihood, size: int, y: object) -> Convexity:
    g = torch.Generator().manual_seed(0)
    f = torch.randn(_PROBES, size, dtype=torch.float64, generator=g)
    inside = torch.stack([d.contains(f[:, i]) for i, d in enumerate(member.domains)], -1).all(-1)
    f = f[inside]
    hessian = member.hessian(f, member.sample(f, g)).to_dense()
    share = float((torch.linalg.eigvalsh(hessian)[:, 0] >= -1e-12).double().mean()) if len(f) else 0.0
    return Convexity(
        "A link adds the gradient of the base times the link's second derivative to the observed Hessian, which "
        f"decides whether it stays convex: of {len(f)} standard normal outputs in the domain, with targets drawn from "
        f"the model, the observed Hessian is positive semidefinite at {share:.0%}. The Fisher information is always so."
    )
