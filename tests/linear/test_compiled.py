"""The compiled softmax against the same objective in PyTorch and against automatic differentiation."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raphson import Bernoulli, Binomial, Categorical, Gamma, Poisson, _native
from raphson._native import _module
from raphson.data import DenseDesign
from raphson.linear import LinearObjective, OutputMap, _compiled
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective, through_pytorch

pytestmark = pytest.mark.usefixtures("each_instruction_set")


def make(n, d, c, *, weighted=False, reference=True, logistic=False, l2=0.01, seed=0):
    """Return an objective of c outputs with d columns beside the intercept, and a point."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator) * 3 + 1
    y = torch.randint(2 if logistic else c, (n,), generator=generator)
    objective = linear_objective(
        DenseDesign(x, standardize=True),
        Bernoulli() if logistic else Categorical(),
        y[:, None].double() if logistic else y,
        n_outputs=1 if logistic else c,
        weights=torch.rand(n, dtype=torch.float64, generator=generator) + 0.5 if weighted else None,
        l2=l2,
        reference=None if logistic or reference is False else c - 1 if reference is True else reference,
    )
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=generator)
    return objective, theta


def plain(objective):
    """Return the definition of the objective as a function, for automatic differentiation."""
    x = objective.design.standardized(slice(0, objective.n_rows))
    logistic = isinstance(objective.likelihood, Bernoulli)
    w = torch.ones(objective.n_rows, dtype=torch.float64) if objective.weights is None else objective.weights

    def value(theta: Tensor) -> Tensor:
        coef = theta.view(objective.output_map.basis.shape[1], -1)
        f = coef @ x
        if logistic or objective.output_map.left_out is not None:
            at = 1 if logistic else objective.output_map.left_out
            f = torch.cat([f[:at], torch.zeros(1, x.shape[1], dtype=torch.float64), f[at:]])
        label = 1 - objective.y[:, 0].long() if logistic else objective.y
        nll = torch.logsumexp(f, 0) - f.gather(0, label[None])[0]
        penalty = (objective.ridge.matrices[0] @ coef * coef * objective.ridge.columns).sum() / 2
        return (w * nll).sum() / w.sum() + penalty

    return value


