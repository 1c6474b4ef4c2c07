"""The fast paths: the same answers as the plain ones, whatever the solver, the threads or the size."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import make_classification

from raphson._errors import RaphsonWarning, TooLargeError
from raphson.data import DenseDesign
from raphson.estimators import MultinomialLogisticRegression, _inference
from raphson.estimators.fit import _covariance, _fit
from raphson.likelihoods import Categorical
from raphson.linear import LinearObjective
from tests.linear.objectives import linear_objective


def overlapping(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    f = x @ rng.normal(size=(d, k)) / np.sqrt(d)
    return x, (f + rng.gumbel(size=f.shape)).argmax(1)


@pytest.mark.parametrize("l2", [0.0, 1e-4])
@pytest.mark.parametrize("shape", [(12_000, 6, 3), (9_000, 9, 9), (700, 30, 20)], ids=str)
def test_auto_agrees_with_plain_newton(shape, l2):
    """Growing subsets, held factors and single precision change the way, not the end."""
    x, y = overlapping(*shape)
    if l2 == 0.0 and shape[2] == 20:
        x = x[:, :5]  # few columns, so that there is an optimum
    plain = MultinomialLogisticRegression(solver="newton", l2=l2, tol=1e-10).fit(x, y)
    auto = MultinomialLogisticRegression(l2=l2).fit(x, y)
    assert auto.solution_.converged
    np.testing.assert_allclose(auto.predict_proba(x), plain.predict_proba(x), atol=1e-8)
    if l2 == 0.0:
        expected = plain.standard_errors().to_numpy(dtype=float)
        # the Hessian is the one that made the last step, of about 1e-8
        np.testing.assert_allclose(auto.standard_errors().to_numpy(dtype=float), expected, rtol=1e-7)


def test_a_warm_start_is_not_led_away_by_subsets(monkeypatch):
    """From an earlier optimum no part of the rows is fitted first, and at most the certifying step is taken."""
    x, y = overlapping(30_000, 9, 9)
    model = MultinomialLogisticRegression(l2=1e-4, tol=1e-6, warm_start=True)
    taken = []
    take = LinearObjective.take
    monkeypatch.setattr(LinearObjective, "take", lambda self, index: taken.append(len(index)) or take(self, index))
    model.fit(x, y)
    assert taken and model.n_iter_ > 0
    coef, taken[:] = model.coef_.copy(), []
    model.fit(x, y)
    assert not taken and model.n_iter_ == 0
    np.testing.assert_allclose(model.coef_, coef, atol=1e-12)


def test_newton_cg_agrees_with_plain_newton():
    x, y = overlapping(2_000, 12, 6)
    plain = MultinomialLogisticRegression(solver="newton", l2=1e-3, tol=1e-10).fit(x, y)
    found = MultinomialLogisticRegression(solver="newton-cg", l2=1e-3, tol=1e-10).fit(x, y)
    np.testing.assert_allclose(found.coef_, plain.coef_, atol=1e-8)


_THREADS = """
import sys, numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
from raphson.estimators import MultinomialLogisticRegression
rng = np.random.default_rng(0)
x = rng.normal(size=(9000, 8)); f = x @ rng.normal(size=(8, 9)); y = (f + rng.gumbel(size=f.shape)).argmax(1)
for l2 in (0.0, 1e-4):
    model = MultinomialLogisticRegression(l2=l2).fit(x, y)
    again = MultinomialLogisticRegression(l2=l2).fit(x, y)
    assert (model.coef_ == again.coef_).all() and (model.intercept_ == again.intercept_).all()
    sys.stdout.buffer.write(model.coef_.tobytes())
