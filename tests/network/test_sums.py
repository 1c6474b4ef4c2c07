"""Sums over positions of gradients and products, compiled and not, against plain sums."""

import pytest
import torch

from raphson.network.layers import _sums
from raphson.network.layers._sums import position_sums
from tests.instruction_sets import each_way

how = each_way(_sums, "_position_sums")


def check(g, z):
    products, plain = position_sums(g, z)
    g, z = g.double(), z.double()
    scale = float((g * z).abs().sum(2).max()) + float(g.abs().sum(2).max()) if g.numel() else 1.0
    tolerance = {"rtol": 0.0, "atol": scale * (1e-15 if products.dtype == torch.float64 else 5e-7)}
    torch.testing.assert_close(products.double(), (g * z).sum(2), **tolerance)
    torch.testing.assert_close(plain.double(), g.sum(2), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positions", [0, 1, 7, 255, 256, 700])
@pytest.mark.parametrize("channels", [1, 2, 5, 16, 39, 70])
def test_any_size(dtype, positions, channels):
    generator = torch.Generator().manual_seed(channels)
    g = torch.randn(2, 3, positions, channels, generator=generator, dtype=dtype)
    z = torch.randn(3, positions, channels, generator=generator, dtype=dtype) + 1
    check(g, z)
    # positions next to each other in memory, in one of the two or both
    check(g.mT.contiguous().mT, z)
    check(g, z.mT.contiguous().mT)
    check(g.mT.contiguous().mT, z.mT.contiguous().mT)


@pytest.mark.parametrize("threads", [1, 3])
def test_views_in_any_strides(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(0)
        g = torch.randn(9, 40, 33, 60, generator=generator)
        z = torch.randn(40, 33, 60, generator=generator)
        check(g, z)
        check(g[::2, 1::3, 3:, ::2], z[1::3, 3:, ::2])
        check(g.permute(2, 1, 0, 3)[:5], z.permute(0, 1, 2)[:, :9])
        check(g.expand(9, 40, 33, 60)[:, :, :1].expand(-1, -1, 33, -1), z)
    finally:
        torch.set_num_threads(before)
