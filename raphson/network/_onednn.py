"""Products of matrices by oneDNN, on processors of which MKL leaves half unused.

PyTorch multiplies matrices by Intel's MKL, which computes with vectors of 256 bits on processors of AMD, on those with
vectors of 512 bits too. oneDNN, which PyTorch brings for convolutions, uses them, and products in single precision take
less than half the time where they are computed in one step: (784, 512) times (512, 784) 2.7 ms against 6.1, (4608, 256)
times (256, 128) 1.3 against 3.3 (measured, one thread of an AMD EPYC of family 26, PyTorch 2.13). Family 25 takes two
steps for 512 bits: products take about as long either way, and sums of outer products, which oneDNN makes in fewer and
larger squares, longer (784 columns of 512 vectors 5.9 ms against 4.7, 512 columns 2.9 against 2.4).
The private operation, used here only, is the one that PyTorch's own compiler puts in place of a linear layer;
``tests/network/test_private_torch.py`` holds what it must do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from raphson.network._tensor_memory import inside_transformation

_WORK = 2**22
"""Multiplications below which it is not used: the first product of a shape takes half a millisecond more (measured)."""


_ENTRIES = 2**13
"""Entries of a result from which on oneDNN makes hyperbolic tangents."""


@cache
def _built() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def has_longer_vectors() -> bool:
    """Whether oneDNN computes with longer vectors than MKL on this processor, in one step."""
    # the oldest PyTorch does not tell
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # AMD's first processors with vectors of 512 bits take two steps for each; later ones have these instructions, too
    whole = found.get("avx_vnni") or found.get("avx512_vp2intersect")
    return bool(_built() and found.get("avx512_f") and whole and str(found.get("cpu_name")).startswith("AMD"))


def is_faster(a: Tensor, multiplications: float) -> bool:
    """Whether a product of so many multiplications, of tensors like this one, is faster by oneDNN."""
    return multiplications >= _WORK and has_longer_vectors() and computes(a)


def computes(a: Tensor) -> bool:
    """Whether oneDNN computes with tensors like this one, of which no graph is wanted."""
    return (
        a.dtype is torch.float32
        and a.is_cpu
        and type(a) is Tensor
        and a.layout is torch.strided
        and not (a.requires_grad and torch.is_grad_enabled())
        and not inside_transformation(a)
        and bool(torch.backends.mkldnn.enabled)
    )


def rows_product(a: Tensor, b: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """Return ``A B^T`` and a bias by oneDNN, for ``(..., k)`` and ``(n, k)``, without a graph; or a function of it."""
    # it reads a bias as if its numbers were one after another, and takes a thousand times as long for rows with gaps
    dense = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
        a.detach().contiguous(), dense.detach(), None if bias is None else bias.detach().contiguous(), then, [], ""
    )


def correlations(images: Tensor, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    r"""Return products of images ``(N, I, *size)`` with themselves, shifted, by oneDNN.

    Entry ``(i, j, *s)`` is :math:`\sum_t x_i(t)\, x_j(t + \mathrm{dilation} \cdot s)` over all positions of all images,
    with zeros around them: shifts s from 0 on the first axis, from ``1 - kernel`` on others, both to ``kernel - 1``.
    It is the weight gradient of a convolution of the images, whose output gradients they are as well.
    """
    axes = len(kernel)
    if axes == 2:
        images = images.contiguous(memory_format=torch.channels_last)
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    padded = F.pad(images, [0, 0] * (axes - 1) + [0, reach[0]]) if reach[0] else images
    size = (images.shape[1], images.shape[1], kernel[0], *(2 * length - 1 for length in kernel[1:]))
    gradient = (conv1d_weight, conv2d_weight, conv3d_weight)[axes - 1]
    return gradient(padded, size, images, padding=(0, *reach[1:]), dilation=tuple(dilation))  # type: ignore


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x W^T + b`` for ``(..., in)``, by what is faster; there is no graph through weight and bias."""
    return rows_product(x, weight, bias) if linear_is_faster(x, weight) else F.linear(x, weight, bias)


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``tanh(x W^T + b)`` for ``(..., in)``, without a graph.

    PyTorch takes 2.5 ns an entry for the tangent alone, longer than the product before it where this has 64 columns.
    oneDNN takes 0.5 after its product, with errors as small (on processors of both families, measured).
    """
    large = x.ndim > 1 and x.shape[:-1].numel() * weight.shape[0] >= _ENTRIES
    if large and _built() and weight.dtype is torch.float32 and computes(x) and not torch.is_autocast_enabled("cpu"):
        return rows_product(x, weight, bias, "tanh")
    return F.linear(x, weight, bias).tanh_()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b`` for ``(G, n, k)`` and ``(G, k, m)``, by what is faster, without a graph."""
    if a.shape[0] == 1 and is_faster(a, a.numel() * b.shape[2]):
        return rows_product(a[0], b[0].mT).unsqueeze(0)
    return a @ b


def linear_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer is faster by oneDNN."""
    fits = x.ndim > 1 and weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return fits and is_faster(x, x.numel() * weight.shape[0])
