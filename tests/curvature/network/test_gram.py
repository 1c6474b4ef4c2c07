"""Sums of outer products in tiles against plain products."""

import pytest
import torch

from raphson.curvature.network._gram import Gram


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("d", [1, 5, 129, 258, 517])
@pytest.mark.parametrize("rows", [[(4, 1)], [(3, 7), (700, 1), (2000, 1)], [(2, 600), (1, 1)], [(1, 900), (5, 3)]])
@pytest.mark.parametrize("last", [False, True])
def test_sums_of_any_batches(groups, d, rows, last):
    generator = torch.Generator().manual_seed(d)
    gram, expected = Gram(groups, d, torch.empty(0, dtype=torch.float64), border=2), 0.0
    for b, length in rows:
        shape = (b, length, groups, d) if last else (b, groups, d, length)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = x.permute(0, 2, 3, 1) if last else x
        gram.add(x)
        expected = expected + torch.einsum("bgdl,bgel->gde", x, x)
    total = gram.total()
    assert total.shape == (groups, d + 2, d + 2)
    torch.testing.assert_close(total[:, :d, :d], expected, rtol=1e-12, atol=1e-10)


def test_nothing_added_is_zero():
    assert not Gram(2, 3, torch.empty(0)).total().any()
