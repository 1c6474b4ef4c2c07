"""Certificates are right or undecided: known inertia, saddles, structure, and what Lanczos may say."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import raphson as rp
from raphson._errors import InputError
from raphson.diagnose import Everywhere, Subject
from raphson.linear import gram_matrix

EXACT = [1.0, 2.0, -1.0, -3.0, 2.0**-20, -(2.0**-20), 2.0**-40, -(2.0**-40)]
"""Entries whose products with small whole numbers are exact; 2^-40 is a relative gap of 1e-12."""


def with_inertia(values, seed):
    """``L D L^T`` without any rounding: by Sylvester's law its inertia is that of D."""
    n = len(values)
    g = np.random.default_rng(seed)
    lower = np.tril(g.integers(-1, 2, (n, n)), -1).astype(float) + np.eye(n)
    order = g.permutation(n)
    matrix = (lower @ np.diag(values) @ lower.T)[np.ix_(order, order)]
    exact = [
        [sum(int(a) * int(v * 2**40) * int(b) for a, v, b in zip(p, values, q, strict=True)) for q in lower]
        for p in lower
    ]
    whole = np.array([[entry / 2**40 for entry in row] for row in exact])[np.ix_(order, order)]
    assert np.array_equal(matrix, whole)
    return torch.from_numpy(matrix)


@settings(max_examples=200, deadline=None)
@example(values=[1.0, 2.0, -3.0], seed=0, powers=[0, 49, 0, 0, 0, 0, 0, 0], scaled=True)  # all rows have largest 2^49
@given(
    values=st.lists(st.sampled_from(EXACT), min_size=2, max_size=8),
    seed=st.integers(0, 10**6),
    powers=st.lists(st.integers(-60, 60), min_size=8, max_size=8),
    scaled=st.booleans(),
)
def test_known_inertia_is_found_or_undecided_never_wrong(values, seed, powers, scaled):
    matrix = with_inertia(values, seed)
    if scaled:
        scale = torch.tensor([2.0**p for p in powers[: len(values)]], dtype=torch.float64)
        matrix = scale[:, None] * matrix * scale
    found = rp.diagnose(rp.Dense(matrix))
    negative, positive = sum(v < 0 for v in values), sum(v > 0 for v in values)
    assert found.inertia.negative <= negative and found.inertia.positive <= positive
    assert sum(found.inertia) == len(values)
    if min(abs(v) for v in values) >= 1:
        assert found.inertia == (negative, 0, positive)
        assert found.convex == ("not convex" if negative else "strongly convex")
    elif negative:
        assert found.convex in ("not convex", "undecided")
    else:
        assert found.convex in ("strongly convex", "undecided")


def test_gaps_of_1e_12_are_mostly_decided():
    decided = 0
    for seed in range(100):
        sign = 1 if seed % 2 else -1
        found = rp.diagnose(rp.Dense(with_inertia([1.0, 2.0, sign * 2.0**-40], seed)))
        assert found.convex in ("undecided", "strongly convex" if sign > 0 else "not convex")
        decided += found.convex != "undecided"
    assert decided >= 90


def saddle(seed):
    g = np.random.default_rng(seed)
    n = int(g.integers(2, 7))
    q = np.linalg.qr(g.normal(size=(n, n)))[0]
    values = 10.0 ** g.uniform(-3, 3, n)
    values[0] = -(10.0 ** g.uniform(-17, 1)) * values[1:].max()
    scale = 10.0 ** g.uniform(-6, 6, n) if seed % 3 == 0 else np.ones(n)
    matrix = scale[:, None] * ((q * values) @ q.T) * scale
    return torch.from_numpy((matrix + matrix.T) / 2), float(values[0] / values[1:].max())


def check_saddles(seeds):
    hidden = 0
    for seed in seeds:
        matrix, relative = saddle(seed)
        found = rp.diagnose(rp.Dense(matrix), method="lanczos" if seed % 5 == 0 else "dense")
        if relative < -1e-14:  # below, rounding of the entries may have made it positive
            assert found.convex in ("not convex", "undecided"), seed
        if found.convex == "not convex":
            v = [Fraction(float(entry)) for entry in found.witness]
            rows = [[Fraction(float(entry)) for entry in row] for row in matrix]
            exact = sum(a * entry * b for a, row in zip(v, rows, strict=True) for entry, b in zip(row, v, strict=True))
            assert exact < 0 and found.witness_curvature < 0
            assert abs(float(exact) - found.witness_curvature) <= 1e-9 * max(
                abs(float(exact)), float(matrix.abs().max())
            )
        elif relative < -1e-8 and seed % 3:
            hidden += 1
    assert hidden == 0


