r"""Sums of Kronecker-factored curvatures over several data sets, factor by factor.

A block is :math:`B \otimes A` with a sum B over output gradients and an average A over inputs. Two data sets of weights
:math:`W_1, W_2` together have :math:`(B_1 + B_2) \otimes (W_1 A_1 + W_2 A_2) / (W_1 + W_2)`, as if all were
seen at once. Products that ``kfac`` stores as dense blocks (of small groups, of a weight used both ways) add up as
they are.
"""

from __future__ import annotations

from dataclasses import replace

from raphson._errors import InputError
from raphson.linalg import BlockDiagonal, Dense, Diagonal, EqualBlocks, Kronecker, SymmetricOperator
from raphson.network.curvature.factors._layer_operator import LayerOperator


def multiplied_factors(operator: LayerOperator, c: float) -> LayerOperator:
    """Return curvature of ``kfac`` times a positive number, with the averages of inputs as they are."""
    blocks = (_mixed(block, c, None, 0.0, i) for block, i in zip(operator.blocks, _inputs(operator), strict=True))
    return replace(operator, blocks=tuple(blocks))


def added_factors(one: LayerOperator, weight: float, other: LayerOperator, other_weight: float) -> LayerOperator:
    """Return the curvature of two data sets together, from those of sums over each and their total weights.

    Args:
        one: Curvature of ``kfac``.
        weight: The total weight behind it.
        other: Another, of the same network.
        other_weight: The total weight behind that.

    Returns:
        The curvature.

    Raises:
        InputError: They are of different layers.
    """
    if one.names != other.names:
        raise InputError(
            "The new data go through other layers than the old ones did: make one operator of all data together."
        )
    share = other_weight / (weight + other_weight)
    pairs = zip(one.blocks, other.blocks, _inputs(one), strict=True)
    return replace(one, blocks=tuple(_mixed(a, 1.0, b, share, i) for a, b, i in pairs))


def _inputs(operator: LayerOperator) -> tuple[int | None, ...]:
    return operator.inputs or (None,) * len(operator.blocks)


def _mixed(
    one: SymmetricOperator, c: float, other: SymmetricOperator | None, share: float, inputs: int | None
) -> SymmetricOperator:
    """Return ``c`` times a block, plus another one, whose inputs have this share of the average."""
    if isinstance(one, Kronecker):
        factors = []
        for i, factor in enumerate(one.factors):
            mate = other.factors[i] if isinstance(other, Kronecker) else None
            if i != inputs:
                factors.append(_mixed(factor, c, mate, share, None))
            elif mate is None:
                factors.append(factor)
            else:
                factors.append(_mixed(factor, 1 - share, _mixed(mate, share, None, 0.0, None), 0.0, None))
        return replace(one, factors=tuple(factors))
    if isinstance(one, BlockDiagonal):
        mates = other.blocks if isinstance(other, BlockDiagonal) else (None,) * len(one.blocks)
        return replace(
            one, blocks=tuple(_mixed(a, c, b, share, inputs) for a, b in zip(one.blocks, mates, strict=True))
        )
    if isinstance(one, Diagonal):
        return replace(one, values=one.values * c + (other.values if isinstance(other, Diagonal) else 0.0))
    if isinstance(one, EqualBlocks):
        return replace(one, blocks=one.blocks * c + (other.blocks if isinstance(other, EqualBlocks) else 0.0))
    # among them the sum of two products of a weight that is used both ways round
    dense = one.to_dense() * c
    return Dense(dense if other is None else dense + other.to_dense(), labels=one.labels)