"""


def test_results_do_not_depend_on_threads_and_repeat_bit_for_bit():
    runs = [
        np.frombuffer(subprocess.run([sys.executable, "-c", _THREADS, n], capture_output=True, check=True).stdout)
        for n in ("1", "2")
    ]
    assert len(runs[0]) == 2 * 9 * 8
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("reference", ["first", 2, None])
def test_standard_errors_of_some_columns_need_no_covariance_matrix(monkeypatch, reference):
    x, y = overlapping(600, 6, 4)
    model = MultinomialLogisticRegression(reference=reference).fit(x, y)
    wanted = ["x1", "(intercept)", "x4"]
    dense = model.standard_errors(columns=wanted)
    monkeypatch.setattr(_covariance, "DENSE_COVARIANCE", 10)
    monkeypatch.setattr(_inference, "DENSE_COVARIANCE", 10)
    model = MultinomialLogisticRegression(reference=reference).fit(x, y)
    some = model.standard_errors(columns=wanted)
    assert list(some.index) == list(dense.index)
    np.testing.assert_allclose(some.to_numpy(dtype=float), dense.to_numpy(dtype=float), rtol=1e-6)
    with pytest.raises(TooLargeError, match="GB; ask for some columns"):
        model.standard_errors()
    assert "GB" in str(model.summary())


def test_wide_sparse_table_end_to_end():
    """20000 rows, 10^5 columns, most of them never seen: fit, predict and selected standard errors, no dense copy."""
    rng = np.random.default_rng(0)
    informative = sp.random(20_000, 60, density=0.2, format="csr", random_state=rng)
    x = sp.hstack([informative, sp.csr_matrix((20_000, 100_000 - 60))], format="csr")
    f = np.asarray(informative @ rng.normal(size=(60, 2)))
    y = (f + rng.gumbel(size=f.shape)).argmax(1)
    small = MultinomialLogisticRegression().fit(informative, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MultinomialLogisticRegression(l2=1e-6).fit(x, y)
    assert model.solution_.converged and model.coef_.shape == (2, 100_000)
    assert np.abs(model.coef_[:, 60:]).max() < 1e-9
    ridge = MultinomialLogisticRegression(l2=1e-6).fit(informative, y)
    np.testing.assert_allclose(model.coef_[:, :60], ridge.coef_, atol=1e-5)
    assert (model.predict(x[:100]) == ridge.predict(informative[:100])).all()
    assert np.isfinite(small.standard_errors(columns=["x3"]).to_numpy(dtype=float)).all()


def test_a_large_fit_says_so_before_it_starts(monkeypatch):
    monkeypatch.setattr(_fit, "_LARGE_BYTES", 100)
    x, y = make_classification(100, 5, random_state=0)
    with pytest.warns(RaphsonWarning, match="GB of working memory"):
        MultinomialLogisticRegression(l2=0.1).fit(x, y)


def test_thousands_of_classes_need_no_array_of_n_by_k_by_k():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3_000, 5)), rng.permutation(np.arange(3_000) % 1_000)
    model = MultinomialLogisticRegression(l2=1e-2, tol=1e-6).fit(x, y)
    assert model.solution_.converged and model.coef_.shape == (1_000, 5)
    assert model.predict(x).shape == (3_000,)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_memory_beside_the_data_stays_small():
    """Peak memory of a fit to 300000 x 20, K = 3 (48 MB of data), measured in a process of its own."""
    code = (
        "import numpy as np\n"
        "from raphson.estimators import MultinomialLogisticRegression as M\n"
        "rng = np.random.default_rng(0); x = rng.normal(size=(300_000, 20)); y = rng.integers(0, 3, 300_000)\n"
        "M(l2=1e-3, max_iter=10).fit(x[:5000], y[:5000])\n"
        "def memory(name):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024\n"
        "with open('/proc/self/clear_refs', 'w') as f: f.write('5')\n"
        "before = memory('VmRSS')\n"
        "M(l2=1e-3).fit(x, y)\n"
        "print(memory('VmHWM') - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert float(out.stdout) < 200.0


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_two_classes_are_one_logit_in_the_same_coefficients(l2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    objective = linear_objective(
        DenseDesign(x, standardize=True),
        Categorical(),
        torch.randint(2, (40,), generator=generator),
        n_outputs=2,
        weights=torch.rand(40, generator=generator, dtype=torch.float64),
        offset=torch.randn(40, 2, generator=generator, dtype=torch.float64),
        l2=l2,
        reference=1,
    )
    one = objective.reduced
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    at, other = objective.evaluate(theta), one.evaluate(theta)
    assert other.value == pytest.approx(at.value, rel=1e-13)
    torch.testing.assert_close(other.gradient, at.gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(other.hessian.to_dense(), at.hessian.to_dense(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_log_likelihood_is_summed_by_blocks_of_rows(weighted, monkeypatch):
    """No array of all rows is made, and the sum is that of all rows at once."""
    x, y = overlapping(500, 4, 3)
    w = np.random.default_rng(0).integers(0, 3, 500) if weighted else None
    offset = np.random.default_rng(1).normal(size=(500, 3))
    model = MultinomialLogisticRegression().fit(x, y, sample_weight=w, offset=offset)
    sizes, plain = [], Categorical.nll

    def nll(self, f, y):
        sizes.append(f.shape[0])
        return plain(self, f, y)

    monkeypatch.setattr("raphson.estimators._base._BLOCK_OUTPUTS", 100)
    monkeypatch.setattr(Categorical, "nll", nll)
    found = model.loglik_
    assert max(sizes) <= 33 and sum(sizes) == (500 if w is None else np.count_nonzero(w))
    expected = np.log(model.predict_proba(x, offset=offset)[np.arange(500), y])
    assert found == pytest.approx(float(expected.sum() if w is None else w @ expected), rel=1e-12)
