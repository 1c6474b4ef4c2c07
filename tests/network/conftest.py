"""The ways in which a network's products are computed."""

from __future__ import annotations

import pytest

import raphson as rp
from raphson.network.curvature import _gauss_newton


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
