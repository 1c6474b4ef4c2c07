"""Units of outputs and columns: whether a gradient is small must not depend on how somebody measured."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raphson.data import Design
from raphson.likelihoods import Likelihood
from raphson.linear._output_map import OutputMap

_MATRIX_ELEMENTS = 2**15
"""Without a uniform output map, the map of gradients to the table's units is held as a matrix up to this size."""

_ROUNDING, _SEEN = 2.0**-46, 1e-12
"""Share of a column's size that rounding leaves in its gradient, and what of that matters."""

_LEAST_SCALE = 1e-3
"""Columns of a smaller standard deviation have gradients as if it were this: in units in which they are 1e-8 they would
be 1e-8 at the start already. At the tolerance of 1e-8 the average loss is then within about 1e-10 of its optimum."""

_CENTERED = 2.0**-50
"""Largest mean of columns that are centered as they are: what it adds to an entry is no more than this share of the
intercept's, which is one of those the norm is the largest of."""

_FEW_ENTRIES = 2**15
"""Entries of a gradient up to which NumPy takes its norm, whose calls take a third of the time of PyTorch's."""

_FLAT = 1e3
"""Scores by which a likelihood is flat: of so small a share of the usual size, one standard deviation of a row's."""

_STEEP = 1e4
"""Scores of so many times the usual size are steep: at the tolerance of 1e-8 their sum is then 1e-12 of their size."""

_SAME = 1e-6
"""Share of an output's size from which targets differ."""

_ROWS = 1024
"""Rows from which units are taken, at least: they only have to be near."""


def output_units(likelihood: Likelihood, y: Tensor, weights: Tensor | None, n_outputs: int) -> Tensor | None:
    """Return :math:`I_{cc}^{-1/2}` at the start values ``(C,)``: one standard error of each output from one row.

    None where outputs are pure numbers.
    """
    if not likelihood.has_units:
        return None
    y, weights = _some(y, weights)
    start = likelihood.start(y, n_outputs, weights)
    units = likelihood.fisher(start).diagonal().rsqrt()
    return torch.where(torch.isfinite(units) & (units > 0), units, 1.0)


