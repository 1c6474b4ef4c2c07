"""What every likelihood has to do, against its definition differentiated by torch.func in float64.

A member of the contract supplies a ``Case``: a constructor, its definition for one row in the plainest terms,
targets to try, and the distribution of its targets as nodes and probabilities (all classes or label
patterns, or a quadrature rule). ``check_contract`` does the rest. No definition uses the library.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from raphson.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, ScaledLikelihood

DTYPE = torch.float64
TOL = {"rtol": 1e-10, "atol": 1e-10}

Row = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One likelihood with its definition.

    ``build(C)`` makes it; ``row(C)`` is its definition ``l(f, y)``; ``targets(leading, C, g)`` draws targets;
    ``nodes(f)`` gives targets (R, ...) and probabilities (R,) of the model at one row.
    """

    name: str
    build: Callable[[int], Likelihood]
    row: Callable[[int], Row]
    targets: Callable[[tuple[int, ...], int, torch.Generator], Tensor]
    nodes: Callable[[Tensor], tuple[Tensor, Tensor]]
    # E g g^T = fisher only where no weight depends on the target or scales the model away
    is_model: bool = True

    def __repr__(self) -> str:
        return self.name


def _class_weight(k: int) -> Tensor:
    return torch.linspace(0.5, 2.0, k, dtype=DTYPE)


def _categorical_row(weighted: bool, eps: float, ignore: int = -100) -> Callable[[int], Row]:
    def make(k: int) -> Row:
        w = _class_weight(k) if weighted else torch.ones(k, dtype=DTYPE)

        def row(f: Tensor, y: Tensor) -> Tensor:
            onehot = y if y.is_floating_point() else (torch.arange(k) == y).to(f.dtype)
            t = w * ((1 - eps) * onehot + eps / k)
            value = -(t * (f - torch.logsumexp(f, -1, keepdim=True))).sum()
            return value if y.is_floating_point() else value * (y != ignore)

        return row

    return make


def _labels(leading, k, g):
    return torch.randint(k, leading, generator=g)


def _labels_with_ignored(leading, k, g):
    y = torch.randint(k, leading, generator=g)
    return torch.where(torch.rand(leading, generator=g) < 0.4, -100, y)


def _probabilities(leading, k, g):
    return torch.softmax(2 * torch.randn(*leading, k, dtype=DTYPE, generator=g), -1)


def _counts(leading, k, g):
    return torch.randint(4, (*leading, k), generator=g).to(DTYPE)


def _classes(f):
    return torch.arange(f.shape[-1]), torch.softmax(f, -1)


def _categorical(name, targets, weighted=False, eps=0.0):
    return Case(
        name,
        lambda k: Categorical(_class_weight(k) if weighted else None, label_smoothing=eps),
        _categorical_row(weighted, eps),
        targets,
        _classes,
        is_model=not weighted and not eps,
    )


def _bernoulli_row(pos: Callable[[int], Tensor], label: Callable[[int], Tensor]) -> Callable[[int], Row]:
    def make(m: int) -> Row:
        def row(f: Tensor, y: Tensor) -> Tensor:
            p = 1 / (1 + torch.exp(-f))
            return -(label(m) * (pos(m) * y * torch.log(p) + (1 - y) * torch.log1p(-p))).sum()

        return row

    return make


def _ones(m):
    return torch.ones(m, dtype=DTYPE)


def _soft(leading, m, g):
    return torch.rand(*leading, m, dtype=DTYPE, generator=g)


def _hard(leading, m, g):
    return torch.randint(2, (*leading, m), generator=g).to(DTYPE)


def _patterns(f):
    y = torch.tensor(list(itertools.product([0.0, 1.0], repeat=f.shape[-1])), dtype=DTYPE)
    p = 1 / (1 + torch.exp(-f))
    return y, torch.where(y == 1, p, 1 - p).prod(-1)


def _scale(m):
    return torch.linspace(0.5, 1.5, m, dtype=DTYPE)


def _gaussian_row(scale: Callable[[int], Tensor], constant: bool = True) -> Callable[[int], Row]:
    def make(m: int) -> Row:
        def row(f: Tensor, y: Tensor) -> Tensor:
            s = scale(m)
            value = (y - f) ** 2 / (2 * s**2)
            return (value + torch.log(s * math.sqrt(2 * math.pi))).sum() if constant else value.sum()

        return row

    return make


def _responses(leading, m, g):
    return 3 * torch.randn(*leading, m, dtype=DTYPE, generator=g)


