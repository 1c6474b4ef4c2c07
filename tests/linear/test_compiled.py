"""The compiled softmax against the same objective in PyTorch and against automatic differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raphson import Binomial, Categorical, Gamma, Poisson
from raphson._native import _module
from raphson.data import DenseDesign
from raphson.linear import LinearObjective, OutputMap, _compiled
from tests.instruction_sets import each_instruction_set as each_instruction_set
from tests.linear.objectives import linear_objective, through_pytorch

from .compiled_cases import make, plain

pytestmark = pytest.mark.usefixtures("each_instruction_set")
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
    assert objective.compiled is not None
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
    assert objective.compiled is not None
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
    assert objective.compiled is not None
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
    assert objective.compiled is not None
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
    x = objective.compiled.table.x.mT.abs().contiguous()  # sums that do not cancel
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
    assert objective.compiled is not None
    slow = through_pytorch(objective)
    theta = torch.randn(objective.n_parameters, dtype=torch.float64, generator=generator)
    at, expected = objective.evaluate(theta), slow.evaluate(theta)
    size = float(torch.cat([f.abs().sum(0) for _, f in objective._predictions(theta)]).mean())
    assert abs(at.value - expected.value) <= 2e-15 * size + 1e-15
    torch.testing.assert_close(at.gradient, expected.gradient, rtol=1e-12, atol=1e-14 * float(x.abs().mean()))
    f = torch.cat([f for _, f in objective._predictions(theta)], 1)
    kept = objective.compiled.at(theta, torch.float64).p
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
        assert objective.compiled is not None
        objective.__dict__["_linear_term"] = torch.zeros(objective.n_parameters, dtype=torch.float64), 0.0
        assert math.isnan(objective.evaluate(torch.ones(objective.n_parameters, dtype=torch.float64)).value)
        x[row] = 1.0