def _some(y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return targets and weights of some rows, evenly spread: a table may be sorted."""
    some = slice(None, None, max(1, len(y) // _ROWS))
    return y[some], None if weights is None else weights[some]


def gradient_units(
    likelihood: Likelihood, y: Tensor, weights: Tensor | None, n_outputs: int, units: Tensor | None
) -> Tensor | None:
    """Return the units in which a gradient is small at the optimum only, ``(C,)``; None for those of pure numbers.

    A likelihood with a given dispersion or scale may be so flat for targets of some size that its gradient is below any
    tolerance at the start already: an inverse Gaussian one of dispersion 1 at means of 1e10 has an information of 1e-10
    on the log of the mean. One of a scale of 1 has a gradient of 1e30 for targets of 1e30, and after rounding one of
    1e14. There units go by the scores' own size at the start values.

    Args:
        likelihood: The likelihood.
        y: Targets.
        weights: ``(N,)`` example weights, or None.
        n_outputs: ``C``.
        units: Those of the outputs, ``(C,)``; None where they are pure numbers.
    """
    if likelihood.partition is not None:
        return units
    y, weights = _some(y, weights)
    start = likelihood.start(y, n_outputs, weights)
    # all at once: families take what is constant over rows once
    score = likelihood.derivatives(start.expand(len(y), -1), y, None).gradient
    weighted = score.square().mean(0) if weights is None else weights @ score.square() / weights.sum()
    usual = torch.ones_like(start) if units is None else units
    size = weighted.sqrt()
    if bool(((size * usual >= 1.0 / _FLAT) & (size * usual <= _STEEP)).all()):
        return units  # of the usual size, as nearly all are
    # scores that are rounding, of targets which are all the same, have no size of their own
    least = likelihood.fisher(start).diagonal() * _SAME * start.abs().clamp_min(1.0 if units is None else 0.0)
    flat, steep = torch.maximum(size, least).reciprocal(), _STEEP * weighted.rsqrt()
    # a scale or a dispersion on which the score is flat, that of counts of zero, is not known: no unit makes it so
    first = torch.arange(n_outputs, device=start.device) % len(likelihood.parameters) == 0
    found = torch.where(first & torch.isfinite(flat) & (flat > _FLAT * usual), flat, usual)
    found = torch.where((steep > 0) & (steep < usual), steep, found)
    return units if bool((found == usual).all()) else found


def parameter_units(units: Tensor, output_map: OutputMap) -> Tensor:
    """Return the units of the outputs for each parameter, ``(P,)``: the smallest of those that it acts on."""
    own = [(group.matrix.abs() / units[:, None]).amax(0).reciprocal() for group in output_map.groups]
    parts = [unit[:, None].expand(r, d) for unit, (r, d) in zip(own, output_map.shapes, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def largest_size(values: Tensor) -> float:
    """Return the largest absolute value, no number where one of them is none; nothing is copied."""
    found = values.numpy()
    return max(float(found.max()), -float(found.min()))


def euclidean_norm(vector: Tensor) -> float:
    """Return the length of a vector ``(p,)``, in a third of the time of ``torch.linalg.vector_norm``."""
    return math.sqrt(float(torch.dot(vector, vector)))


class GradientNorm:
    r"""The largest entry of a gradient in the units of table and outputs, less what rounding explains.

    Columns in tiny units count by their standard deviations, so that they are fitted as well.

    Args:
        design: The rows and columns, for their centers and scales.
        output_map: How the parameters act on the outputs.
        units: Units of the parameters ``(P,)``, or None.
    """

    def __init__(self, design: Design, output_map: OutputMap, units: Tensor | None) -> None:
        n, self._map, self._units = output_map.n_parameters, output_map, units
        self._center, self._ones, given = design.center, int(design.intercept), design.scale.numpy()
        center, self._is_small = design.center.numpy(), float(given.min(initial=1.0)) < _LEAST_SCALE
        scale = np.maximum(given, _LEAST_SCALE) if self._is_small else given
        self._scale, self._given = torch.from_numpy(scale), given
        farthest = float(np.abs(center).max(initial=0.0))
        self._is_shifted = farthest > _CENTERED
        # a column of size 1e24 has a gradient of 1e8 at the optimum
        self._rounding = None
        if len(scale) and (scale.max() + farthest) * _ROUNDING > _SEEN:
            size = np.hypot(center, given) * _ROUNDING
            self._rounding = np.where(size > _SEEN, size, 0.0)
        self._floor = None if output_map.is_uniform else output_map.per_parameter(self.columns[2])
        self._matrix: Tensor | None = None
        if not output_map.is_uniform and n * n <= _MATRIX_ELEMENTS:
            self._matrix = self._to_table(torch.eye(n, dtype=torch.float64)).mT.contiguous()

    @cached_property
    def columns(self) -> Tensor:
        """Of every column its scale, what the intercept's entry has to do with it, and what rounding makes of it.

        Of entries g of one output :math:`|u_{1j} g_j + u_{2j} g_1| - u_{3j}`, ``(3, D')``.
        """
        ones = self._ones
        columns = np.zeros((3, len(self._given) + ones))
        columns[0, :ones] = 1.0
        columns[0, ones:], columns[1, ones:] = self._scale.numpy(), self._center.numpy()
        if self._rounding is not None:
            columns[2, ones:] = self._rounding
        return torch.from_numpy(columns)

    @cached_property
    def _rows(self) -> tuple[Tensor, ...]:
        return self.columns.unbind()

    def _to_table(self, gradient: Tensor) -> Tensor:
        return self._map.gradient_to_table(gradient, self._center, self._scale)

    @property
    def is_by_column(self) -> bool:
        """Whether it is the same for every uniform map."""
        return self._floor is None and self._units is None

    def __call__(self, gradient: Tensor) -> float:
        """Return the norm of a gradient ``(P,)``; no finite number where the gradient is none."""
        if self._floor is None:
            if self._units is None and gradient.dtype == torch.float64 and gradient.numel() <= _FEW_ENTRIES:
                return self._of_few(gradient)
            factor, shift, floor = self._rows if gradient.dtype == torch.float64 else self.columns.to(gradient.dtype)
            given = gradient.view(-1, floor.shape[0])
            size = given * factor
            if self._is_shifted:
                size.addcmul_(given[:, :1], shift)
        else:
            size = self._to_table(gradient) if self._matrix is None else self._matrix @ gradient
            floor = self._floor
        if self._units is not None:
            size = size * self._units.view_as(size)
        return largest_size(size) if self._rounding is None else max(float(size.abs_().sub_(floor).max()), 0.0)

    def of_table(self, slopes: Tensor, ones: Tensor | None, entries: Tensor | None = None) -> float:
        """Return the norm of a gradient in the coefficients of the table's columns, where there are no other units.

        Args:
            slopes: The gradient in those of columns as they are, not centered, ``(q, D)``; it is written over.
            ones: The gradient in the intercepts, ``(q,)``, or None.
            entries: The memory of ``slopes``, where that has zeros among them.
        """
        if self._is_small:
            raised = self._scale / torch.from_numpy(self._given)
            if ones is None:
                slopes.mul_(raised)
            else:
                slopes.addr_(ones, self._center, alpha=-1.0).mul_(raised).addr_(ones, self._center)
        if self._rounding is not None:
            slopes.abs_().sub_(torch.from_numpy(self._rounding))
        found = largest_size(slopes if entries is None else entries)
        return found if ones is None else max(found, largest_size(ones))

    def _of_few(self, gradient: Tensor) -> float:
        factor, shift, floor = self.columns.numpy()
        given = gradient.numpy().reshape(-1, len(floor))
        size = given * factor
        if self._is_shifted:
            size += given[:, :1] * shift
        np.abs(size, out=size)
        if self._rounding is not None:
            size -= floor
        return max(float(size.max()), 0.0)