def _hermite(scale):
    """Gauss-Hermite nodes of independent Gaussians: exact for the polynomials that appear here."""

    def nodes(f):
        x, w = np.polynomial.hermite_e.hermegauss(3)
        m = f.shape[-1]
        grid = torch.tensor(list(itertools.product(x, repeat=m)), dtype=DTYPE)
        weights = torch.tensor(list(itertools.product(w, repeat=m)), dtype=DTYPE).prod(-1)
        return f + scale(m) * grid, weights / weights.sum()

    return nodes


def _times(case: Case, factor: Callable[[int], float], constant: float, build: Callable[[int], Likelihood]) -> Case:
    def row(c: int) -> Row:
        base = case.row(c)
        return lambda f, y: factor(c) * base(f, y) + constant

    return replace(case, name=f"scaled_{case.name}", build=build, row=row, is_model=False)


_PLAIN = _categorical("categorical", _labels)
_BERNOULLI = Case("bernoulli", lambda m: Bernoulli(), _bernoulli_row(_ones, _ones), _hard, _patterns)
_GAUSSIAN = Case(
    "gaussian",
    lambda m: Gaussian(0.7),
    _gaussian_row(lambda m: 0.7 * _ones(m)),
    _responses,
    _hermite(lambda m: 0.7),
)

CASES = [
    _PLAIN,
    _categorical("categorical_weighted", _labels, weighted=True),
    _categorical("categorical_smoothed", _labels, eps=0.2),
    _categorical("categorical_weighted_smoothed", _labels_with_ignored, weighted=True, eps=0.2),
    replace(_PLAIN, name="categorical_ignored", targets=_labels_with_ignored),
    replace(_PLAIN, name="categorical_probabilities", targets=_probabilities),
    _categorical("categorical_weighted_smoothed_probabilities", _probabilities, weighted=True, eps=0.2),
    replace(_PLAIN, name="categorical_counts", targets=_counts),
    _BERNOULLI,
    replace(_BERNOULLI, name="bernoulli_soft", targets=_soft),
    Case(
        "bernoulli_weighted",
        lambda m: Bernoulli(pos_weight=_class_weight(m), label_weight=2 * _scale(m)),
        _bernoulli_row(_class_weight, lambda m: 2 * _scale(m)),
        _soft,
        _patterns,
        is_model=False,
    ),
    Case(
        "bernoulli_one_weight",
        lambda m: Bernoulli(pos_weight=torch.tensor(3.0)),
        _bernoulli_row(lambda m: 3 * _ones(m), _ones),
        _soft,
        _patterns,
        is_model=False,
    ),
    _GAUSSIAN,
    Case("gaussian_scales", lambda m: Gaussian(_scale(m)), _gaussian_row(_scale), _responses, _hermite(_scale)),
    Case(
        "gaussian_unnormalized",
        lambda m: Gaussian(_scale(m), normalized=False),
        _gaussian_row(_scale, constant=False),
        _responses,
        _hermite(_scale),
    ),
    _times(_PLAIN, lambda c: 0.3, 1.5, lambda k: ScaledLikelihood(Categorical(), 0.3, 1.5)),
    _times(_BERNOULLI, lambda c: 2 / c, 0.0, lambda m: ScaledLikelihood(Bernoulli(), 2.0, mean_over_outputs=True)),
]


def draw(case: Case, leading: tuple[int, ...], c: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    f = 2 * torch.randn(*leading, c, dtype=DTYPE, generator=g)
    return f, case.targets(leading, c, g)


def _equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **TOL)


def _by_row(function: Callable[..., Tensor], f: Tensor, y: Tensor) -> Tensor:
    """Apply a function of one row to each, whatever the leading dimensions."""
    leading = f.shape[:-1]
    rows_y = y.reshape((math.prod(leading), *y.shape[len(leading) :]))
    result = vmap(function)(f.reshape(-1, f.shape[-1]), rows_y)
    return result.reshape((*leading, *result.shape[1:]))


def _expected(function: Callable[..., Tensor], nodes: Callable[..., tuple[Tensor, Tensor]], f: Tensor) -> Tensor:
    """Expectation over the model's targets of ``function(f_row, y)``, row by row."""

    def one(row: Tensor) -> Tensor:
        y, p = nodes(row)
        return torch.tensordot(p, vmap(function, (None, 0))(row, y), 1)

    rows = torch.stack([one(row) for row in f.reshape(-1, f.shape[-1])])
    return rows.reshape((*f.shape[:-1], *rows.shape[1:]))


