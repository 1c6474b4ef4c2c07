r"""Value, gradient and Hessian of a linear model, for any likelihood and any arrangement of its coefficients.

With outputs :math:`f_n = S K(\theta) \hat x_n + a(\theta) + o_n` (``OutputMap``) and :math:`W = \sum_n w_n`

.. math::
    L(\theta) &= \tfrac1W \sum_n w_n\, \ell(f_n, y_n) + \mathrm{ridge}(\theta), \\
    \nabla L &= \tfrac1W \sum_n w_n\, J_n^T g_n + \nabla \mathrm{ridge}, \qquad
    \nabla^2 L = \tfrac1W \sum_n w_n\, J_n^T H_n J_n + \nabla^2 \mathrm{ridge},

whatever the likelihood: it supplies :math:`g_n` (C) and :math:`H_n` (C x C), and nothing here looks inside it. The
Gauss-Newton matrix of a linear model is its Hessian, because the second derivative of f vanishes. Where every output
has coefficients of its own, :math:`J_n = I_C \otimes \hat x_n^T`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from raphson.data import Block, Design, SparseDesign
from raphson.likelihoods import Derivatives, Likelihood
from raphson.linear._compiled import CompiledFamily, CompiledHessian, Table, adjoint, has_compiled_steps
from raphson.linear._cost import Cost
from raphson.linear._hessian import Evaluation, LinearHessian, Part, narrowed
from raphson.linear._output_map import OutputMap
from raphson.linear._ridge import Ridge
from raphson.linear._target_term import TargetRows, TargetSums, negative_term, target_term, times
from raphson.linear._units import GradientNorm, gradient_units, output_units, parameter_units

Kind = Literal["observed", "expected"]

_CACHED_BYTES = 2**28
"""Output Hessians are cached between products while their diagonals take less than this; else they are made anew."""


class LinearObjective:
    r"""Average loss of a linear model with a ridge penalty, as a function of its parameters.

    The parameters are those of ``output_map`` for the design's standardized columns. The penalty acts on the slopes of
    the table's columns; where the likelihood sees differences of outputs only (softmax), on their sum-to-zero form, so
    that predictions do not depend on the reference.

    Args:
        design: Rows and columns; columns for which ``output_map.can_center`` is False must not be centered.
        likelihood: Output-space derivatives.
        y: Targets, first dimension N.
        output_map: How the parameters act on the outputs.
        weights: ``(N,)`` example weights; None means 1 each.
        offset: ``(N, C)`` added to the linear predictors; None means 0.
        l2: :math:`\lambda` of the average loss.
        sums: Sums of the targets' statistic, where they are known; without weights and offsets only.
    """

    def __init__(
        self,
        design: Design,
        likelihood: Likelihood,
        y: Tensor,
        output_map: OutputMap,
        *,
        weights: Tensor | None = None,
        offset: Tensor | None = None,
        l2: float = 0.0,
        sums: TargetSums | None = None,
    ) -> None:
        self.design, self.likelihood, self.y, self.output_map = design, likelihood, y, output_map
        self.weights, self.offset, self.l2 = weights, offset, l2
        sums = sums if weights is None and offset is None else None
        self._rows = TargetRows(design, likelihood, y, output_map.n_outputs, weights, sums)
        self.ridge = Ridge.of(output_map, design.scale, l2, likelihood.differences_only)
        self.curvature_dtype = self._kept_dtype = torch.float64
        self.total_weight = self._total_weight()

    def _total_weight(self) -> float:
        own = self.likelihood.weight(self.y)
        if own is None:
            return float(self.n_rows) if self.weights is None else float(self.weights.sum())
        return float(own.sum() if self.weights is None else (own * self.weights).sum())

    @property
    def n_rows(self) -> int:
        """Number of rows, N."""
        return self.design.n_rows

    @property
    def n_outputs(self) -> int:
        """Number of outputs, C."""
        return self.output_map.n_outputs

    @property
    def n_parameters(self) -> int:
        """Number of parameters, P."""
        return self.output_map.n_parameters

    @cached_property
    def cost(self) -> Cost:
        """What an evaluation and a dense Hessian cost."""
        given = self.output_map, self.n_rows, self.likelihood, self.curvature_dtype
        return Cost.of(*given, in_place=self.is_in_place, nonzeros=self.nonzeros, one_call=self.has_compiled_steps)

    @property
    def has_compiled_steps(self) -> bool:
        """Whether a step of L-BFGS is one compiled call."""
        table = self._table
        return (
            self.offset is None and table is not None and not table.is_large and has_compiled_steps(self.n_parameters)
        )

    @property
    def _table(self) -> Table | None:
        return None if self.likelihood.partition is None else self._rows.table

    @property
    def is_in_place(self) -> bool:
        """Whether compiled code evaluates the dense table as it was given, in one pass."""
        table = self._table
        return table is not None and table.in_place and table.starts is None

    @property
    def nonzeros(self) -> int | None:
        """Nonzeros of a sparse table whose fits compiled code makes; None of others."""
        table = self._table
        return None if table is None or table.starts is None or table.is_large else len(table.x)

    # passes over the data ----------------------------------------------------------------------------------------

    def _predictions(self, theta: Tensor, design: Design | None = None) -> Iterator[tuple[Block, Tensor]]:
        """Yield each block of rows with its outputs ``(C, rows)``, offset included."""
        products, constants = self.output_map.to_products(theta)
        for block in (design or self.design).blocks(self.n_outputs):
            products = block.arrange(products)
            f = self.output_map.outputs(block.predict(products), constants)
            yield block, f if self.offset is None else f + self.offset[block.rows].mT.to(f.dtype)

    def _weights_of(self, block: Block, dtype: torch.dtype = torch.float64) -> Tensor | None:
        return None if self.weights is None else self.weights[block.rows].to(dtype)

    def adjoint(self, r: Tensor) -> Tensor:
        """Return the sums over rows of numbers ``(C, N)`` times the features, ``(C, D')``."""
        table = self._rows.table
        return self.design.adjoint(r) if table is None else adjoint(table, None, r)

    @property
    def means(self) -> Tensor:
        """Means of the features over the rows, ``(D',)``."""
        return self._rows.means

    def predictors(self, theta: Tensor) -> Tensor:
        """Return the outputs of all rows, ``(C, N)``, offset included."""
        return torch.cat([f for _, f in self._predictions(theta)], 1)

    def largest_move(self, step: Tensor, *, in_units: bool = False) -> float:
        """Return the largest change that a step in the parameters makes to an output, in its units if asked."""
        still = copy.copy(self)
        still.offset = None
        units = self._output_units if in_units else None
        size = 1.0 if units is None else units[:, None]
        return max(float((f / size).abs().max()) for _, f in still._predictions(step))

    def moves_more(self, step: Tensor, limit: float) -> bool:
        """Return whether a step in the parameters changes an output, in its units, by more than a limit."""
        return self.may_move_more(step, limit) and self.largest_move(step, in_units=True) > limit

    def may_move_more(self, step: Tensor, limit: float) -> bool:
        """Return whether it may: columns have a mean square of one, so that no entry is above sqrt(N). No pass."""
        products, constants = self.output_map.to_products(step)
        ones, units = int(self.output_map.intercept), self._output_units
        most = products[:, ones:].abs().sum(1) * math.sqrt(self.n_rows) + products[:, :ones].abs().sum(1)
        if constants is not None or units is not None or self.output_map.selected is None:
            most = self.output_map.basis.abs() @ most + (0.0 if constants is None else constants[:, 0].abs())
            most = most if units is None else most / units
        return not bool((most <= limit).all())

    @cached_property
    def _output_units(self) -> Tensor | None:
        return output_units(self.likelihood, self.y, self.weights, self.n_outputs)

    def has_constant_outputs(self, theta: Tensor) -> bool:
        """Return whether all rows have the same outputs, by intercepts alone."""
        return self.offset is None and self.output_map.intercept and not self.output_map.has_slopes(theta)

    def value(self, theta: Tensor) -> float:
        """Return the objective at ``theta``."""
        return self.evaluate(theta, None).value

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective and its gradient ``(P,)`` at ``theta``."""
        at = self.evaluate(theta, None)
        return at.value, at.gradient

    def hessian(self, theta: Tensor, kind: Kind = "observed") -> LinearHessian:
        """Return the Hessian ``(P, P)`` at ``theta``, observed or expected, as an operator that is not formed."""
        return self._hessian(lambda: self._recomputed(theta, kind))

    def evaluate(self, theta: Tensor, hessian: Kind | None = "observed") -> Evaluation:
        """Return value, gradient and, unless None is asked for, the Hessian at ``theta``, in one pass over the data."""
        # where the Hessian depends on the targets, compiled code has the observed one
        compiled = self.compiled if hessian != "expected" or self.likelihood.partition is not None else None
        if compiled is not None and not (compiled.table.is_large and theta.dtype == torch.float32):
            whole = hessian is not None and compiled.table.has_products(self.n_outputs)
            at = compiled.at(theta.double().contiguous(), self._kept_dtype if whole else None)
            make = None if hessian is None else functools.partial(self._later_hessian, theta, hessian, at.p)
            return Evaluation(at.value, at.gradient, at.norm, make)
        cached = hessian is not None and self._caches_output_hessians()
        value, gradient, parts = self._sums(theta, hessian if cached else None)
        if self.l2:
            slope = self.ridge.mv(theta)
            value, gradient = value + 0.5 * float(slope @ theta), gradient.add_(slope)
        norm = self.gradient_norm(gradient)
        if hessian is None:
            return Evaluation(value, gradient, norm, None)
        of_parts = (lambda: iter(parts)) if cached else functools.partial(self._recomputed, theta, hessian)
        return Evaluation(value, gradient, norm, functools.partial(self._hessian, of_parts))

    def evaluate_constant(self, theta: Tensor) -> Evaluation | None:
        """Return value and gradient where outputs are the same in all rows, without a pass over the data of its own.

        Columns sum to zero, so that of their gradient the targets' linear term is all there is, or they are those of a
        sparse table, whose means are known. None where that is not so: outputs that differ, weights, other columns that
        are not centered, likelihoods without such a term.
        """
        here, likelihood, is_sparse = self.output_map, self.likelihood, isinstance(self.design, SparseDesign)
        if self.weights is not None or not (self.design.is_centered or is_sparse) or not here.is_uniform:
            return None
        if not self.has_constant_outputs(theta) or self._linear_term is None:
            return None
        own = likelihood.weight(self.y)
        if own is not None and not bool((own.numpy() == 1.0).all()):
            return None
        linear, constant = self._linear_term
        at = likelihood.log_partition(here.outputs(theta.view(here.shapes[0])[:, :1], None).mT, hessian=False)
        # NumPy's calls take a third of the time of PyTorch's
        gradient = -linear.numpy()
        change, columns = here.reduce(at.gradient.mT).numpy(), gradient.reshape(here.shapes[0])
        part, means = (slice(None), self.means.numpy()) if is_sparse else (slice(1), 1.0)
        columns[:, part] += change * means
        # PyTorch's product: NumPy's would wake threads of its own, which fight with PyTorch's
        value = float(at.nll) - float(torch.dot(linear, theta)) - constant
        return Evaluation(value, torch.from_numpy(gradient), self.gradient_norm(torch.from_numpy(gradient)), None)

    def _sums(self, theta: Tensor, hessian: Kind | None) -> tuple[float, Tensor, list[Part]]:
        """Return the average loss, its gradient and the output Hessians, without the penalty."""
        value, parts, linear = 0.0, list[Part](), self._linear_term
        linear = None if linear is None else (linear[0].to(theta.dtype), linear[1])
        total: Tensor | None = None
        sums = theta.new_zeros(self.n_outputs) if self.output_map.has_constants else None
        own = self.design if hessian is None else self._curvature_design
        curvature = None if own is self.design else own.blocks(self.n_outputs)
        for block, f in self._predictions(theta, None if theta.dtype == self.design.dtype else self._curvature_design):
            at = self._derivatives(f, block.rows, hessian)
            weights = self._weights_of(block, f.dtype)
            value += float(at.nll.sum() if weights is None else weights @ at.nll)
            g = times(at.gradient.mT, weights)
            part = block.adjoint(self.output_map.reduce(g))
            total = part if total is None else total.add_(part)
            if sums is not None:
                sums += g.sum(1)
            if at.hessian is not None:
                same = block if curvature is None else next(curvature)
                narrow = self.curvature_dtype != f.dtype
                parts.append((same, narrowed(at.hessian, self.curvature_dtype) if narrow else at.hessian, weights))
        assert total is not None
        gradient = self.output_map.from_products(total, sums).div_(self.total_weight)
        value /= self.total_weight
        if linear is not None:
            gradient -= linear[0]
            value -= float(linear[0] @ theta) + linear[1]
        return value, gradient, parts

    def _caches_output_hessians(self) -> bool:
        return self.n_rows * self.n_outputs * self.curvature_dtype.itemsize <= _CACHED_BYTES

    @cached_property
    def _curvature_design(self) -> Design:
        return self.design if self.curvature_dtype == self.design.dtype else self.design.astype(self.curvature_dtype)

    def _recomputed(self, theta: Tensor, kind: Kind) -> Iterator[Part]:
        for block, f in self._predictions(theta.to(self.curvature_dtype), self._curvature_design):
            if self._linear_term is not None:
                made = self._derivatives(f, block.rows, kind).hessian
            else:
                make = self.likelihood.hessian if kind == "observed" else self.likelihood.fisher
                made = make(f.mT, self.y[block.rows])
            assert made is not None
            yield block, made, self._weights_of(block)

    def _hessian(self, parts: Callable[[], Iterator[Part]], compiled: CompiledHessian | None = None) -> LinearHessian:
        ridge = self.ridge if self.l2 else None
        return LinearHessian(parts, self.output_map, self.total_weight, ridge, self.curvature_dtype, compiled)

    def _later_hessian(self, theta: Tensor, kind: Kind, p: Tensor | None) -> LinearHessian:
        """Return the Hessian at a point that compiled code evaluated, from what that kept of it, if anything."""
        parts = functools.partial(self._recomputed, theta, kind)
        if p is None or self.compiled is None:
            kept = functools.cache(lambda: list(parts())) if self._caches_output_hessians() else parts
            return self._hessian(lambda: iter(kept()))
        return self._hessian(parts, CompiledHessian(self.compiled, p))

    # exponential families ----------------------------------------------------------------------------------------

    def _derivatives(self, f: Tensor, rows: slice, kind: Kind | None) -> Derivatives:
        if self._linear_term is not None:
            return self.likelihood.log_partition(f.mT, hessian=kind is not None)
        return self.likelihood.derivatives(f.mT, self.y[rows], kind)

    @cached_property
    def _linear_term(self) -> tuple[Tensor, float] | None:
        """The targets' part in an exponential family, ``(P,)``, and the offset's; None for other likelihoods."""
        return target_term(self._rows, self.output_map, self.offset, self.total_weight)

    @cached_property
    def compiled(self) -> CompiledFamily | None:
        """The same objective in compiled code, where that knows the likelihood and is the faster one."""
        here, partition = self.output_map, self.likelihood.partition
        if not here.is_uniform or here.selected is None or self.offset is not None or self._rows.table is None:
            return None
        left_out, weights = self.n_outputs - here.basis.shape[1], self.weights
        exponential = partition in (None, "exponential")
        if left_out > (partition == "softmax") or (partition != "softmax" and self.n_outputs > 1):
            return None
        if partition is not None:
            linear = None if self._linear_term is None else self._linear_term[0].view(here.shapes[0])
        else:
            linear, weights = negative_term(self.likelihood, self.y, self._rows.table, weights, self.total_weight)
        if linear is None:
            return None
        return CompiledFamily(
            self._rows.table,
            None if weights is None else weights.double().contiguous(),
            linear,
            bool(left_out) or partition == "logistic",
            self.ridge.own_and_shared,
            self.ridge.columns,
            self.likelihood.partition_multiple / self.total_weight,
            exponential,
            self.gradient_norm.columns,
            negative=partition is None,
        )

    def output_gradients(self, theta: Tensor) -> Iterator[tuple[Block, Tensor, Tensor | None]]:
        """Yield each block with the gradients in its outputs, unweighted, ``(C, rows)``, and its weights."""
        for block, f in self._predictions(theta):
            yield block, self.likelihood.gradient(f.mT, self.y[block.rows]).mT, self._weights_of(block)

    # the table's units -------------------------------------------------------------------------------------------

    def to_table(self, theta: Tensor) -> Tensor:
        """Turn parameters ``(..., P)`` into those of the table's columns."""
        return self.output_map.to_table(theta, self.design.center, self.design.scale)

    def table_gradient(self, gradient: Tensor) -> Tensor:
        """Turn a gradient ``(..., P)`` into one in the parameters of the table's columns."""
        return self.output_map.gradient_to_table(gradient, self.design.center, self.design.scale)

    @cached_property
    def gradient_norm(self) -> GradientNorm:
        """The largest entry of a gradient in the units of table and outputs, less what rounding explains."""
        units = gradient_units(self.likelihood, self.y, self.weights, self.n_outputs, self._output_units)
        units = None if units is None else parameter_units(units, self.output_map)
        return GradientNorm(self.design, self.output_map, units)

    # parts and other forms ---------------------------------------------------------------------------------------

    def on(self, design: Design, output_map: OutputMap, likelihood: Likelihood | None = None) -> LinearObjective:
        """Return the objective of the same rows with other columns, perhaps with another likelihood."""
        likelihood, given = likelihood or self.likelihood, {"weights": self.weights, "offset": self.offset}
        return LinearObjective(design, likelihood, self.y, output_map, **given, l2=self.l2, sums=None)

    def _changed(self, forget: tuple[str, ...], **attributes: object) -> LinearObjective:
        """Return a copy with other attributes, without what was worked out from those changed."""
        other = copy.copy(self)
        for name in (*forget, "_reduced", "cost"):
            other.__dict__.pop(name, None)
        other.__dict__.update(attributes)
        if "design" in attributes:
            given = other.design, other.likelihood, other.y, other.n_outputs, other.weights
            other._rows = TargetRows(*given, None if "y" in attributes else self._rows.known)
        return other

    @property
    def reduced(self) -> LinearObjective:
        """The same objective of the same parameters with as few outputs as do: two classes as one logit."""
        return self._reduced or self

    @cached_property
    def _reduced(self) -> LinearObjective | None:
        # None for the same: an objective that held itself would keep its table until the garbage collector comes
        here, offset = self.output_map, self.offset
        two = self.n_outputs == 2 and here.is_uniform and here.selected is not None and here.basis.shape[1] == 1
        likelihood = self.likelihood.of_difference() if two and self.y.ndim == 1 else None
        if likelihood is None:
            return None
        first, sums = int(here.basis[:, 0].argmax()), self._rows.known
        return LinearObjective(
            self.design,
            likelihood,
            (self.y == first).double()[:, None],
            OutputMap.own(1, here.n_columns, here.intercept),
            weights=self.weights,
            offset=None if offset is None else offset[:, [first]] - offset[:, [1 - first]],
            l2=self.l2 / 2.0,  # sum-to-zero coefficients b / 2 and -b / 2 have the squared norm b^2 / 2
            sums=None if sums is None else TargetSums(sums.columns[first : first + 1], sums.ones[first : first + 1]),
        )

    def take(self, index: Tensor) -> LinearObjective:
        """Return the objective on some of the rows; over random subsets of one size its mean is the objective."""
        return self._changed(
            ("_linear_term", "compiled", "_curvature_design"),
            design=self.design.take(index),
            y=self.y[index],
            weights=None if self.weights is None else self.weights[index],
            offset=None if self.offset is None else self.offset[index],
            total_weight=self.total_weight * index.shape[0] / self.n_rows,
        )

    def once(self) -> LinearObjective:
        """Return the same objective for a single evaluation, which sums no targets before it."""
        free = self._rows.known is not None or "_linear_term" in self.__dict__
        return self if free or self.n_outputs == 1 else self._changed(("compiled",), _linear_term=None)

    def without_copy(self) -> LinearObjective:
        """Return the same objective that caches no standardized copy of the table where it can do without."""
        return self._changed(("_curvature_design",), design=self.design.without_copy())

    def with_map(self, output_map: OutputMap, *, summing_to_zero: bool = False) -> LinearObjective:
        """Return the same objective in the parameters of another map; the penalty takes no mean off if that is zero."""
        ridge = Ridge(output_map, self.ridge.columns, self.ridge.centered and not summing_to_zero)
        same = self.output_map.is_uniform and output_map.is_uniform and self.gradient_norm.is_by_column
        forget = ("_linear_term", "compiled") if same else ("_linear_term", "compiled", "gradient_norm")
        return self._changed(forget, output_map=output_map, ridge=ridge)

    def with_curvature(self, dtype: torch.dtype, *, products: bool = False) -> LinearObjective:
        """Return the same objective with Hessians of another element type; only those of uniform maps can have it.

        Where ``products`` are all that is wanted, probabilities are kept so, too: few digits of 1 - p for p near 1.
        """
        kept = dtype if products else torch.float64
        if not self.output_map.is_uniform or dtype == self.curvature_dtype:
            return self
        return self._changed(("_curvature_design",), curvature_dtype=dtype, _kept_dtype=kept, compiled=self.compiled)
