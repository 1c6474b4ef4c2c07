"""The ways in which a network's products are computed."""

from __future__ import annotations

import pytest

from raphson.network.curvature import _gauss_newton, _hessian
from raphson.network.curvature.factors import _output_factor as _columns


@pytest.fixture(params=["closed form", "graph"])
def either_way(request, monkeypatch):
    """Run a test with networks as chains, and as if they were none: through automatic differentiation."""
    if request.param == "graph":
        for module in (_columns, _gauss_newton, _hessian):
            monkeypatch.setattr(module, "find_feed_forward", lambda module: None)


@pytest.fixture(params=["passes", "kept"])
def cached_or_not(request, monkeypatch):
    """Run a test with Gauss-Newton products by passes over the network, and with its Jacobian kept from the start."""
    monkeypatch.setattr(_gauss_newton, "_FROM", 0.0 if request.param == "kept" else float("inf"))
    return request.param
