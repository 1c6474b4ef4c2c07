"""Both ways in which a feed-forward network is differentiated."""

from __future__ import annotations

import pytest

from raphson.curvature.network import _columns, _ggn, _hessian


@pytest.fixture(params=["closed form", "graph"])
def either_way(request, monkeypatch):
    """Run a test with networks as chains, and as if they were none: through automatic differentiation."""
    if request.param == "graph":
        for module in (_columns, _ggn, _hessian):
            monkeypatch.setattr(module, "find_chain", lambda module: None)
