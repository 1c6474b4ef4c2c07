"""Units of outputs and columns: whether a gradient is small must not depend on how somebody measured."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.data import Design
from raphson.likelihoods import Likelihood
from raphson.linear._output_map import OutputMap

_MATRIX_ELEMENTS = 2**15
"""The map of gradients to the table's units is held as a matrix up to this size."""

_ROWS = 4096
"""Rows from which the units of the outputs are taken."""


def output_units(likelihood: Likelihood, y: Tensor, weights: Tensor | None, n_outputs: int) -> Tensor | None:
    r"""Return :math:`I_{cc}^{-1/2}` at the start values: one standard error of each output from one row.

    Args:
        likelihood: The likelihood.
        y: Targets.
        weights: ``(N,)`` or None.
        n_outputs: ``C``.

    Returns:
        ``(C,)``, or None where outputs are pure numbers.
    """
    if not likelihood.has_units:
        return None
    some = slice(0, _ROWS)
    start = likelihood.start(y[some], n_outputs, None if weights is None else weights[some])
    units = likelihood.fisher(start).diagonal().rsqrt()
    return torch.where(torch.isfinite(units) & (units > 0), units, 1.0)


def parameter_units(units: Tensor, output_map: OutputMap) -> Tensor:
    """Return the units of the outputs for each parameter, ``(P,)``: the smallest of those that it acts on."""
    own = [(group.matrix.abs() / units[:, None]).amax(0).reciprocal() for group in output_map.groups]
    parts = [unit[:, None].expand(r, d) for unit, (r, d) in zip(own, output_map.shapes, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def gradient_map(design: Design, output_map: OutputMap) -> tuple[Tensor | None, Tensor | None]:
    """Return the matrix of gradients to the table's units, of one output where all are alike, and what rounding is."""
    first, uniform = int(design.intercept), output_map.is_uniform
    matrix, n = None, design.n_columns if uniform else output_map.n_parameters
    if uniform and n * n <= _MATRIX_ELEMENTS:
        matrix = torch.diag(torch.cat([design.scale.new_ones(first), design.scale]))
        matrix[:first, first:] += design.center
    elif n * n <= _MATRIX_ELEMENTS:
        matrix = output_map.gradient_to_table(torch.eye(n, dtype=torch.float64), design.center, design.scale)
    # what rounding makes of the gradient of a column of this size; a column of size 1e24 has 1e8 at the optimum
    size = (design.center.square() + design.scale.square()).sqrt() * 2.0**-46
    if not bool((size > 1e-12).any()):
        return matrix, None
    columns = torch.cat([size.new_zeros(first), size])
    return matrix, output_map.per_parameter(columns)
