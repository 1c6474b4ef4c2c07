"""Sums of outer products of patches by shifts of the images, against those of the patches."""

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.network.curvature.factors._patch_syrk import PatchSyrk
from raphson.network.layers._convolution import Convolution
from raphson.network.layers._parameter_view import ParameterView

TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-4}}


def call_of(x, kernel, padding, dilation):
    """Return a convolution of images as it would have been recorded."""
    convolution = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(kernel) - 1]
    weight = torch.zeros(1, x.shape[1], *kernel, dtype=x.dtype)
    shape = convolution(x, weight, padding=padding, dilation=dilation).shape
    options = {"stride": 1, "padding": padding, "dilation": dilation}
    view = ParameterView("weight", 0, tuple(weight.shape), weight.stride())
    return Convolution(view, None, x, 0, None, shape, len(kernel) + 1, options=options, groups=1, transposed=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2, "same", "valid"])
@pytest.mark.parametrize("kernel", [(1,), (2,), (5,), (3, 3), (1, 3), (2, 4), (3, 1, 2)])
def test_any_kernel(kernel, padding, dilation, last, dtype):
    """In single precision oneDNN makes all shifts at once, where PyTorch has it."""
    n = len(kernel)
    x = torch.randn(5, 2, *(9, 8, 7)[:n], generator=torch.Generator().manual_seed(n), dtype=dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    call = call_of(x, kernel, padding, dilation)
    reach = [dilation * (k - 1) for k in kernel]
    if any(max(pair) > r for pair, r in zip(call.margins, reach, strict=True)):
        assert not PatchSyrk.suits(call)
        return
    syrk = PatchSyrk(2, kernel, x)
    syrk.add(x[:3], call)
    syrk.add(x[3:], call)
    patches = call.patches(x)[:, 0].double()
    expected = torch.einsum("nil,njl->ij", patches, patches)
    torch.testing.assert_close(syrk.total().double(), expected, **TOLERANCE[dtype])


def test_images_of_several_sizes():
    syrk, expected = PatchSyrk(2, (3, 2), torch.empty(0, dtype=torch.float64)), 0.0
    for seed, size in enumerate([(3, 2), (9, 4), (4, 9)]):
        x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        call = call_of(x, (3, 2), 1, 1)
        syrk.add(x, call)
        patches = call.patches(x)[:, 0]
        expected = expected + torch.einsum("nil,njl->ij", patches, patches)
    torch.testing.assert_close(syrk.total(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("weighted", [False, True])
def test_factors_are_those_of_patches(bias, weighted, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(8, 9, 3, padding=1), nn.Tanh(), nn.Conv2d(9, 8, 3, padding="same", bias=False), nn.Tanh()),
        *(nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).double()
    x, y = torch.randn(6, 8, 17, 20, dtype=torch.float64), torch.randint(0, 3, (6,))
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64) if weighted else None
    objective = rp.Objective(model, rp.Categorical(), (x, y, weight) if weighted else (x, y))
    seen = []
    suits = PatchSyrk.suits
    monkeypatch.setattr(PatchSyrk, "suits", lambda call: seen.append(suits(call)) or seen[-1])
    fast = rp.kfac(objective, bias=bias).to_dense()
    assert seen == [True, True, True]
    monkeypatch.setattr(PatchSyrk, "suits", lambda call: False)
    torch.testing.assert_close(fast, rp.kfac(objective, bias=bias).to_dense(), rtol=1e-10, atol=1e-14)