def test_a_saddle_is_never_called_convex():
    check_saddles(range(600))


@pytest.mark.nightly
def test_a_saddle_is_never_called_convex_in_10000_draws():
    check_saddles(range(10_000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_within_the_rounding_of_the_element_type_has_no_sign(dtype):
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    x[:, 11] = x[:, 0] + x[:, 1]
    gram = (x.mT @ x / 200).to(dtype)
    found = rp.diagnose(rp.Dense(gram))
    assert found.inertia.negative == 0 and found.inertia.zero >= 1 and found.convex == "undecided"


def test_zeros_that_are_exact_are_convex():
    assert rp.diagnose(rp.Diagonal(torch.tensor([1.0, 0.0, 2.0]))).convex == "convex"
    found = rp.diagnose(rp.Dense(torch.zeros(3, 3)))
    assert (found.convex, found.inertia) == ("convex", (0, 3, 0))
    assert np.isnan(found.step_size)


def test_null_directions_are_named():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x[:, :1] + x[:, 1:2], 1e6 * x[:, 3:4]], 1)
    labels = ("a", "b", "c", "d", "a+b", "d in other units")
    found = rp.diagnose(rp.Dense(x.mT @ x / 100, labels=labels))
    assert found.inertia == (0, 2, 4)
    names = {frozenset(name for name, _ in direction.terms) for direction in found.null_directions}
    assert frozenset({"a", "b", "a+b"}) in names
    for direction in found.null_directions:
        assert float((x @ direction.vector).norm()) < 1e-6 * float((x * direction.vector).norm())
    assert found.condition == np.inf


def test_numbers_agree_with_dense_linear_algebra():
    g = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64))[0]
    values = torch.linspace(0.5, 8.0, 30, dtype=torch.float64)
    matrix = (q * values) @ q.mT
    found = rp.diagnose(rp.Dense(matrix))
    assert found.smallest == pytest.approx(0.5) and found.largest == pytest.approx(8.0)
    assert found.condition == pytest.approx(16.0) and found.trace == pytest.approx(float(values.sum()))
    assert found.logdet == pytest.approx(float(values.log().sum()))
    torch.testing.assert_close(matrix @ found.smallest_vector, 0.5 * found.smallest_vector)
    # Polyak's pair contracts both ends of the spectrum alike
    root = np.sqrt(np.array([0.5, 8.0]))
    assert found.step_size == pytest.approx(4 / root.sum() ** 2)
    assert found.momentum == pytest.approx(((root[1] - root[0]) / root.sum()) ** 2)
    rate = rp.suggest_learning_rate(rp.Dense(matrix))
    assert (rate.value, rate.momentum) == (found.step_size, found.momentum)
    theta, before = torch.ones(30, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
    for _ in range(60):
        theta, before = theta - rate.value * (matrix @ theta) + rate.momentum * (theta - before), theta
    assert float(theta.norm()) < 1e-9


def test_lanczos_bounds_hold_with_their_probability():
    values = torch.linspace(1.0, 3.0, 3000, dtype=torch.float64)
    op = rp.Implicit(lambda v: values * v, 3000, torch.float64)
    found = rp.diagnose(op)
    assert found.convex == "strongly convex" and found.inertia is None
    assert "1e-06" in found.guarantee and "Kuczynski" in found.guarantee
    assert found.smallest - found.smallest_error <= 1.0 <= found.smallest
    assert found.largest <= 3.0 <= found.largest + found.largest_error
    assert abs(found.trace - float(values.sum())) < 5 * found.trace_error
    hidden = values.clone()
    hidden[7] = -1e-4  # in the bulk's shadow, where 5 steps do not see it
    found = rp.diagnose(rp.Implicit(lambda v: hidden * v, 3000, torch.float64), steps=5)
    assert found.convex in ("undecided", "not convex")
    found = rp.diagnose(rp.Implicit(lambda v: (hidden - 1.5) * v, 3000, torch.float64))
    assert found.convex == "not convex"
    assert float(found.witness @ ((hidden - 1.5) * found.witness)) < 0


def test_ridge_softmax_of_a_network_is_strongly_convex_with_the_constant():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g, dtype=torch.float64), torch.randint(3, (50,), generator=g)
    net = torch.nn.Linear(4, 3).double()
    found = rp.diagnose(rp.Objective(net, rp.Categorical(), (x, y), l2=0.25))
    assert found.convex == "strongly convex" and found.smallest >= 0.25 - found.smallest_error
    assert found.everywhere.convex == "strongly convex" and found.everywhere.constant == 0.25
    assert "0.25" in found.everywhere.sentence
    assert found.gauss_newton.largest == pytest.approx(found.largest)
    unpenalized = rp.diagnose(rp.Objective(net, rp.Categorical(), (x, y)))
    # one logit too many: five directions (four weights and the bias, the same for all classes) change nothing
    assert unpenalized.inertia == (0, 5, 10)
    assert unpenalized.convex == "convex" and unpenalized.everywhere.convex == "convex"
    assert all(len(direction.terms) == 3 for direction in unpenalized.null_directions)