CASES = {
    "relative": {"c": 3},
    "relative to another": {"c": 4, "reference": 1},
    "symmetric": {"c": 4, "reference": False},
    "weighted": {"c": 6, "weighted": True},
    "two classes": {"c": 2},
    "logistic": {"c": 1, "logistic": True},
    "logistic, weighted": {"c": 1, "logistic": True, "weighted": True},
    "many classes": {"c": 9, "n": 700},
    "no penalty": {"c": 5, "l2": 0.0},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_gradient_and_hessian_are_those_of_the_definition(case):
    """Value, gradient, dense Hessian, products and blocks agree with torch.func on the plain definition."""
    objective, theta = make(**({"n": 300, "d": 5} | case))
    assert objective._compiled is not None
    at, value = objective.evaluate(theta), plain(objective)
    expected = torch.func.hessian(value)(theta)
    assert at.value == pytest.approx(float(value(theta)), rel=1e-14)
    torch.testing.assert_close(at.gradient, torch.func.grad(value)(theta), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(at.hessian.to_dense(), expected, rtol=1e-11, atol=1e-14)
    v = torch.linspace(-1, 1, theta.shape[0], dtype=torch.float64)
    torch.testing.assert_close(at.hessian.mv(v), expected @ v, rtol=1e-11, atol=1e-13)
    c, d = objective.output_map.basis.shape[1], objective.design.n_columns
    blocks = expected.view(c, d, c, d).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(at.hessian.blocks(), blocks, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_a_gamma_model_is_an_exponential_of_the_other_sign(weighted, l2):
    """With a given dispersion and a log link: value but for a constant, gradient, observed and expected Hessian."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(300, 4, dtype=torch.float64, generator=generator)
    y = torch.rand(300, dtype=torch.float64, generator=generator) * 5 + 0.01
    w = torch.rand(300, dtype=torch.float64, generator=generator) if weighted else None
    design = DenseDesign(x, standardize=True)
    objective = LinearObjective(design, Gamma(dispersion=0.7), y, OutputMap.own(1, 5, True), weights=w, l2=l2)
    assert objective._compiled is not None
    slow = through_pytorch(objective)
    theta, start = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(2))
    at, expected = objective.evaluate(theta), slow.evaluate(theta)
    change = expected.value - slow.value(start)
    assert at.value - objective.value(start) == pytest.approx(change, rel=1e-11)
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-11, atol=1e-13)
    assert at.norm == pytest.approx(expected.norm, rel=1e-11)
    torch.testing.assert_close(at.hessian.to_dense(), expected.hessian.to_dense(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(at.hessian.mv(start), expected.hessian.mv(start), rtol=1e-11, atol=1e-13)
    for same in (objective.evaluate(theta, "expected"), slow.evaluate(theta, "expected")):
        information = objective.hessian(theta, "expected").to_dense()
        torch.testing.assert_close(same.hessian.to_dense(), information, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_single_precision_curvature_is_the_double_one_rounded(case):
    """Single precision keeps about seven digits of the dense form, of blocks and of products."""
    objective, theta = make(**({"n": 300, "d": 5} | case))
    double, single = (o.hessian(theta) for o in (objective, objective.with_curvature(torch.float32)))
    size = double.to_dense().abs().max()
    v = torch.linspace(-1, 1, theta.shape[0], dtype=torch.float64)
    for name, a, b in (
        ("dense", single.to_dense(), double.to_dense()),
        ("blocks", single.blocks(), double.blocks()),
        ("product", single.mv(v.float()), double.mv(v)),
    ):
        assert a.dtype == torch.float32, name
        assert float((a.double() - b).abs().max() / size) < 2e-6, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n, intercept, weighted", [(1, True, False), (259, True, True), (700, False, False)])
def test_rows_as_given_are_standardized_as_they_are_read(monkeypatch, n, intercept, weighted, dtype):
    """A table that is not copied gives the value, gradient, Hessian and products of its standardized columns."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n + 1, 7, dtype=torch.float64, generator=generator)[1:, :5] * 3 + 40  # strides are not D
    y = torch.randint(4, (n,), generator=generator)
    w = torch.rand(n, dtype=torch.float64, generator=generator) + 0.1 if weighted else None

    def make_objective():
        design = DenseDesign(x, intercept=intercept, standardize=n > 1)
        common = {"n_outputs": 4, "weights": w, "l2": 0.1, "reference": 3, "curvature_dtype": dtype}
        return linear_objective(design, Categorical(), y, **common)

    theta = torch.randn(make_objective().n_parameters, dtype=torch.float64, generator=generator)
    objective = make_objective()
    assert objective._compiled.table.factor is not None
    read = objective.evaluate(theta)
    monkeypatch.setattr(DenseDesign, "is_raw", False)
    objective = make_objective()
    assert objective._compiled.table.factor is None
    copied = objective.evaluate(theta)
    assert read.value == pytest.approx(copied.value, rel=1e-12)
    torch.testing.assert_close(read.gradient, copied.gradient, rtol=1e-10, atol=1e-12)
    # the norm, in the table's parameters: columns of mean 40 and scale 3, whose rounding is left out
    table = objective.table_gradient(read.gradient).abs().view(3, -1)[:, int(intercept) :]
    rounding = torch.hypot(objective.design.center, objective.design.scale) * 2.0**-46
    rest = torch.where(rounding > 1e-12, rounding, 0.0)
    slopes, ones = (table - rest).max(), read.gradient.view(3, -1)[:, : int(intercept)].abs()
    assert read.norm == pytest.approx(float(torch.cat([slopes[None], ones.flatten()]).max()), rel=1e-12)
    assert read.norm == pytest.approx(objective.gradient_norm(read.gradient), rel=1e-14)
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    v = torch.linspace(-1, 1, theta.shape[0], dtype=dtype)
    for f in (lambda h: h.to_dense(), lambda h: h.blocks(), lambda h: h.mv(v)):
        torch.testing.assert_close(f(read.hessian), f(copied.hessian), rtol=rtol, atol=rtol * 10)


def test_columns_too_small_for_a_reciprocal_are_divided():
    """A column of size 1e-310 is standardized as any other, by way of a copy."""
    x = torch.randn(80, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(80) % 3
    small = x * torch.tensor([1.0, 1e-310, 1.0], dtype=torch.float64)
    common = {"n_outputs": 3, "l2": 0.0, "reference": 2}
    scale = torch.tensor([1.0, 1e-310, 1.0], dtype=torch.float64)
    design = DenseDesign(small, moments=(torch.zeros(3, dtype=torch.float64), scale))
    theta = torch.linspace(-1, 1, 8, dtype=torch.float64)
    found = linear_objective(design, Categorical(), y, **common).evaluate(theta)
    expected = linear_objective(DenseDesign(x), Categorical(), y, **common).evaluate(theta)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_sums_over_a_table_by_targets(n, d, c, weighted):
    """The targets' linear term for any numbers of rows, columns and outputs, read by columns or by rows."""
    generator = torch.Generator().manual_seed(n)
    x, t = (torch.randn(size, n, dtype=torch.float64, generator=generator) for size in (d, c))
    w = torch.rand(n, dtype=torch.float64, generator=generator) if weighted else None
    expected = (t if w is None else t * w) @ x.mT
    columns, ones = _compiled.Table(x), torch.ones(d, dtype=torch.float64)
    rows = _compiled.Table(x.mT.contiguous(), 0.0 * ones, ones)
    for table in (columns, rows):
        torch.testing.assert_close(_compiled.adjoint(table, w, t), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 600), st.integers(0, 7), st.integers(2, 7), st.booleans(), st.booleans())
def test_any_shape_agrees_with_pytorch(n, d, c, weighted, reference):
    """Numbers of rows, columns and classes that fill no vector, no tile and no block agree with the calls."""
    objective, theta = make(n, d, c, weighted=weighted, reference=reference)
    ours, theirs = objective.evaluate(theta), through_pytorch(objective).evaluate(theta)
    assert ours.value == pytest.approx(theirs.value, rel=1e-13, abs=1e-13)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ours.hessian.to_dense(), theirs.hessian.to_dense(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_poisson_has_the_exponential_for_its_log_partition(weighted):
    """Value, gradient, Hessian and product of a Poisson model agree with torch.func; an overflow is not finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 6, dtype=torch.float64, generator=generator)
    y = torch.randint(5, (700, 1), generator=generator).double()
    w = torch.rand(700, dtype=torch.float64, generator=generator) if weighted else None
    objective = linear_objective(DenseDesign(x), Poisson(), y, n_outputs=1, weights=w, l2=0.01)
    theta = torch.randn(7, dtype=torch.float64, generator=generator)
    assert objective._compiled is not None
    each = torch.ones(700, dtype=torch.float64) if w is None else w

    def value(theta: Tensor) -> Tensor:
        f = theta[0] + x @ theta[1:]
        return (each * (f.exp() - y[:, 0] * f)).sum() / each.sum() + 0.005 * theta[1:].square().sum()

    at, expected = objective.evaluate(theta), torch.func.hessian(value)(theta)
    assert at.value == pytest.approx(float(value(theta)), rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(value)(theta), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(at.hessian.to_dense(), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(at.hessian.mv(theta), expected @ theta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.hessian.blocks()[0], expected, rtol=1e-12, atol=1e-13)
    assert objective.evaluate(theta * 1e4).value > 1e300
    assert not math.isfinite(objective.evaluate(theta * math.nan).norm)


def test_binomial_is_a_multiple_of_the_logistic():
    """With ten trials the log-partition function is ten times that of one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, dtype=torch.float64, generator=generator)
    y = torch.randint(11, (300, 1), generator=generator).double()
    objective = linear_objective(DenseDesign(x), Binomial(trials=10), y, n_outputs=1, l2=0.01)
    theta = torch.randn(5, dtype=torch.float64, generator=generator)
    assert objective._compiled is not None
    ours, theirs = objective.evaluate(theta), through_pytorch(objective).evaluate(theta)
    assert ours.value == pytest.approx(theirs.value, rel=1e-13)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.hessian.to_dense(), theirs.hessian.to_dense(), rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.integers(1, 12), st.integers(1, 7), st.integers(0, 3))
def test_sums_of_given_entries(n, d, q, gap):
    """Any number of rows, columns and entries, of both signs, with rows of the table apart in memory."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(d, n + gap, dtype=torch.float64, generator=generator)[:, :n]
    a = torch.randn(q, n, dtype=torch.float64, generator=generator)
    expected = torch.einsum("en,in,jn->eij", a, x, x)
    torch.testing.assert_close(_compiled.pair_sums(x, a), expected, rtol=1e-12, atol=1e-11)
    assert _compiled.is_built(x) and not _compiled.is_built(x.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_and_entries_of_any_size_count(dtype):
    """Weights of 1e-25 change no mean, and given entries of 1e-25 are not taken for zero."""
    objective, theta = make(300, 4, 5, weighted=True)
    expected = objective.with_curvature(dtype).hessian(theta).to_dense()
    tiny = objective.weights * 1e-25
    small = linear_objective(
        objective.design, Categorical(), objective.y, n_outputs=5, weights=tiny, l2=0.01, reference=4
    ).with_curvature(dtype)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(small.hessian(theta).to_dense(), expected, rtol=rtol, atol=rtol / 100)
    x = objective._compiled.table.x.mT.abs().contiguous()  # sums that do not cancel
    a = torch.rand(3, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(1e25 * _compiled.pair_sums(x, a * 1e-25), _compiled.pair_sums(x, a), rtol=1e-12, atol=0)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_for_several_threads_add_up(monkeypatch, parts):
    """However many parts the rows are cut into, some of them empty, the sums are the same to rounding."""
    objective, theta = make(1100, 4, 5, weighted=True)
    v = torch.linspace(-1, 1, theta.shape[0], dtype=torch.float64)
    one = objective.evaluate(theta)
    whole = [one.gradient, one.hessian.to_dense(), one.hessian.mv(v), one.hessian.blocks()]
    monkeypatch.setattr(_module, "threads", lambda multiplications, part: parts)
    several = objective.evaluate(theta)
    assert several.value == pytest.approx(one.value, rel=1e-14)
    again = [several.gradient, several.hessian.to_dense(), several.hessian.mv(v), objective.hessian(theta).blocks()]
    for a, b in zip(whole, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_saturated_predictions_are_exact(size):
    """At logits of 1e8 nothing overflows: value and gradient are those of the definition, the Hessian is finite."""
    objective, theta = make(300, 3, 4)
    theta = theta * size
    at = objective.evaluate(theta)
    assert at.value == pytest.approx(float(plain(objective)(theta)), rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(plain(objective))(theta), rtol=1e-10, atol=1e-12)
    expected = through_pytorch(objective).evaluate(theta).hessian.to_dense()
    torch.testing.assert_close(at.hessian.to_dense(), expected, rtol=1e-10, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.integers(1, 7),
    st.fixed_dictionaries({name: st.booleans() for name in ("weights", "intercept", "reference")}),
    st.integers(1, 3),
    st.integers(0, 999),
)
def test_rows_in_place_give_what_their_standardized_columns_do(n, d, c, options, parts, seed):
    """Many columns, read in place by one thread or several: value, gradient, norm and the targets' linear term."""
    generator = torch.Generator().manual_seed(seed)
    # strides are not D
    x = torch.randn(n, d + 3, dtype=torch.float64, generator=generator)[:, 1 : d + 1] * 3 + 40
    intercept, size = options["intercept"], d + options["intercept"]
    center = x.mean(0) if intercept else torch.zeros(d, dtype=torch.float64)
    design = DenseDesign(x, intercept=intercept, moments=(center, torch.full((d,), 2.0, dtype=torch.float64)))
    weights = torch.rand(n, dtype=torch.float64, generator=generator) if options["weights"] else None
    penalty = torch.tensor([1.0, -0.3 / c]).double(), torch.linspace(0.0, 1.0, size, dtype=torch.float64)
    rest = weights, *penalty, c, 1.0 / n, False
    given_rows = _native.LinearModel(x, center, design.scale.reciprocal(), intercept, *rest, True)
    columns = _native.LinearModel(design.standardized(slice(0, n)), None, None, False, *rest)
    theta, linear = torch.randn(2, c, size, dtype=torch.float64, generator=generator) / size
    units = torch.rand(3, size, dtype=torch.float64, generator=generator)
    t = torch.randn(c, n, dtype=torch.float64, generator=generator)
    with mock.patch.object(_module, "threads", lambda *_: parts):
        for dtype in (None, torch.float64, torch.float32):
            found, expected = (
                _native.Evaluator(model, linear, options["reference"], units).at(theta.view(-1), dtype)
                for model in (given_rows, columns)
            )
            assert found.value == pytest.approx(expected.value, rel=1e-12, abs=1e-12)
            assert found.norm == pytest.approx(expected.norm, rel=1e-10, abs=1e-10)
            torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-10)
            if dtype is not None:
                torch.testing.assert_close(found.p, expected.p, rtol=1e-6, atol=1e-10)
        found, expected = (_native.adjoint(model, t) for model in (given_rows, columns))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("c", [1, 3, 5])
def test_wide_tables_are_read_in_place_and_their_hessians_are_products(c):
    """More columns than a block in the cache has: value and gradient by automatic differentiation, the Hessian, too."""
    objective, theta = make(30, 9000, c, logistic=c == 1, reference=False)
    theta /= 100.0
    assert objective._compiled.table.in_place and not objective._compiled.table.has_hessians
    at, value, slow = objective.evaluate(theta, None), plain(objective), through_pytorch(objective)
    assert at.value == pytest.approx(float(value(theta)), rel=1e-13)
    torch.testing.assert_close(at.gradient, torch.func.grad(value)(theta), rtol=1e-11, atol=1e-13)
    assert at.norm == pytest.approx(slow.evaluate(theta, None).norm, rel=1e-10)
    product = torch.func.jvp(torch.func.grad(value), (theta,), (theta,))[1]
    torch.testing.assert_close(objective.evaluate(theta).hessian.mv(theta), product, rtol=1e-10, atol=1e-13)


def test_columns_with_large_means_are_not_read_in_place():
    """Sums that are centered afterwards would lose their digits."""
    x = torch.randn(60, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    for mean, read in ((10.0, True), (1e5, False)):
        objective = linear_objective(DenseDesign(x + mean, standardize=True), Categorical(), y, n_outputs=3, l2=0.1)
        assert (objective._compiled is not None) is read


def test_what_is_not_a_number_stays_so():
    """A coefficient that is not finite gives a value that is not finite, as a solver expects."""
    objective, theta = make(50, 2, 3)
    for bad in (math.nan, math.inf):
        broken = theta.clone()
        broken[1] = bad
        assert not math.isfinite(objective.evaluate(broken).value)


def test_other_models_go_by_pytorch(monkeypatch):
    """Offsets, references in the middle, weighted classes, soft targets and wide models are not compiled."""
    objective, _ = make(60, 3, 4)
    parts = {"n_outputs": 4, "l2": 0.1}
    assert objective._compiled is not None
    y = torch.nn.functional.one_hot(objective.y, 4).double()
    others = [
        linear_objective(objective.design, Categorical(), objective.y, offset=torch.zeros(60, 4).double(), **parts),
        linear_objective(objective.design, Categorical(class_weight=torch.ones(4)), objective.y, **parts),
        linear_objective(objective.design, Categorical(), y, **parts),
        linear_objective(objective.design, Bernoulli(), y, **parts),
    ]
    assert [other._compiled for other in others] == [None] * 4
    monkeypatch.setattr(_compiled, "_OUTPUTS_AND_COLUMNS", 5)
    assert make(60, 3, 4)[0]._compiled is None


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    """Where the compiled code is missing a fit goes through PyTorch and ends at the same coefficients."""
    from raphson import MultinomialLogisticRegression

    objective, _ = make(200, 3, 3)
    x, y = objective.design.x.numpy(), objective.y.numpy()
    compiled = MultinomialLogisticRegression().fit(x, y)
    monkeypatch.setattr(_module, "kernels", None)
    assert make(200, 3, 3)[0]._compiled is None
    plain_fit = MultinomialLogisticRegression().fit(x, y)
    torch.testing.assert_close(torch.tensor(compiled.coef_), torch.tensor(plain_fit.coef_), rtol=0, atol=1e-9)
    assert compiled.standard_errors().to_numpy() == pytest.approx(plain_fit.standard_errors().to_numpy(), rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("n", [1, 7, 255, 259, 700])
def test_outputs_of_any_size_have_the_value_and_probabilities_of_pytorch(c, n, weighted):
    """Far out, where exponentials of differences vanish, and with short last blocks; the sum to 1e-15 of its terms."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 1, dtype=torch.float64, generator=generator) * 10.0 ** torch.linspace(-3, 3, n)[:, None]
    y = torch.randint(c, (n,), generator=generator)
    w = torch.rand(n, dtype=torch.float64, generator=generator) + 0.5 if weighted else None
    objective = LinearObjective(
        DenseDesign(x, intercept=True), Categorical(), y, OutputMap.relative(c, c - 1, 2, True), weights=w, l2=0.1
    )
    assert objective._compiled is not None
    slow = through_pytorch(objective)
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=generator)
    at, expected = objective.evaluate(theta), slow.evaluate(theta)
    size = float(torch.cat([f.abs().sum(0) for _, f in objective._predictions(theta)]).mean())
    assert abs(at.value - expected.value) <= 2e-15 * size + 1e-15
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-12, atol=1e-14 * float(x.abs().mean()))
    f = torch.cat([f for _, f in objective._predictions(theta)], 1)
    kept = objective._compiled.at(theta, torch.float64).p
    torch.testing.assert_close(kept, torch.softmax(f[: kept.shape[0]], 0), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("c", [2, 3])
def test_what_is_no_number_stays_so(c):
    """An output that is not a number makes the value none, in the middle of a vector and in the last one."""
    x = torch.ones(300, 1, dtype=torch.float64)
    y = torch.arange(300) % c
    for row in (3, 299):
        x[row] = math.nan
        output_map = OutputMap.relative(c, c - 1, 2, True)
        objective = LinearObjective(DenseDesign(x, intercept=True), Categorical(), y, output_map, l2=0.1)
        assert objective._compiled is not None
        objective.__dict__["_linear_term"] = torch.zeros(objective.n_parameters, dtype=torch.float64), 0.0
        assert math.isnan(objective.evaluate(torch.ones(objective.n_parameters, dtype=torch.float64)).value)
        x[row] = 1.0


@pytest.mark.parametrize("cached", [False, True])
def test_a_table_read_in_place_has_the_hessian_of_pytorch(monkeypatch, cached):
    """Value and gradient by compiled code, the Hessian of the same point later, made once where it may be kept."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 60, dtype=torch.float64, generator=generator)
    y = torch.randint(2, (6000, 1), generator=generator).double()
    objective = LinearObjective(DenseDesign(x, standardize=True), Bernoulli(), y, OutputMap.own(1, 61, True), l2=0.1)
    assert objective.is_in_place and not objective._rows.table.has_hessians
    monkeypatch.setattr(LinearObjective, "_caches_output_hessians", lambda self: cached)
    slow = through_pytorch(objective)
    theta = torch.randn(61, dtype=torch.float64, generator=generator)
    with mock.patch.object(
        LinearObjective, "_recomputed", autospec=True, side_effect=LinearObjective._recomputed
    ) as made:
        at = objective.evaluate(theta)
        assert not made.called
        products = [at.hessian.mv(v) for v in torch.eye(61, dtype=torch.float64)[:3]]
        assert made.call_count == (1 if cached else 3)
    expected = slow.evaluate(theta)
    assert at.value == pytest.approx(expected.value, rel=1e-13)
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(at.hessian.to_dense(), expected.hessian.to_dense(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(torch.stack(products), expected.hessian.to_dense()[:3], rtol=1e-11, atol=1e-13)
