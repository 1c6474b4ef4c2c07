"""Constrained linear models against torch.func on the plain definition f = sum_g H_g Theta_g x_g."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch

from raphson.data import DenseDesign, SparseDesign
from raphson.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian
from raphson.linear import LinearObjective, OutputMap, group_scores, score_gram
from raphson.linear._gram import MapGram

N, D, C = 29, 4, 3
EYE = torch.eye(C, dtype=torch.float64)
RAMP = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)

LAYOUTS = {
    "parallel": (EYE, [-torch.ones(C, 1, dtype=torch.float64)] * D),
    "one output": (EYE, [EYE[:, :1]] * D),
    "mixed": (EYE, [EYE, EYE[:, 1:2], EYE, RAMP]),
    "no intercept": (EYE[:, :0], [EYE, RAMP, EYE[:, :2], EYE]),
    "some intercepts": (EYE[:, 1:], [EYE[:, :1], EYE[:, 1:2], RAMP, EYE[:, :1]]),
    "reference": (EYE[:, 1:], [EYE[:, 1:]] * D),
}


def plain_nll(name, f, y):
    """The textbook losses, written with torch alone."""
    if name == "categorical":
        return -torch.log_softmax(f, 1)[torch.arange(len(y)), y]
    return 0.5 * ((y - f) / 0.7).square().sum(1)


def make(layout, likelihood="categorical", *, weights=False, offset=False, l2=0.0, sparse=False, kept=None):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    x[torch.rand(N, D, generator=g) < 0.3] = 0.0
    w = torch.randint(1, 5, (N,), generator=g).double() * 0.7 if weights else None
    o = torch.randn(N, C, generator=g, dtype=torch.float64) if offset else None
    if likelihood == "categorical":
        lik, y = Categorical(), torch.randint(C, (N,), generator=g)
    else:
        lik, y = Gaussian(0.7, normalized=False), torch.randn(N, C, generator=g, dtype=torch.float64)
    intercepts, matrices = LAYOUTS[layout]
    output_map = OutputMap.of_columns(intercepts, matrices)
    part, places, read = output_map, torch.arange(output_map.n_parameters), x
    if kept is not None:
        free = torch.zeros(output_map.n_parameters, dtype=torch.bool)
        free[kept] = True
        part, columns, places = output_map.restrict(free)
        read = x[:, columns[int(part.intercept) :] - int(part.intercept)]
    if sparse:
        design = SparseDesign(sp.csr_matrix(read.numpy()), intercept=output_map.intercept)
    else:
        design = DenseDesign(read, intercept=output_map.intercept)
    objective = LinearObjective(design, lik, y, part, weights=w, offset=o, l2=l2)
    xhat = torch.cat([torch.ones(N, 1, dtype=torch.float64), x], 1) if output_map.intercept else x

    def coefficients(theta):
        full = torch.zeros(output_map.n_parameters, dtype=torch.float64).index_put((places,), theta)
        table, start = torch.zeros(C, output_map.n_columns, dtype=torch.float64), 0
        for group in output_map.groups:
            r, d = group.matrix.shape[1], group.n_columns
            index = torch.arange(output_map.n_columns)[group.columns]
            table = table.index_add(1, index, group.matrix @ full[start : start + r * d].view(r, d))
            start += r * d
        return table

    def rows(theta):
        table = coefficients(theta)
        f = xhat @ table.mT if o is None else xhat @ table.mT + o
        return plain_nll(likelihood, f, y)

    def penalty(theta):
        """Sum-to-zero slopes for classes; else parameters, the cases with a penalty being all of classes."""
        slopes = coefficients(theta)[:, int(output_map.intercept) :]
        return (slopes - slopes.mean(0)).square().sum()

    def plain(theta):
        each = rows(theta)
        mean = each.mean() if w is None else (w * each).sum() / w.sum()
        return mean + 0.5 * l2 * penalty(theta)

    theta = torch.randn(objective.n_parameters, generator=g, dtype=torch.float64) * 0.5
    return objective, plain, rows, theta


CASES = [
    {},
    {"weights": True, "offset": True},
    {"l2": 0.3},
    {"sparse": True, "weights": True},
    {"likelihood": "gaussian", "offset": True},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_gradient_and_hessian_equal_automatic_differentiation(layout, case):
    objective, plain, _, theta = make(layout, **case)
    at = objective.evaluate(theta)
    assert at.value == pytest.approx(float(plain(theta)), rel=1e-12)
    assert objective.value(theta) == pytest.approx(at.value, rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(plain)(theta), rtol=1e-10, atol=1e-12)
    expected = torch.func.hessian(plain)(theta)
    torch.testing.assert_close(at.hessian.to_dense(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.hessian(theta).to_dense(), expected, rtol=1e-10, atol=1e-12)
    v = torch.randn_like(theta)
    torch.testing.assert_close(at.hessian.mv(v), expected @ v, rtol=1e-10, atol=1e-12)


def test_parameters_left_out_are_zero():
    kept = torch.tensor([0, 1, 3, 4, 6])
    objective, plain, rows, theta = make("mixed", l2=0.1, kept=kept)
    at = objective.evaluate(theta)
    torch.testing.assert_close(at.gradient, torch.func.grad(plain)(theta), rtol=1e-10, atol=1e-12)
    expected = torch.func.hessian(plain)(theta)
    torch.testing.assert_close(at.hessian.to_dense(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at.hessian.mv(theta), expected @ theta, rtol=1e-10, atol=1e-12)
    scores = torch.func.jacrev(rows)(theta)
    torch.testing.assert_close(score_gram(objective, theta), scores.mT @ scores, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_equal_automatic_differentiation(layout, weights):
    objective, _, rows, theta = make(layout, weights=weights)
    scores = torch.func.jacrev(rows)(theta)
    w = torch.ones(N, dtype=torch.float64) if objective.weights is None else objective.weights
    weighted = scores * w[:, None]
    torch.testing.assert_close(score_gram(objective, theta), weighted.mT @ weighted, rtol=1e-10, atol=1e-12)
    once = score_gram(objective, theta, squared_weights=False)
    torch.testing.assert_close(once, scores.mT @ weighted, rtol=1e-10, atol=1e-12)
    groups = torch.arange(N) % 5
    expected = torch.stack([weighted[groups == i].sum(0) for i in range(5)])
    torch.testing.assert_close(group_scores(objective, theta, groups, 5), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_standardized_parameters_describe_the_same_outputs(layout):
    objective, _, _, _ = make(layout, "gaussian")
    output_map = objective.output_map
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1e3, 1e-2, 7.0]) + 5.0
    center = torch.where(output_map.can_center(), x.mean(0), 0.0)
    scale = x.std(0)
    design = DenseDesign(x, intercept=output_map.intercept, moments=(center, scale))
    standard = LinearObjective(design, objective.likelihood, objective.y, output_map)
    raw_design = DenseDesign(x, intercept=output_map.intercept)
    raw = LinearObjective(raw_design, objective.likelihood, objective.y, output_map)
    theta = torch.randn(standard.n_parameters, generator=g, dtype=torch.float64)
    table = standard.to_table(theta)
    torch.testing.assert_close(standard.predictors(theta), raw.predictors(table), rtol=1e-9, atol=1e-9)
    # the gradient norm is that of the table's own parameters
    expected = float(raw.evaluate(table, None).gradient.abs().max())
    norm = standard.gradient_norm(standard.evaluate(theta, None).gradient)
    assert norm == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_column_in_tiny_units_counts(layout):
    objective, _, _, _ = make(layout, "gaussian")
    here = objective.output_map
    x = 1e-9 * torch.randn(N, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    design = DenseDesign(x, intercept=here.intercept, moments=(torch.zeros(D, dtype=x.dtype), x.std(0)))
    standard = LinearObjective(design, objective.likelihood, objective.y, here)
    gradient = here.per_parameter(torch.tensor([0.0] * here.intercept + [1.0] * D, dtype=torch.float64))
    assert standard.gradient_norm(1e-4 * gradient) >= 1e-7 - 1e-12


def test_the_smallest_basis_is_used():
    for layout, width in {"parallel": 1, "one output": 1, "mixed": 3, "reference": 2}.items():
        output_map = OutputMap.of_columns(*LAYOUTS[layout])
        assert output_map.basis.shape == (C, width)
        assert output_map.is_uniform == (layout == "reference")
        if output_map.is_uniform:
            assert output_map.left_out == 0
            continue
        torch.testing.assert_close(
            output_map.basis @ torch.cat(output_map._loadings, 1),
            torch.cat([group.matrix for group in output_map.groups[1:]], 1),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_small_matrices_the_same(layout, monkeypatch):
    """Many parameters go group by group; so do few here."""
    objective, _, _, theta = make(layout, weights=True, l2=0.1)
    at, norm = objective.evaluate(theta), objective.gradient_norm(objective.evaluate(theta).gradient)
    monkeypatch.setattr("raphson.linear._output_map._MATRIX_ELEMENTS", 0)
    monkeypatch.setattr("raphson.linear._units._MATRIX_ELEMENTS", 0)
    other, _, _, _ = make(layout, weights=True, l2=0.1)
    again = other.evaluate(theta)
    assert again.value == pytest.approx(at.value, rel=1e-14)
    torch.testing.assert_close(again.gradient, at.gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(again.hessian.mv(theta), at.hessian.mv(theta), rtol=1e-12, atol=1e-14)
    assert other.gradient_norm(again.gradient) == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("tile", [1, 2**17])
@pytest.mark.parametrize("layout", ["one output", "mixed", "no intercept"])
def test_gram_in_tiles(layout, tile, monkeypatch):
    monkeypatch.setattr("raphson.linear._gram._TILE_ELEMENTS", tile)
    g = torch.Generator().manual_seed(3)
    n = 300
    x, root = torch.randn(n, D, generator=g, dtype=torch.float64), torch.randn(n, C, C, generator=g).double()
    a = root + root.mT
    intercepts, matrices = LAYOUTS[layout]
    output_map = OutputMap.of_columns(intercepts, matrices)
    gram = MapGram(output_map, torch.triu_indices(C, C))
    i, j = torch.triu_indices(C, C)
    for block in DenseDesign(x, intercept=output_map.intercept).blocks(C):
        gram.add(block, a[block.rows][:, i, j].mT)
    xhat = torch.cat([torch.ones(n, 1, dtype=torch.float64), x], 1) if output_map.intercept else x
    expand = output_map.expand(torch.eye(output_map.n_parameters, dtype=torch.float64))
    jacobian = torch.einsum("pcd,nd->ncp", expand, xhat)
    expected = torch.einsum("ncp,nck,nkq->pq", jacobian, a, jacobian)
    torch.testing.assert_close(gram.to_dense(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_separate", [1, 2])
def test_hessian_of_rows_alike_and_of_two_responses(n_separate):
    g = torch.Generator().manual_seed(4)
    x, y = torch.randn(N, D, generator=g, dtype=torch.float64), torch.randn(N, 2, generator=g, dtype=torch.float64)
    w, eye = torch.rand(N, generator=g, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    output_map = OutputMap.of_columns(eye, [eye[:, :1], eye[:, ::2], eye, eye[:, :1]])
    likelihood = HeteroscedasticGaussian()
    objective = LinearObjective(DenseDesign(x), likelihood, y, output_map, weights=w, l2=0.1)
    theta = torch.randn(objective.n_parameters, generator=g, dtype=torch.float64) * 0.3
    xhat = torch.cat([torch.ones(N, 1, dtype=torch.float64), x], 1)
    expand = output_map.expand(torch.eye(output_map.n_parameters, dtype=torch.float64))
    jacobian = torch.einsum("pcd,nd->ncp", expand, xhat)
    f = jacobian @ theta
    each = torch.func.vmap(torch.func.hessian(_two_gaussians))(f, y)
    penalty = torch.full_like(theta, 0.1)
    penalty[:4] = 0.0

    def dense(output):
        return torch.einsum("n,ncp,nck,nkq->pq", w / w.sum(), jacobian, output, jacobian) + torch.diag(penalty)

    hessian = objective.evaluate(theta).hessian
    torch.testing.assert_close(hessian.to_dense(), dense(each), rtol=1e-10, atol=1e-12)
    c = torch.arange(4)
    mean = torch.einsum("n,nck->ck", w / w.sum(), each) * (c[:, None] % n_separate == c % n_separate)
    torch.testing.assert_close(
        hessian.constant_over_rows(n_separate), dense(mean.expand(N, -1, -1)), rtol=1e-10, atol=1e-12
    )
    still = LinearObjective(DenseDesign(x), likelihood, y, output_map, offset=torch.full((N, 4), 9.0).double())
    assert still.largest_move(theta) == pytest.approx(float(f.abs().max()), rel=1e-12)


def _two_gaussians(f, y):
    return (f[1::2] + 0.5 * ((y - f[::2]) * torch.exp(-f[1::2])) ** 2).sum()


@pytest.mark.parametrize("left_out", [0, 1, 3])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_coefficients_relative_to_an_output_are_those_it_was_expanded_from(left_out, lead):
    here = OutputMap.relative(4, left_out, 6, True)
    theta = torch.randn(*lead, here.n_parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coef = here.expand(theta)
    torch.testing.assert_close(coef, (here.basis @ theta.view(*lead, 3, 6)), rtol=0.0, atol=0.0)
    moved = coef + torch.arange(6.0, dtype=torch.float64)  # the same for all outputs
    torch.testing.assert_close(here.relative_to_left_out(moved).flatten(-2), theta, rtol=1e-13, atol=1e-13)
    out = torch.empty(*lead, 3, 8, dtype=torch.float64)[..., 1:7]
    assert torch.equal(here.relative_to_left_out(moved, out), here.relative_to_left_out(moved))