@pytest.fixture(scope="module")
def classes():
    g = np.random.default_rng(0)
    x = g.normal(size=(150, 3)) * [1.0, 20.0, 0.1] + [0.0, 50.0, 1.0]
    f = ((x - x.mean(0)) / x.std(0)) @ g.normal(size=(3, 3))
    return x, (f + g.gumbel(size=f.shape)).argmax(1)


@pytest.mark.parametrize("reference", ["first", "last", None])
def test_ridge_softmax_of_an_estimator(classes, reference):
    x, y = classes
    model = rp.MultinomialLogisticRegression(l2=0.05, reference=reference, fit_intercept=False).fit(x, y)
    found = rp.diagnose(model)
    assert found.convex == found.everywhere.convex == "strongly convex"
    assert found.everywhere.constant == 0.05
    assert found.smallest >= 0.05 - found.smallest_error
    assert found.inertia == (0, 0, 6) and len(found.labels) == 9
    with_intercept = rp.diagnose(rp.MultinomialLogisticRegression(l2=0.05, reference=reference).fit(x, y))
    assert with_intercept.convex == "strongly convex"  # here, but not everywhere by the same constant
    assert with_intercept.everywhere.convex == "convex"
    assert "not along the unpenalized (intercept)" in with_intercept.everywhere.sentence
    assert 2 < with_intercept.effective_dimension < 8


def test_the_hessian_of_an_estimator_is_below_the_bound_of_bohning(classes):
    x, y = classes
    model = rp.MultinomialLogisticRegression().fit(x, y)
    subject = model.diagnosed()
    columns = torch.from_numpy(np.column_stack([np.ones(len(x)), x]))
    gram = columns.mT @ columns / len(x)
    # (1/2) (I - 11^T/K) (x) X^T X, in orthonormal contrasts of the classes half the Gram matrix for each
    bound = torch.kron(torch.eye(2, dtype=torch.float64) / 2, gram)
    gap = torch.linalg.eigvalsh(bound - subject.operator.to_dense())
    assert float(gap[0]) > -1e-9 * float(gap[-1])
    assert rp.diagnose(model).largest <= 0.5 * float(torch.linalg.eigvalsh(gram)[-1])
    objective = model._fitted.objective
    assert float(torch.linalg.eigvalsh(gram_matrix(objective))[0]) > 0


def test_collinear_columns_of_an_estimator_are_named(classes):
    x, y = classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rp.VectorGLM(rp.Poisson()).fit(np.column_stack([x, x[:, 0] - x[:, 2]]), y)
    found = rp.diagnose(model)
    assert found.inertia.zero == 1 and found.convex == "convex"
    (direction,) = found.null_directions
    assert {name.split(" of ")[0] for name, _ in direction.terms} == {"x0", "x2", "x3"}


def test_a_gaussian_is_the_same_everywhere(classes):
    x, _ = classes
    found = rp.diagnose(rp.VectorGLM(rp.Gaussian()).fit(x, x[:, 0]))
    assert found.everywhere.convex == "strongly convex"
    assert found.everywhere.constant == pytest.approx(found.smallest)


