"""A penalized model in the span of its rows against the same one in all columns: shapes, layouts, likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raphson.data import DenseDesign, SparseDesign
from raphson.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Poisson
from raphson.linear import LinearObjective, OutputMap, RowSpace
from raphson.linear._row_space import RowBasis
from raphson.solve import newton

EYE = torch.eye(3, dtype=torch.float64)
RAMP = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def layout(kind, d):
    """Constraint matrices of intercepts and columns for three outputs."""
    few = min(d, 3)
    return {
        "own": (EYE, [EYE] * d),
        "relative": (EYE[:, 1:], [EYE[:, 1:]] * d),
        "no intercept": (EYE[:, :0], [EYE[:, 1:]] * d),
        "parallel": (EYE[:, 1:], [RAMP[:, 1:]] * d),
        "two wide groups": (EYE[:, 1:], [EYE[:, 1:2]] * (d // 2) + [RAMP[:, 1:]] * (d - d // 2)),
        "a narrow group": (EYE[:, 1:], [EYE[:, 1:]] * few + [EYE[:, 1:2]] * (d - few)),
        "columns no intercept serves": (EYE[:, 1:2], [EYE[:, 2:]] * d),
    }[kind]


LAYOUTS = [
    "own",
    "relative",
    "no intercept",
    "parallel",
    "two wide groups",
    "a narrow group",
    "columns no intercept serves",
]


@st.composite
def objectives(draw):
    n, d = draw(st.integers(2, 12)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, d) + rng.normal(size=d)
    kinds = draw(st.sets(st.sampled_from(["copied rows", "constant columns", "zeros", "weights", "offset", "sparse"])))
    if "zeros" in kinds:
        x[rng.random((n, d)) < 0.5] = 0.0
    if "copied rows" in kinds:
        x[rng.integers(n, size=n // 2)] = x[0]
    if "constant columns" in kinds:
        x[:, rng.random(d) < 0.3] = 2.0
    family = draw(st.sampled_from(["categorical", "gaussian", "poisson", "heteroscedastic"]))
    kind = draw(st.sampled_from(LAYOUTS)) if family in ("categorical", "gaussian") else "own"
    if family == "poisson":
        likelihood, y = Poisson(), torch.from_numpy(rng.poisson(2.0, (n, 1)).astype(float))
        intercepts, matrices = EYE[:1, :1], [EYE[:1, :1]] * d
    elif family == "heteroscedastic":
        likelihood, y = HeteroscedasticGaussian(), torch.from_numpy(rng.normal(size=(n, 1)))
        intercepts, matrices = EYE[:2, :2], [EYE[:2, :1]] * d
    else:
        categorical = family == "categorical"
        likelihood = Categorical() if categorical else Gaussian(0.7, normalized=False)
        y = torch.from_numpy(rng.integers(0, 3, n)) if categorical else torch.from_numpy(rng.normal(size=(n, 3)))
        intercepts, matrices = layout(kind, d)
    output_map = OutputMap.of_columns(intercepts, matrices)
    table = torch.from_numpy(x)
    if "sparse" in kinds:
        design = SparseDesign(sp.csr_matrix(x), intercept=output_map.intercept, standardize=True)
    else:
        standard = DenseDesign(table, intercept=output_map.intercept, standardize=True)
        center = torch.where(output_map.can_center(), standard.center, 0.0)
        design = DenseDesign(table, intercept=output_map.intercept, moments=(center, standard.scale))
    return LinearObjective(
        design,
        likelihood,
        y,
        output_map,
        weights=torch.from_numpy(rng.integers(1, 4, n) * 0.7) if "weights" in kinds else None,
        offset=torch.from_numpy(rng.normal(size=(n, likelihood.n_outputs(y) if family != "categorical" else 3)))
        if "offset" in kinds
        else None,
        l2=draw(st.sampled_from([1e-3, 1e-1, 1.0])),
    )


def close(found, expected, rtol=1e-8):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * scale)


@settings(max_examples=150, deadline=None)
@given(objectives())
def test_value_gradient_and_hessian_are_those_of_all_columns_in_the_span(objective):
    space = RowSpace.of(objective)
    if space is None:
        widest = max(g.n_columns for g in objective.output_map.groups)
        first = int(objective.output_map.intercept)
        constant = not any(bool(block.features()[first:].any()) for block in objective.design.blocks(1))
        assert widest <= objective.n_rows + 1 or constant
        return
    small, g = space.objective, torch.Generator().manual_seed(0)
    assert small.n_parameters < objective.n_parameters
    at, u, v = (0.3 * torch.randn(small.n_parameters, generator=g, dtype=torch.float64) for _ in range(3))
    theta, up, vp = space.back(torch.stack([at, u, v]))
    close(space.into(theta), at)
    close(torch.tensor(objective.value(theta)), torch.tensor(small.value(at)))
    close(objective.evaluate(theta, None).gradient @ up, small.evaluate(at, None).gradient @ u)
    close(up @ objective.hessian(theta).mv(vp), u @ small.hessian(at).mv(v))
    close(up @ objective.hessian(theta, "expected").mv(vp), u @ small.hessian(at, "expected").mv(v))


@settings(max_examples=60, deadline=None)
@given(objectives())
def test_the_optimum_is_that_of_all_columns(objective):
    space = RowSpace.of(objective)
    assume(space is not None and objective.likelihood.concave)
    # a class that no row has sends its intercept to minus infinity
    assume(objective.y.ndim > 1 or bool((torch.bincount(objective.y, minlength=3) > 0).all()))
    assume(objective.y.ndim == 1 or bool(objective.y.any()))
    start = torch.zeros(objective.n_parameters, dtype=torch.float64)
    direct = newton(objective, start, tol=1e-13)
    found = newton(space.objective, space.into(start), tol=1e-13)
    assume(direct.converged)
    outputs = [objective.predictors(theta) for theta in (space.back(found.theta), direct.theta)]
    if objective.likelihood.differences_only:
        outputs = [f - f.mean(0) for f in outputs]
    close(*outputs)
    if not objective.likelihood.differences_only or objective.output_map.basis.shape[1] < 3:
        close(space.back(found.theta), direct.theta)
    assert found.value == pytest.approx(direct.value, rel=1e-12)


def rows(n, d, spread, seed=0):
    """Rows whose singular values fall from 1 to ``spread``."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(d, n, generator=g, dtype=torch.float64))[0]
    return u * torch.logspace(0, np.log10(spread), n, dtype=torch.float64) @ v.mT


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
def test_the_basis_keeps_its_digits_where_rows_are_nearly_dependent(spread):
    x = rows(20, 70, spread)
    basis = RowBasis.of(DenseDesign(x, intercept=False), slice(0, 70))
    assert (basis.frame is None) == (spread > 1e-4)  # the product of rows has the square of the condition number
    directions = basis.combine(torch.eye(20, dtype=torch.float64)) @ x
    close(directions @ directions.mT, torch.eye(20, dtype=torch.float64), rtol=3e-9)
    close(basis.coordinates() @ directions, x, rtol=1e-12)
    exact = torch.linalg.svd(x, full_matrices=False)[2]
    close(directions.mT @ directions, exact.mT @ exact, rtol=1e-8)


