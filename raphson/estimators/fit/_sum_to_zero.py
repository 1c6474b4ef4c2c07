"""Coefficients of classes that sum to zero, where something must be said of them relative to one class.

Along a direction in which one class runs off, coefficients that sum to zero run off for all classes: what is separated,
and what is left to fit in the limit, is worked out relative to the last class, and carried over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.estimators.input._layout import Layout
from raphson.likelihoods import Likelihood

_ROUNDING = 1e-10
"""Entries of a direction below this share of its largest are rounding."""


def relative_layout(layout: Layout, likelihood: Likelihood) -> Layout | None:
    """Return the layout relative to the last class where coefficients are reported as summing to zero; else None."""
    here = layout.output_map
    if not (likelihood.differences_only and layout.is_relative and here.is_plain):
        return None
    return Layout.of_classes(layout.outputs, layout.columns, here.n_outputs - 1, here.intercept)


def centered(theta: Tensor, relative: Layout) -> Tensor:
    """Turn parameters ``(..., P)`` relative to a class into those that sum to zero ``(..., C D')``, class by class."""
    coef = relative.output_map.expand(theta)
    return (coef - coef.mean(-2, keepdim=True)).flatten(-2)


def centered_directions(span: Tensor, relative: Layout) -> Tensor:
    """Turn directions ``(P, r)`` into ``(C D', r)``, rounding set to zero."""
    found = centered(span.mT.contiguous(), relative).mT
    size = found.abs()
    return torch.where(size > _ROUNDING * size.amax(0), found, 0.0)


def differences(span: Tensor, relative: Layout) -> Tensor:
    """Turn directions ``(C D', r)`` of coefficients that sum to zero into those ``(P, r)`` relative to the class."""
    here = relative.output_map
    return here.relative_to_left_out(span.mT.reshape(-1, here.n_outputs, here.n_columns)).flatten(1).mT
