"""What a likelihood with parameters per response has to do, against independent definitions in float64.

A member supplies a ``Family``: a constructor, its definition for one row in the plainest terms, outputs in the
domain and targets in the support. ``check_family`` does the rest; ``check_sampling`` is the Monte-Carlo part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian

from raphson.likelihoods import Likelihood

from .conformance import DTYPE, _by_row

TOL = {"rtol": 1e-9, "atol": 1e-9}


@dataclass(frozen=True)
class Family:
    """One likelihood with its definition.

    ``row`` is the definition ``l(f, y)`` of one row, by torch functions of float64, not by the library.
    ``outputs(leading, m, g)`` draws ``f`` (*leading, C) in the domain and ``targets(leading, m, g)`` draws ``y``.
    ``exact_fisher`` is False where the Fisher information is by a stated quadrature (compared at 1e-7 then).
    """

    name: str
    likelihood: Likelihood
    row: Callable[[Tensor, Tensor], Tensor]
    outputs: Callable[[tuple[int, ...], int, torch.Generator], Tensor]
    targets: Callable[[tuple[int, ...], int, torch.Generator], Tensor]
    # whether E[g g^T] = E[H] = fisher at targets that ``sample`` draws (not so for tempered or censored ones)
    is_model: bool = True
    # whether mean and variance exist and are those of the targets that ``sample`` draws
    has_moments: bool = True
    # responses for which it is defined
    responses: tuple[int, ...] = (1, 2)

    def __repr__(self) -> str:
        return self.name

    def draw(self, leading: tuple[int, ...], m: int, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        return self.outputs(leading, m, g), self.targets(leading, m, g)


def normal(leading: tuple[int, ...], n: int, g: torch.Generator) -> Tensor:
    return torch.randn(*leading, n, dtype=DTYPE, generator=g)


def _close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=TOL["rtol"], atol=TOL["atol"] * max(scale, 1.0))


def check_family(family: Family, leading: tuple[int, ...], m: int, seed: int = 1) -> None:
    """Derivatives, operators, factors, layouts and shapes at drawn outputs and targets."""
    f, y = family.draw(leading, m, seed)
    lik, row = family.likelihood, family.row
    c = f.shape[-1]
    lik.check(y, c)
    lik.check_outputs(f)
    assert lik.n_outputs(y.reshape(-1, *y.shape[len(leading) :])) == c
    assert len(lik.output_names(c)) == c

    value, gradient, curvature = (_by_row(g, f, y) for g in (row, grad(row), hessian(row)))
    _close(lik.nll(f, y), value)
    _close(lik.gradient(f, y), gradient)
    observed = lik.hessian(f, y)
    assert observed.shape == (*f.shape, c)
    _close(observed.to_dense(), curvature)
    _close(_by_row(grad(lik.nll), f, y), gradient)

    information = lik.fisher(f, y)
    assert information.shape == (*f.shape, c)
    dense = information.to_dense()
    assert bool((torch.linalg.eigvalsh(dense) >= -1e-9 * (1 + dense.abs().amax((-1, -2)))[..., None]).all())
    root = lik.fisher_factor(f, y).to_dense()
    _close(root @ root.mT, dense)
    for kind, expected in (("observed", curvature), ("expected", dense), (None, None)):
        together = lik.derivatives(f, y, kind)
        _close(together.nll, value)
        _close(together.gradient, gradient)
        if expected is None:
            assert together.hessian is None
        else:
            assert together.hessian is not None
            _close(together.hessian.to_dense(), expected)
    if lik.concave:
        assert bool((torch.linalg.eigvalsh(curvature) >= -1e-9 * (1 + curvature.abs().amax((-1, -2)))[..., None]).all())

    turned = f.movedim(-1, 0).contiguous().movedim(0, -1)
    _close(lik.gradient(turned, y), gradient)
    _close(lik.hessian(turned, y).to_dense(), curvature)
    drawn = lik.sample(f, torch.Generator().manual_seed(0))
    lik.check(drawn, c)
    assert torch.equal(drawn, lik.sample(f, torch.Generator().manual_seed(0)))
    assert lik.nll(f, drawn).shape == f.shape[:-1]
    single = lik.derivatives(f.float(), y)
    assert single.nll.dtype == single.gradient.dtype == torch.float32
    start = lik.start(y.reshape(-1, *y.shape[len(leading) :]), c)
    assert start.shape == (c,)
    lik.check_outputs(start)


def check_sampling(family: Family, m: int = 1, seed: int = 3) -> None:
    """The Fisher information is the mean of score products and of Hessians at sampled targets; so are the moments.

    Within five standard errors at n and at 16 n, where the standard error is a quarter.
    """
    f, _ = family.draw((), m, seed)
    lik = family.likelihood
    fisher = lik.fisher(f).to_dense()
    errors = []
    for n in (4_000, 64_000):
        rows = f.expand(n, -1)
        drawn = lik.sample(rows, torch.Generator().manual_seed(5))
        if family.is_model:
            g = lik.gradient(rows, drawn)
            assert bool((g.mean(0).abs() <= 5 * g.std(0) / n**0.5 + 1e-9).all())
            for products in (g.unsqueeze(-1) * g.unsqueeze(-2), lik.hessian(rows, drawn).to_dense()):
                error = products.std(0) / n**0.5
                assert bool(((products.mean(0) - fisher).abs() <= 5 * error + 1e-9 * (1 + fisher.abs())).all())
            errors.append(float((g.unsqueeze(-1) * g.unsqueeze(-2)).std(0).max() / n**0.5))
        if family.has_moments:
            mean, variance = lik.mean(f), lik.variance(f)
            values = drawn.to(DTYPE).reshape(n, *mean.shape)
            assert bool(((values.mean(0) - mean).abs() <= 5 * (variance / n).sqrt() + 1e-9).all())
            squares = (values - mean).square()
            assert bool(((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / n**0.5 + 1e-9).all())
    if errors:
        assert abs(errors[1] / errors[0] - 0.25) < 0.08
