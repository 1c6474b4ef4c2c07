"""Nothing is made on another device than that of the model, by watching every call that makes a tensor."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import raphson as rp
from raphson.linalg import widest_float


def maker() -> str:
    """The module of this package that makes the call."""
    frame: Any = sys._getframe(2)
    while frame is not None and not frame.f_globals["__name__"].startswith("raphson."):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals["__name__"])


class DeviceIsNamed(TorchFunctionMode):
    """Fails where a tensor is made without a device, or of a type that some devices lack."""

    MAKE = frozenset({
        *(torch.zeros, torch.ones, torch.eye, torch.empty, torch.full, torch.arange, torch.linspace),
        *(torch.tensor, torch.rand, torch.randn, torch.randint, torch.randperm, torch.tril_indices, torch.triu_indices),
    })

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if maker().startswith("raphson.likelihoods"):  # these have their own types: sums over targets in float64
            return func(*args, **kwargs)
        if func in self.MAKE or (func is torch.as_tensor and not isinstance(args[0], Tensor)):
            assert kwargs.get("device") is not None, f"{func.__name__} without a device"
            assert kwargs.get("dtype") is not torch.float64, f"{func.__name__} of type float64"
        if func in (Tensor.double, Tensor.cpu):
            raise AssertionError(func.__name__)
        out = func(*args, **kwargs)
        assert not isinstance(out, Tensor) or out.dtype is not torch.float64, f"{func} makes float64"
        return out


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def graph() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize("build", [feed_forward, graph])
@pytest.mark.parametrize(
    "use",
    [
        rp.Objective.value_and_gradient,
        lambda o: rp.ggn(o) @ torch.ones(o.n_parameters, device=o.device),
        lambda o: rp.hessian(o) @ torch.ones(o.n_parameters, device=o.device),
        lambda o: rp.ggn(o, "dense"),
        lambda o: rp.ggn(o, "diagonal"),
        lambda o: rp.hessian(o, "diagonal"),
        lambda o: rp.kfac(o).solve(torch.ones(o.n_parameters, device=o.device)),
        lambda o: rp.kfac(o, "mc"),
        lambda o: rp.fisher(o, "mc") @ torch.ones(o.n_parameters, device=o.device),
        rp.ekfac,
        rp.example_gradients,
        rp.example_gradient_norms,
    ],
    ids="gradient ggn hessian dense diagonal hessian-diagonal kfac mc fisher ekfac gradients norms".split(),
)
def test_no_tensor_is_made_elsewhere_or_in_float64(build, use, monkeypatch):
    from raphson.network import _objective
    from raphson.network.layers import _layer_record

    for place in (_objective, _layer_record):  # as on a device without float64
        monkeypatch.setattr(place, "widest_float", lambda device: torch.float32)
    torch.manual_seed(0)
    model, likelihood, x, y = build(), rp.Gaussian(), torch.randn(5, 3), torch.randn(5, 3)
    with DeviceIsNamed():
        use(rp.Objective(model, likelihood, [(x, y), (x + 1, y)], l2=0.1))


def test_the_type_of_sums_is_one_that_the_device_has():
    assert widest_float(torch.device("cpu")) is torch.float64
    assert widest_float(torch.device("mps")) is torch.float32
