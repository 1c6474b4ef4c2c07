"""Sums of outer products in tiles against plain products."""

import pytest
import torch

from raphson.network.curvature.factors._syrk import Syrk

BY_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.mark.parametrize("d", [70, 255, 513, 1301])
@pytest.mark.parametrize("rows", [[(3000, 1), (40, 1)], [(40, 1), (3000, 1)], [(2, 2000), (700, 1), (3, 1)]])
def test_squares_by_onednn_and_tiles_add_up(d, rows, longer_vectors):
    generator = torch.Generator().manual_seed(d)
    syrk, expected, size = Syrk(1, d, torch.empty(0), border=1), 0.0, 0.0
    for b, length in rows:
        x = torch.randn(b, 1, d, length, generator=generator)
        syrk.add(x)
        expected = expected + torch.einsum("bgdl,bgel->gde", x.double(), x.double())
        size = size + torch.einsum("bgdl,bgel->gde", x.double().abs(), x.double().abs())
    assert longer_vectors
    found = syrk.total()[:, :d, :d].double()
    assert float(((found - expected) / size).abs().max()) < 1e-5
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-5 * float(size.max()))


@BY_ONEDNN
@pytest.mark.parametrize("d", [1, 16, 40])
def test_images_with_channels_last_in_single_precision(d):
    x = torch.randn(30, 100, 1, d, generator=torch.Generator().manual_seed(d)).permute(0, 2, 3, 1)
    syrk = Syrk(1, d, x)
    syrk.add(x)
    syrk.add(x[:3])
    expected = sum(torch.einsum("bgdl,bgel->gde", y, y) for y in (x.double(), x[:3].double()))
    torch.testing.assert_close(syrk.total().double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("d", [1, 5, 129, 258, 517, 1101])
@pytest.mark.parametrize("rows", [[(4, 1)], [(3, 7), (700, 1), (2000, 1)], [(2, 600), (1, 1)], [(1, 900), (5, 3)]])
@pytest.mark.parametrize("last", [False, True])
def test_sums_of_any_batches(groups, d, rows, last):
    generator = torch.Generator().manual_seed(d)
    syrk, expected = Syrk(groups, d, torch.empty(0, dtype=torch.float64), border=2), 0.0
    for b, length in rows:
        shape = (b, length, groups, d) if last else (b, groups, d, length)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = x.permute(0, 2, 3, 1) if last else x
        syrk.add(x)
        expected = expected + torch.einsum("bgdl,bgel->gde", x, x)
    total = syrk.total()
    assert total.shape == (groups, d + 2, d + 2)
    torch.testing.assert_close(total[:, :d, :d], expected, rtol=1e-12, atol=1e-10)


def test_nothing_added_is_zero():
    assert not Syrk(2, 3, torch.empty(0)).total().any()
    syrk = Syrk(1, 3, torch.empty(0))
    syrk.add(torch.empty(0, 1, 3, 1))
    assert not syrk.total().any()


@pytest.mark.parametrize("threads", [1, 3])
def test_views_in_any_strides_in_single_precision(threads):
    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = torch.randn(9, 2, 131, 40, generator=generator)
        for x in (
            whole[::2, :, 3:120:2, 1:],
            whole.mT[:, 1:, 2:, ::3],
            whole[:1].expand(6, -1, -1, -1),
            whole[:, :, :, :1],
        ):
            syrk = Syrk(x.shape[1], x.shape[2], x)
            syrk.add(x)
            syrk.add(x)
            expected = 2 * torch.einsum("bgdl,bgel->gde", x.double(), x.double())
            # each sum against the size of its terms
            size = torch.einsum("bgdl,bgel->gde", x.abs(), x.abs())
            assert float(((syrk.total() - expected) / size).abs().max()) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_many_rows():
    x = torch.randn(30000, 1, 70, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    syrk = Syrk(1, 70, x)
    syrk.add(x)
    torch.testing.assert_close(syrk.total()[0], x[:, 0, :, 0].mT @ x[:, 0, :, 0], rtol=1e-11, atol=1e-9)
