"""How many gradients a fit tries before a Hessian, its products or the span of the rows: what these would cost."""

from __future__ import annotations

import math

import torch

from raphson.data import DenseDesign, Design
from raphson.estimators.fit._edge import bounds
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.fit._solver import FEW_ITERATIONS, PRECISE, goes_by_products, has_stages
from raphson.linear import LinearObjective, block_jacobi_cost

TOLD = 0.35
"""Columns for each row from which residuals are told by the columns, so that the length of the first step is known.

Evaluations until then and since: 300 x 2000, four classes, 10 and 1; 1000 x 1200, five, 14 and 3; 500 x 1000, three, 12
and 5; 200 x 5000 and l2 = 1, 22 and 11. Without many columns as many as before: 1600 x 256, ten, 16 and 16; 5000 x 300,
noisy, 9 and 10."""

_ENTRIES, _COLUMNS = 7 * 10**4, 60
"""Entries or columns from which gradients are tried before dense Hessians: fewer cost little beside the calls.

Six fits (three penalties, separable and noisy) with them tried take, beside those without, two classes: 1000 x 50 1.04
of the time, 1900 x 50 0.75, 500 x 100 0.86, 500 x 150 0.54; three: 500 x 60 0.84, 900 x 100 0.47."""

_OUTPUTS = 8
"""Columns for each output from which columns are many: with fewer, blocks of the Hessian cost little."""

_PRODUCTS = 60.0
"""Hessian products that a fit by them takes, about: gradients for the price of as many are tried first.

500 x 300, two classes: 70 gradients in 13.6 ms, products 15.9. Blocks that precondition them count, too: 5000 x 2000,
three, noisy, takes 79 gradients in 0.46 s, 1.1 with blocks of 2000 columns."""

_WITH_BLOCKS = 30.0
"""The same where columns are few for the outputs: blocks then precondition well, and gradients give up sooner."""

_CHEAP_BLOCKS, _SHORT = 2.0, 2.5e5
"""Products that blocks must cost for gradients to be tried first, and nanoseconds of an evaluation below which they are
at weak penalties, too, where they are one compiled call: around products there is more. Five columns, 50 classes, l2 =
1e-6: 60 rows 6.6 ms and 3.6, 500 5.8 and 3.9, 5000 separable, sparse, 15 and 28."""

_LONG = 2e5
"""Nanoseconds of an evaluation from which gradients are not tried for weak penalties where columns depend on each
other: letter, which gives them up, 76 ms with them and 69 without, digits 23 and 20; below, cardiotocography 5.2 and
7.4. Tables of 50 columns, l2 = 1e-6, that are apart: 5000 rows, 50 classes, noisy, 33 and 49, 500 rows 25 and 36;
sparse ones: 50000 rows, ten classes, 62 and 141, 51 and 142."""

_DEAR_BLOCKS = 60.0
"""Products from which blocks are so dear that gradients are tried first at weak penalties, too: 5000 x 300, 50 classes,
separable, l2 = 1e-6, 202 products: dense 260 ms, 380 by products, sparse 170, 580. Digits, 10, stay with products."""

STRONG, _QUICK = 1e-4, 1e5
"""Penalty from which gradients are tried so, and nanoseconds of an evaluation below which they are whatever it is.
Where the length of the first step is known they are as well: weak penalties leave little to do there. 500 x 300, 50
classes, l2 = 1e-6: 12 steps in 20 ms, 46 by Hessian products.

5000 x 50, ten classes, l2 = 1e-3: 14 ms beside 17; digits, l2 = 1e-5, given up after eight steps: 26 beside 23."""

_TWICE = 2.0
"""Times the cost of a fit in the span of the rows that gradients may take: to give up loses what was spent on them.

200 x 5000, two classes, noisy, l2 = 1: 13 steps in 7.7 ms, 17.8 where it gave up after five; 60 x 7000: 7.7 and 8.1."""

_FACTORS, _STEPS = 2.0, 8.0
"""Factorizations and evaluations that a fit with dense Hessians takes, about."""

_PRODUCT_CALLS, _NEWTON_CALLS = 6e4, 1e5
"""Nanoseconds of the calls around a Hessian product and around a Newton step, where steps by gradients are one compiled
call: 60 x 50, ten classes, noisy, sparse, l2 = 1e-3, 70 gradients in 3.2 ms, 5.2 by products after eight; 500 x 50,
three, 14 to 47 gradients in 2.0 to 2.5 ms, Newton steps 2.8 to 3.8."""

_PATIENCE = 12.0
"""Evaluations that the other way must cost for a few gradients to be tried first."""


_APART = 1.5
"""Mean square eigenvalue of the columns' correlations up to which they are nearly uncorrelated, so that gradients end
most fits within 30 steps. The tables of the benchmark: 2 to 13, those of normal columns 1."""

_APART_COLUMNS = (32, 200)
"""Columns for which that is looked at: Hessians of fewer cost little, and with more gradients are tried anyway."""

_APART_ROWS = 128
"""Rows of which it is: to a tenth for normal columns, in 30 us for 50 of them."""

_DEAR = 2.5e5
"""Nanoseconds of an evaluation from which easy fits try gradients before dense Hessians: less is lost among calls.

Times with gradients first and without: 60 x 50, three classes, 0.55 to 0.96, 500 x 50, two, 0.72 to 0.85; 5000 x 50,
three, 1.2 to 1.34, and ten, 1.3 to 1.5, both separable."""

