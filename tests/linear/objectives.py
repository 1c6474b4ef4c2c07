"""Linear objectives for tests, by the classes or outputs that they have."""

from __future__ import annotations

import copy

import torch

from raphson.linear import LinearObjective, OutputMap


def linear_objective(design, likelihood, y, *, n_outputs, reference=None, curvature_dtype=torch.float64, **options):
    """Return the objective in which every output, or every one but ``reference``, has coefficients of its own."""
    if reference is None:
        output_map = OutputMap.own(n_outputs, design.n_columns, design.intercept)
    else:
        output_map = OutputMap.relative(n_outputs, reference, design.n_columns, design.intercept)
    objective = LinearObjective(design, likelihood, y, output_map, **options)
    return objective.with_curvature(curvature_dtype)


def through_pytorch(objective):
    """Return the same objective without compiled code."""
    other = copy.copy(objective)
    other.__dict__["compiled"] = None
    return other
