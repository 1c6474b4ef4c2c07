"""The categorical likelihood: digits at saturation, memory, weights, supports."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raphson import _errors
from raphson.likelihoods import Categorical

DTYPE = torch.float64


def _exact(logits, y):
    """Value, gradient and probabilities at 60 digits."""
    with mpmath.workdps(60):
        terms = [mpmath.exp(mpmath.mpf(v) - mpmath.mpf(max(logits))) for v in logits]
        total = mpmath.fsum(terms)
        p = [t / total for t in terms]
        others = mpmath.fsum(t for k, t in enumerate(p) if k != y)
        gradient = [-others if k == y else p[k] for k in range(len(p))]
        value = -mpmath.log1p(-others) if others < 0.5 else -mpmath.log(p[y])
        return float(value), [float(g) for g in gradient], [float(v) for v in p]


@pytest.mark.parametrize("y", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "logits",
    [
        [40.0, 0.0, 1.0, -3.0],
        [700.0, 0.0, 650.0, -5.0],
        [1e4, -1e4, 1e4 - 30.0, 0.0],
        [1e4, 1e4, 1e4, 1e4 - 1e-3],
        [-1e4, -1e4 - 60.0, -1e4 - 70.0, -2e4],
        [1e-9, 0.0, -1e-9, 1e-3],
    ],
)
def test_saturated_logits_keep_relative_accuracy(logits, y):
    f, label = torch.tensor([logits], dtype=DTYPE), torch.tensor([y])
    value, gradient, p = _exact(logits, y)
    exact = torch.tensor(gradient, dtype=DTYPE)
    row = torch.nn.functional.one_hot(label, 4).double()
    assert Categorical().nll(f, label).item() == pytest.approx(value, rel=1e-13, abs=1e-300)
    torch.testing.assert_close(Categorical().gradient(f, label)[0], exact, rtol=1e-13, atol=1e-300)
    torch.testing.assert_close(Categorical().derivatives(f, label).gradient[0], exact, rtol=1e-13, atol=1e-300)
    torch.testing.assert_close(Categorical().mean(f)[0], torch.tensor(p, dtype=DTYPE), rtol=1e-13, atol=1e-300)
    # a one-hot row of probabilities is the label, and its value keeps the digits too
    assert Categorical().nll(f, row).item() == pytest.approx(value, rel=1e-13, abs=1e-300)
    torch.testing.assert_close(Categorical().gradient(f, row)[0], exact, rtol=0, atol=3e-16)


def test_a_masked_class_does_no_harm():
    f = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 0.0, 1.0]], dtype=DTYPE)
    y = torch.tensor([2, -100])
    at = Categorical().derivatives(f, y)
    expected = torch.tensor([[0.26894142137, 0.0, -0.26894142137], [0.0, 0.0, 0.0]], dtype=DTYPE)
    torch.testing.assert_close(at.gradient, expected)
    assert at.nll[1] == 0
    assert at.hessian is not None
    assert bool(torch.isfinite(at.hessian.to_dense()).all())


class _Allocations(TorchDispatchMode):
    """Sizes of the new tensors that operations return: those that share memory with no input."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in inputs:
                self.sizes.append(t.numel())
        return out


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("call", "arrays"),
    [
        (lambda lik, f, y: lik.nll(f, y), 1),
        (lambda lik, f, y: lik.gradient(f, y), 1),
        (lambda lik, f, y: lik.hessian(f, y), 1),
        (lambda lik, f, y: lik.derivatives(f, y, None), 1),
        (lambda lik, f, y: lik.derivatives(f, y), 2),
        (lambda lik, f, y: lik.mean(f), 1),
        (lambda lik, f, y: lik.sample(f), 2),
    ],
)
def test_memory_is_one_array_of_the_size_of_the_outputs_for_each_result(call, arrays, turned):
    n, k = 50, 40
    f = torch.randn(k, n, dtype=DTYPE).mT if turned else torch.randn(n, k, dtype=DTYPE)
    y = torch.randint(k, (n,))
    with _Allocations() as made:
        result = call(Categorical(), f, y)
    large = [size for size in made.sizes if size > 3 * n]
    assert large == [n * k] * arrays
    for t in tree_leaves(result):
        if isinstance(t, torch.Tensor) and t.shape == f.shape:
            assert t.stride() == f.stride()


def test_the_hessian_is_laid_out_as_the_outputs():
    f = torch.randn(5, 7, dtype=DTYPE).mT
    y = torch.tensor([0, 1, 2, 3, 4, -100, 0])
    for hessian in (Categorical().hessian(f, y), Categorical().derivatives(f, y).hessian):
        assert hessian is not None
        assert hessian.diag.stride() == f.stride()
        assert hessian.low_rank.data_ptr() == hessian.diag.data_ptr()


def test_targets_can_be_mapped_over():
    f = torch.randn(4, dtype=DTYPE)
    lik = Categorical(torch.tensor([1.0, 2.0, 3.0, 4.0]), label_smoothing=0.1)
    each = vmap(lambda y: lik.gradient(f, y))(torch.arange(4))
    torch.testing.assert_close(each, lik.gradient(f.expand(4, 4), torch.arange(4)))


