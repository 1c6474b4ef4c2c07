"""A second parameter that is one number for all rows is worked out once; the derivatives are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import raphson as rp

LIKELIHOODS = [
    rp.NegativeBinomial(),
    rp.NegativeBinomial(dispersion=0.5),
    rp.Gamma(),
    rp.Gamma(dispersion=0.3),
    rp.Beta(),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("kind", ["observed", "expected", None])
@pytest.mark.parametrize("second", [-3.0, 0.5, 5.0])
@pytest.mark.parametrize("responses", [1, 2])
@pytest.mark.parametrize("layout", [lambda f: f, lambda f: f.mT.contiguous().mT], ids=["rows", "columns"])
def test_together_is_one_by_one(
    likelihood: Any, kind: str | None, second: float, responses: int, layout: Callable[[Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    k = len(likelihood.parameters)
    f = torch.randn(200, k * responses, dtype=torch.float64, generator=generator)
    if k == 2:
        f[:, 1::2] = second
    f = layout(f)
    y = likelihood.sample(f, generator).clamp(min=1e-3 if isinstance(likelihood, rp.Gamma) else 0.0)
    if not isinstance(likelihood, rp.Beta):
        y[7] = 1e4  # a count beyond a table, in one of the two
    for rows in (slice(None), slice(0, 5), slice(8, None)):
        together = likelihood.derivatives(f[rows], y[rows], kind)
        torch.testing.assert_close(together.nll, likelihood.nll(f[rows], y[rows]), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(together.gradient, likelihood.gradient(f[rows], y[rows]), rtol=1e-11, atol=1e-12)
        if kind is None:
            assert together.hessian is None
            continue
        alone = likelihood.hessian(f[rows], y[rows]) if kind == "observed" else likelihood.fisher(f[rows])
        torch.testing.assert_close(together.hessian.to_dense(), alone.to_dense(), rtol=1e-11, atol=1e-12)