_ROWS = 4.0
"""Rows for each coefficient from which a weak penalty makes no hard fit of columns that are apart: fewer are nearly
separable. 2000 x 64, 100 classes, l2 = 1e-5: 24 % longer with gradients tried."""

_EASY = 30.0
"""Gradients that an easy fit may promise to take after eight steps: fits that promised 24 took 36 and fewer, those that
promised 28 to 37 took 50 to more than 200."""


def gradients_to_try(objective: LinearObjective, options: FitOptions, by_rows: float = math.inf) -> float:
    """Return how many gradients to try before a Hessian or the span of the rows: about what these cost; 0 for none."""
    if options.solver != "auto" or options.jeffreys or options.tol <= PRECISE:
        return 0.0
    likelihood = objective.likelihood
    if not objective.output_map.is_uniform or options.max_iter < FEW_ITERATIONS or not likelihood.concave:
        return 0.0
    if bounds(likelihood, objective.n_outputs) is not None:
        return 0.0
    if goes_by_products(objective):
        dear, found = True, _before_products(objective, by_rows)
    else:
        dear, found = objective.reduced.cost.evaluation >= _DEAR, _before_hessians(objective)
    return _EASY if found < _EASY and dear and _is_easy(objective) else found


def _has_few_outputs(objective: LinearObjective) -> bool:
    """Return whether columns are many for the outputs, and rows are."""
    here = objective.output_map
    return here.basis.shape[1] * _OUTPUTS <= min(objective.n_rows, here.n_columns)


def _before_products(objective: LinearObjective, by_rows: float) -> float:
    """Return how many gradients cost as much as a fit by Hessian products, or in the span of the rows."""
    reduced, l2, few = objective.reduced, objective.l2, _has_few_outputs(objective)
    cost, one_call, blocks = reduced.cost, reduced.has_compiled_steps, block_jacobi_cost(objective)
    if few:
        by_products = (_PRODUCTS + blocks) * (cost.product + one_call * _PRODUCT_CALLS)
        found = max(by_products / (cost.step if one_call else cost.evaluation), _PRODUCTS)
        return min(_TWICE * by_rows / cost.step, found)
    weak = objective.output_map.n_columns <= TOLD * objective.n_rows and l2 < STRONG and cost.evaluation > _QUICK
    quick = one_call and (l2 >= STRONG or cost.evaluation < _SHORT)
    cheap = blocks < _CHEAP_BLOCKS and by_rows == math.inf and not quick
    if cheap or (weak and blocks < _DEAR_BLOCKS and not (one_call and _may_end(objective))):
        return 0.0
    found = (_WITH_BLOCKS + blocks) * (cost.product + one_call * _PRODUCT_CALLS) / cost.step
    return min(_TWICE * by_rows / cost.step, min(found, _PRODUCTS) if one_call and l2 < STRONG else found)


def _may_end(objective: LinearObjective) -> bool:
    """Return whether gradients may end a fit with a weak penalty: they cost little, or columns may be apart."""
    return objective.reduced.cost.evaluation < _LONG or not _are_joined(objective)


def _are_joined(objective: LinearObjective) -> bool:
    """Return whether columns of a dense table depend on each other."""
    design = objective.design
    return isinstance(design, DenseDesign) and mean_square_eigenvalue(design) > _APART


def _before_hessians(objective: LinearObjective) -> float:
    """Return how many gradients cost as much as a fit with dense Hessians."""
    cost, d = objective.reduced.cost, objective.output_map.n_columns
    if not _has_few_outputs(objective) or has_stages(objective):
        return 0.0
    small = not cost.dense_in_evaluations  # of such Hessians only calls cost, and gradients of columns that are apart
    if objective.reduced.has_compiled_steps and not (small and (d < _APART_COLUMNS[0] or _are_joined(objective))):
        return (_FACTORS * cost.dense + _STEPS * (cost.evaluation + _NEWTON_CALLS)) / cost.step
    if objective.n_rows * d < _ENTRIES and d < _COLUMNS:
        return 0.0
    found = min(_FACTORS * cost.dense_in_evaluations + _STEPS, _PRODUCTS)
    return found if found >= _PATIENCE else 0.0


def _is_easy(objective: LinearObjective) -> bool:
    """Return whether the Hessian is nearly a multiple of the identity: by its penalty, or by columns that are apart."""
    if objective.likelihood.partition not in ("softmax", "logistic"):
        return False
    k, d, (least, most) = max(2, objective.n_outputs), objective.design.n_columns, _APART_COLUMNS
    if (1.0 - 1.0 / k) / k * d <= objective.l2:
        return True
    if objective.l2 < STRONG and objective.n_rows < _ROWS * objective.n_parameters:
        return False
    return least <= d <= most and mean_square_eigenvalue(objective.design) <= _APART


def mean_square_eigenvalue(design: Design) -> float:
    r"""Return about the mean square eigenvalue of the correlations R ``(D, D)`` of dense columns, by some rows.

    .. math:: \tfrac1D \|R\|_F^2 \approx \tfrac1D \left\|\tfrac1m Z^T Z\right\|_F^2 - \tfrac Dm

    of m standardized rows Z; the last term is what sampling adds. Columns without correlations have 1.
    """
    if not isinstance(design, DenseDesign):
        return math.inf
    n, d = map(int, design.x.shape)
    rows = design.x[:: max(1, n // _APART_ROWS)][:_APART_ROWS].double()
    z = (rows - design.center).div_(design.scale)
    m = int(z.shape[0])
    size = float(torch.linalg.vector_norm(z @ z.mT if m < d else z.mT @ z))
    return size * size / (d * m * m) - d / m