def test_copied_rows_leave_a_basis_of_the_others():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 40, generator=g, dtype=torch.float64)[torch.tensor([0, 1, 1, 2, 3, 4, 4, 4, 5, 6])]
    basis = RowBasis.of(DenseDesign(x, intercept=True, standardize=True), slice(0, 40))
    assert basis.rank == 6  # seven distinct rows, centered
    x = x - x.mean(0)
    close(basis.coordinates() @ (basis.combine(torch.eye(6, dtype=torch.float64)) @ x), x, rtol=1e-12)


def test_constant_columns_alone_have_no_row_space():
    x = torch.ones(4, 9, dtype=torch.float64)
    assert RowBasis.of(DenseDesign(x, intercept=True, standardize=True), slice(0, 9)) is None


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_products_of_rows_are_those_of_the_centered_table(n):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 700, generator=g, dtype=torch.float64) + 3.0
    design = DenseDesign(x, intercept=True, standardize=True)
    centered = x - x.mean(0)
    close(design.row_products(slice(0, 700)), centered @ centered.mT, rtol=1e-13)
    some = torch.tensor([3, 5, 699])
    close(design.row_products(some), centered[:, some] @ centered[:, some].mT, rtol=1e-13)
    sparse = SparseDesign(sp.csr_matrix(torch.where(x > 3.5, x, 0.0).numpy()), intercept=True, standardize=True)
    kept = torch.where(x > 3.5, x, 0.0)
    kept = torch.where((kept != 0).all(0), kept - kept.mean(0), kept)
    close(sparse.row_products(slice(0, 700)), kept @ kept.mT, rtol=1e-13)
    close(sparse.row_products(some), kept[:, some] @ kept[:, some].mT, rtol=1e-13)