def test_a_row_of_counts_is_that_many_rows():
    f = torch.tensor([[0.3, -1.0, 0.8]], dtype=DTYPE)
    counts = torch.tensor([[2.0, 0.0, 3.0]], dtype=DTYPE)
    rows, labels = f.expand(5, 3), torch.tensor([0, 0, 2, 2, 2])
    torch.testing.assert_close(Categorical().nll(f, counts)[0], Categorical().nll(rows, labels).sum())
    torch.testing.assert_close(Categorical().gradient(f, counts)[0], Categorical().gradient(rows, labels).sum(0))
    many = Categorical().hessian(rows, labels).to_dense().sum(0)
    torch.testing.assert_close(Categorical().hessian(f, counts).to_dense()[0], many)
    expected = -torch.distributions.Multinomial(5, logits=f[0]).log_prob(counts[0]) + torch.tensor(10.0).log()
    torch.testing.assert_close(Categorical().nll(f, counts)[0], expected.double(), rtol=1e-6, atol=0)


def test_the_exponential_family_form_is_the_likelihood():
    f = torch.randn(3, 4, 5, dtype=DTYPE)
    y = torch.randint(5, (3, 4))
    lik = Categorical()
    t = lik.statistic(y, 5)
    assert t is not None
    partition, at = lik.log_partition(f), lik.derivatives(f, y)
    torch.testing.assert_close(partition.nll - (t * f).sum(-1), at.nll)
    torch.testing.assert_close(partition.gradient - t, at.gradient)
    assert partition.hessian is not None and at.hessian is not None
    torch.testing.assert_close(partition.hessian.to_dense(), at.hessian.to_dense())
    assert lik.log_partition(f, hessian=False).hessian is None
    y[0, 0] = -100
    assert lik.statistic(y, 5) is None
    assert lik.statistic(torch.softmax(f, -1), 5) is None
    assert Categorical(torch.ones(5)).statistic(y.clamp(min=0), 5) is None
    assert Categorical(label_smoothing=0.1).statistic(y.clamp(min=0), 5) is None


def test_weight_is_the_class_weight_and_zero_where_ignored():
    y = torch.tensor([[0, 2], [9, 1]])
    w = torch.tensor([0.5, 1.5, 2.5])
    weighted = Categorical(w, ignore_index=9, label_smoothing=0.3).weight(y)
    torch.testing.assert_close(weighted, torch.tensor([[0.5, 2.5], [0.0, 1.5]], dtype=DTYPE))
    plain = Categorical(ignore_index=9).weight(y)
    torch.testing.assert_close(plain, torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=DTYPE))
    assert Categorical(w).weight(torch.rand(4, 3)) is None


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_integer_type(kind):
    f = torch.randn(2, 3, dtype=DTYPE)
    labels = torch.tensor([1, 0])
    torch.testing.assert_close(Categorical().nll(f, labels.to(kind)), Categorical().nll(f, labels))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (
            torch.tensor([0, 1, 3, -1]),
            r"row 2 is 3, .* integer from 0 to 2 or -100, which is ignored.* 2 of 4",
        ),
        (torch.tensor([[0, 1], [2, -7]]), r"row 1, position 1 is -7"),
        (torch.tensor([[0.5, 0.5, 0.0], [1.5, -0.5, 0.0]]), r"row 1, position 1 is -0.5, .* non-negative"),
        (torch.tensor([[0.5, torch.nan, 0.0]]), r"row 0, position 1 is nan"),
        (torch.tensor([0.0, 1.0]), r"shape \(2,\) .* 3 classes"),
        (torch.tensor([[0.5, 0.5]]), r"shape \(1, 2\) .* 3 classes"),
    ],
)
def test_check_names_the_first_bad_row(y, words):
    with pytest.raises(_errors.InputError, match=words):
        Categorical().check(y, 3)


def test_check_accepts_what_is_in_the_support():
    Categorical().check(torch.tensor([0, 2, -100]), 3)
    Categorical(ignore_index=255).check(torch.tensor([0, 255]), 3)
    Categorical().check(torch.tensor([[0.2, 0.8, 0.0], [3.0, 0.0, 4.0]]), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Categorical(torch.tensor([1.0, -1.0])),
        lambda: Categorical(torch.tensor([1.0, torch.nan])),
        lambda: Categorical(torch.ones(2, 2)),
        lambda: Categorical(label_smoothing=1.5),
        lambda: Categorical(torch.ones(4)).check(torch.tensor([0]), 3),
        lambda: Categorical().nll(torch.zeros(4, 3), torch.tensor([0, 1])),
        lambda: Categorical().gradient(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long)),
        lambda: Categorical().hessian(torch.zeros(4, 3), torch.zeros(4, 2)),
    ],
)
def test_what_cannot_be_used_is_refused(make):
    with pytest.raises(_errors.InputError):
        make()


def test_sample_has_the_probabilities_of_the_model():
    f = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=DTYPE)
    n = 40_000
    drawn = Categorical().sample(f.expand(n, 4), torch.Generator().manual_seed(1))
    p = torch.softmax(f, -1)
    frequency = torch.bincount(drawn, minlength=4) / n
    assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all())


def test_the_unweighted_information_bounds_by_half():
    """Bohning (1992): diag p - p p^T <= (1/2)(I - 11^T/K), attained by two equal classes."""
    f = torch.tensor([[0.0, 0.0, -60.0], [1.0, 2.0, 3.0]], dtype=DTYPE)
    gap = (torch.eye(3, dtype=DTYPE) - 1 / 3) / 2 - Categorical().fisher(f).to_dense()
    assert float(torch.linalg.eigvalsh(gap).min()) >= -1e-15
    largest = torch.linalg.eigvalsh(Categorical().fisher(f).to_dense()).max(-1).values
    assert float(largest[0]) == pytest.approx(Categorical().hessian_bound, rel=1e-14)
