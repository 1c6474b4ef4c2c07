"""Everything stays on the device of the model."""

from __future__ import annotations

import pytest
import torch

import raphson as rp

from .network_cases import BY_NAME, DTYPE, by_definition, draw, network


@pytest.mark.gpu
@pytest.mark.usefixtures("cached_or_not")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_differentiated_there():
    loss = BY_NAME["categorical"]
    x, y, weight = draw(loss)
    dense = by_definition(network(), loss, x, y, weight, "mean", 0.1)
    o = rp.Objective(network().cuda(), rp.Categorical(), (x, y, weight), l2=0.1)
    v = torch.randn(o.n_parameters, 3, dtype=DTYPE)
    for expected, call in ((dense.hessian, rp.hessian), (dense.ggn, rp.ggn), (dense.expected, rp.fisher)):
        for op in (call(o), call(o, structure="dense")):
            assert op.device.type == "cuda" and op.mm(v.cuda()).is_cuda
            torch.testing.assert_close(op.mm(v.cuda()).cpu(), expected @ v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(o.gradient().cpu(), dense.gradient, rtol=1e-9, atol=1e-11)
    sampled = rp.fisher(o, "mc", "dense", samples=4096).to_dense().cpu()
    torch.testing.assert_close(sampled, dense.expected, rtol=0.3, atol=0.1 * float(dense.expected.abs().max()))
    assert rp.example_gradients(o).is_cuda
