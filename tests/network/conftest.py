"""The ways in which a network's products are computed."""

from __future__ import annotations

import pytest
import torch

import raphson as rp
from raphson.network import _onednn
from raphson.network.curvature import _gauss_newton
from raphson.network.curvature.factors import _syrk


@pytest.fixture(params=["closed form", "graph"])
def either_way(request, monkeypatch):
    """Run a test with closed forms of feed-forward networks, and with automatic differentiation for these, too."""
    if request.param == "graph":
        monkeypatch.setattr(rp.Objective, "feed_forward", None)


@pytest.fixture(params=["passes", "cached"])
def cached_or_not(request, monkeypatch):
    """Run a test with Gauss-Newton products by passes over the network, and with its Jacobian cached from the start."""
    monkeypatch.setattr(_gauss_newton, "_FROM", 0.0 if request.param == "cached" else float("inf"))
    return request.param


@pytest.fixture
def longer_vectors(monkeypatch):
    """Use oneDNN as on a processor where it is faster, and say what it was asked for."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    asked, product = [], _onednn.rows_product

    def seen(a, b, bias=None, then="none"):
        asked.append(a.shape)
        return product(a, b, bias, then)

    monkeypatch.setattr(_onednn, "has_longer_vectors", lambda: True)
    for module in (_onednn, _syrk):
        monkeypatch.setattr(module, "rows_product", seen)
    return asked