def check_contract(case: Case, f: Tensor, y: Tensor) -> None:
    """Every method at outputs ``f`` (..., C) and targets ``y``."""
    c = f.shape[-1]
    lik, row = case.build(c), case.row(c)
    before = f.clone()
    lik.check(y, c)

    value = _by_row(row, f, y)
    gradient = _by_row(grad(row), f, y)
    curvature = _by_row(hessian(row), f, y)
    _equal(lik.nll(f, y), value)
    _equal(lik.gradient(f, y), gradient)
    observed = lik.hessian(f, y)
    _equal(observed.to_dense(), curvature)
    assert observed.shape == (*f.shape, c)
    _equal(observed.diagonal(), curvature.diagonal(dim1=-2, dim2=-1))

    # the closed forms can themselves be differentiated
    _equal(_by_row(grad(lik.nll), f, y), gradient)
    _equal(_by_row(hessian(lik.nll), f, y), curvature)
    _equal(_by_row(jacrev(lik.gradient), f, y), curvature)

    for kind, dense in (("observed", curvature), ("expected", lik.fisher(f, y).to_dense())):
        together = lik.derivatives(f, y, kind)
        _equal(together.nll, value)
        _equal(together.gradient, gradient)
        assert together.hessian is not None
        _equal(together.hessian.to_dense(), dense)
    alone = lik.derivatives(f, y, None)
    assert alone.hessian is None
    _equal(alone.nll, value)
    _equal(alone.gradient, gradient)

    # with targets, the information carries their weights; all members are canonical, so it is the Hessian
    _equal(lik.fisher(f, y).to_dense(), curvature)
    fisher = lik.fisher(f).to_dense()
    _equal(fisher, _expected(hessian(row), case.nodes, f))
    for information, factor in ((fisher, lik.fisher_factor(f)), (curvature, lik.fisher_factor(f, y))):
        dense = factor.to_dense()
        _equal(dense @ dense.mT, information)
        v = torch.linspace(-1, 2, f.numel(), dtype=f.dtype).reshape(f.shape)
        z = v[..., : dense.shape[-1]]
        _equal(factor.mv(z), (dense @ z.unsqueeze(-1)).squeeze(-1))
        _equal(factor.rmv(v), (dense.mT @ v.unsqueeze(-1)).squeeze(-1))
        _equal(factor.mm(torch.stack([z, z * z], -1)), dense @ torch.stack([z, z * z], -1))
        _equal(factor.rmm(torch.stack([v, v * v], -1)), dense.mT @ torch.stack([v, v * v], -1))
    if case.is_model:

        def score_product(f: Tensor, y: Tensor) -> Tensor:
            g = grad(row)(f, y)
            return torch.outer(g, g)

        _equal(fisher, _expected(score_product, case.nodes, f))

    def response(f: Tensor, y: Tensor) -> Tensor:
        return y if y.is_floating_point() else (torch.arange(c) == y).to(f.dtype)

    mean = _expected(response, case.nodes, f)
    _equal(lik.mean(f), mean)
    _equal(lik.variance(f), _expected(lambda f, y: response(f, y) ** 2, case.nodes, f) - mean**2)
    if lik.always_finite:
        huge = 0.99 * torch.finfo(f.dtype).max ** 0.5 * f.sign()
        assert bool(torch.isfinite(lik.nll(huge, y)).all())
    if lik.concave:
        assert bool((torch.linalg.eigvalsh(curvature) >= -1e-12).all())

    drawn = lik.sample(f, torch.Generator().manual_seed(0))
    lik.check(drawn, c)
    assert lik.nll(f, drawn).shape == f.shape[:-1]
    assert torch.equal(drawn, lik.sample(f, torch.Generator().manual_seed(0)))
    assert torch.equal(f, before)


def check_strides(case: Case, f: Tensor, y: Tensor) -> None:
    """The same numbers from outputs in other layouts: class by class, as linear models do, and gappy."""
    lik = case.build(f.shape[-1])
    turned = f.movedim(-1, 0).contiguous().movedim(0, -1)
    plain, other = lik.derivatives(f, y), lik.derivatives(turned, y)
    _equal(other.nll, plain.nll)
    _equal(other.gradient, plain.gradient)
    assert plain.hessian is not None and other.hessian is not None
    _equal(other.hessian.to_dense(), plain.hessian.to_dense())
    spread = torch.stack([f, f], -1).flatten(-2)[..., ::2]
    assert not spread.is_contiguous()
    _equal(lik.nll(spread, y), plain.nll)
    _equal(lik.gradient(spread, y), plain.gradient)
    _equal(lik.hessian(spread, y).to_dense(), plain.hessian.to_dense())