def test_mean_and_scale_of_a_gaussian_are_indefinite_and_the_direction_is_shown():
    y = torch.tensor([[1.5]], dtype=torch.float64)
    params = {"mean": torch.zeros(1, dtype=torch.float64), "scale": torch.ones(1, dtype=torch.float64)}

    def model(p, x):
        return torch.cat([p["mean"], p["scale"]]).expand(len(x), 2)

    objective = rp.Objective(
        model, rp.HeteroscedasticGaussian("mean_scale"), (torch.ones(1, 1).double(), y[0]), params=params
    )
    found = rp.diagnose(objective)
    # determinant -(1 + r^2) / s^4 with r = 1.5 and s = 1
    assert found.convex == "not convex" and found.inertia == (1, 0, 1)
    assert found.smallest * found.largest == pytest.approx(-(1 + 1.5**2))
    hessian = torch.tensor([[1.0, 3.0], [3.0, -1 + 3 * 1.5**2]], dtype=torch.float64)
    assert float(found.witness @ hessian @ found.witness) == pytest.approx(found.smallest)
    assert "mean" in str(found) and "Negative curvature" in str(found)
    assert found.everywhere.convex in ("not convex", "undecided")


def test_a_network_says_that_nothing_is_known_everywhere():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    data = torch.randn(40, 2).double(), torch.randint(2, (40,))
    found = rp.diagnose(rp.Objective(net, rp.Categorical(), data))
    assert found.everywhere.convex in ("undecided", "not convex")
    assert found.gauss_newton.convex == "convex"
    rate = rp.suggest_learning_rate(rp.Objective(net, rp.Categorical(), data))
    assert rate.momentum == 0 and rate.value == pytest.approx(1 / max(abs(found.smallest), found.largest), rel=1e-6)


def test_it_prints_and_becomes_json(classes):
    model = rp.MultinomialLogisticRegression().fit(*classes)
    found = rp.diagnose(model)
    page = str(found)
    for word in ("Multinomial", "strongly convex", "0 negative, 0 zero, 8 positive", "Step size"):
        assert word in page
    assert json.loads(found.to_json())["inertia"] == [0, 0, 8]


def test_what_cannot_be_diagnosed_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="Wrap a matrix as rp.Dense"):
        rp.diagnose(np.eye(2))
    with pytest.raises(InputError, match="definiteness_at"):
        rp.diagnose(rp.Dense(torch.eye(2).expand(3, 2, 2)))
    with pytest.raises(InputError, match="NaN"):
        rp.diagnose(rp.Dense(torch.full((2, 2), torch.nan)))
    with pytest.raises(InputError, match="'dense' or 'lanczos'"):
        rp.diagnose(rp.Dense(torch.eye(2)), method="lanzcos")
    with pytest.raises(InputError, match="sets no learning rate"):
        rp.suggest_learning_rate(rp.Dense(torch.zeros(2, 2)))


def test_posteriors_and_estimated_networks_are_judged_by_their_loss():
    torch.manual_seed(0)
    x = torch.randn(30, 2, dtype=torch.float64)
    net = torch.nn.Linear(2, 1, dtype=torch.float64)
    post = rp.laplace(net, rp.Gaussian(), (x, x.sum(1, keepdim=True)), structure="dense")
    found = rp.diagnose(post)
    assert found.convex == "strongly convex"
    assert found.largest == pytest.approx(rp.diagnose(post.objective).largest)
    mlp = rp.BayesianMLP(rp.Gaussian(), (3,)).fit(x.numpy(), x[:, 0].numpy())
    assert rp.diagnose(mlp).inertia == rp.diagnose(mlp.posterior_.objective).inertia


def test_options_of_a_diagnosis_are_checked():
    operator = rp.Dense(torch.eye(3))
    with pytest.raises(rp.InputError, match="steps is 0"):
        rp.diagnose(operator, method="lanczos", steps=0)
    with pytest.raises(rp.InputError, match="generator is a int"):
        rp.diagnose(operator, generator=3)


def test_what_structure_proves_is_no_negative_eigenvalue_of_rounded_sums():
    ones = torch.ones(3, 3, dtype=torch.float64)
    rounded = rp.Dense(ones - 1e-11 * torch.eye(3, dtype=torch.float64))
    proved = Everywhere("convex", 0.0, "Everywhere: convex.")
    found = rp.diagnose(Subject(rp.Dense(ones), "sum", proved, congruent=rounded))
    assert found.convex == "convex"
    assert tuple(found.inertia) == (0, 2, 1)
    assert len(found.null_directions) == 2
    assert tuple(rp.diagnose(rounded).inertia) == (2, 0, 1)  # by itself it has them
