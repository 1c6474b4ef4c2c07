"""Whether a step moves an output by more than a limit is seen without a pass where it can be, and is never wrong."""

from __future__ import annotations

import pytest
import torch

from raphson.data import DenseDesign
from raphson.likelihoods import Beta, HeteroscedasticGaussian, Likelihood, Ordinal
from raphson.linalg import Dense
from raphson.linear import LinearObjective, OutputMap
from raphson.linear._gram import constant_sum, dense_sum, map_pairs

DTYPE = torch.float64
CASES = [(HeteroscedasticGaussian(), 1e5), (Beta(), 1.0), (Ordinal(3), 1.0)]


def _objective(likelihood: Likelihood, size: float) -> LinearObjective:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, dtype=DTYPE, generator=generator)
    y = size * torch.rand(60, 1, dtype=DTYPE, generator=generator).clamp(0.01, 0.99)
    y = (3 * y[:, 0]).floor() if isinstance(likelihood, Ordinal) else y
    ones, slopes = likelihood.default_columns(2)
    return LinearObjective(DenseDesign(x, standardize=True), likelihood, y, OutputMap.of_columns(ones, [slopes] * 3))


@pytest.mark.parametrize(("likelihood", "size"), CASES, ids=["units", "constants", "shared slopes"])
def test_a_limit_is_passed_exactly_where_the_largest_move_passes_it(likelihood: Likelihood, size: float) -> None:
    objective = _objective(likelihood, size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        step = torch.randn(objective.n_parameters, dtype=DTYPE, generator=generator)
        largest = objective.largest_move(step, in_units=True)
        for factor in (1e-3, 0.999, 1.001, 30.0):
            assert objective.moves_more(step, factor * largest) == (factor < 1)


@pytest.mark.parametrize(("likelihood", "size"), CASES, ids=["units", "constants", "shared slopes"])
def test_one_matrix_for_all_rows_is_summed_as_rows_of_it_are(likelihood: Likelihood, size: float) -> None:
    objective = _objective(likelihood, size)
    here, blocks = objective.output_map, list(objective.design.blocks(2))
    weights = torch.rand(60, dtype=DTYPE, generator=torch.Generator().manual_seed(2))
    matrix = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=DTYPE)
    rows = map_pairs(here, Dense(matrix.expand(60, 2, 2)))
    expected = dense_sum(here, [(block, rows, weights) for block in blocks], DTYPE)
    found = constant_sum(here, [(block, weights) for block in blocks], matrix, DTYPE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
