"""Published multinomial, binary and weighted fits, to the digits given."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.discrete.tests.results.results_discrete import Anes, Spector

from raphson.estimators import MultinomialLogisticRegression
from tests.published import fishing, housing, hsbdemo


def table(model):
    """Return coefficients and standard errors as (class, column) arrays without the reference."""
    k = len(model.classes_) - 1
    frame = model.summary().to_frame()
    return (frame[c].to_numpy(dtype=float).reshape(k, -1) for c in ("coef", "std_err"))


def test_anes96():
    data = sm.datasets.anes96.load_pandas()
    # Stata stored log population in single precision, and the published digits show it
    x, y = (
        data.exog[["logpopul", "selfLR", "age", "educ", "income"]].astype(np.float32),
        data.endog.to_numpy(),
    )
    model = MultinomialLogisticRegression(reference=0).fit(x, y)
    coef, se = table(model)
    assert model.solution_.converged and model.solution_.gradient_norm < 1e-8
    assert model.loglik_ == pytest.approx(-1461.922747312, abs=1e-8)
    assert model.loglik_null_ == pytest.approx(-1750.34670999, abs=1e-8)
    test = model.likelihood_ratio_test()
    assert (test.statistic, test.df) == (pytest.approx(576.8479253554, abs=1e-8), 30)
    assert model.pseudo_r2_.mcfadden == pytest.approx(0.1647810465387, abs=1e-12)
    assert model.aic_ == pytest.approx(2995.84549462, abs=1e-7)
    assert model.bic_ == pytest.approx(3170.45003661, abs=1e-7)
    first = [-0.37340167, -0.01153598, 0.29771435, -0.024945, 0.08249144, 0.00519655]
    last = [-12.105751, -0.14088069, 2.0700801, -0.00943265, 0.3219257, 0.10889408]
    np.testing.assert_allclose(coef[[0, 5]], [first, last], rtol=1e-6)
    se_first = [0.6298376313, 0.0342823657, 0.093626795, 0.0065248584, 0.0735865799, 0.0176336937]
    se_last = [1.059954821, 0.042138047, 0.1434089089, 0.0081338625, 0.0910979921, 0.025300888]
    np.testing.assert_allclose(se[[0, 5]], [se_first, se_last], rtol=1e-8)
    # every equation of Stata's table, as statsmodels ships it (columns, constant last; equations)
    published = Anes.mnlogit_basezero
    order = [5, 0, 1, 2, 3, 4]
    np.testing.assert_allclose(coef, np.asarray(published.params)[order].T, rtol=2e-6)
    np.testing.assert_allclose(se, np.asarray(published.bse)[order].T, rtol=1e-6)
    interval = model.confint()
    np.testing.assert_allclose(
        interval.to_numpy(dtype=float).reshape(6, 6, 2),
        np.asarray(published.conf_int).reshape(6, 6, 2)[:, order],
        rtol=1e-5,
        atol=1e-6,
    )


def test_hsbdemo():
    model = MultinomialLogisticRegression(reference="academic").fit(*hsbdemo())
    coef, se = table(model)
    assert -2 * model.loglik_ == pytest.approx(359.9635, abs=5e-5)
    assert -model.loglik_ == pytest.approx(179.981726, abs=1e-6)
    general, vocation = (
        [2.852198, -0.5332810, -1.1628226, -0.0579287],
        [5.218260, 0.2913859, -0.9826649, -0.1136037],
    )
    np.testing.assert_allclose(coef, [general, vocation], rtol=1e-3)
    errors = [[1.166441, 0.4437323, 0.5142196, 0.02141097], [1.163552, 0.4763739, 0.5955665, 0.02221996]]
    np.testing.assert_allclose(se, errors, rtol=1e-3)


def test_fishing():
    model = MultinomialLogisticRegression().fit(*fishing())
    coef, se = table(model)
    assert model.classes_[0] == "beach"
    assert model.loglik_ == pytest.approx(-1477.150569, abs=1e-6)
    np.testing.assert_allclose(coef[:, 0], [0.738920768, 1.341291443, 0.814150272], rtol=1e-7)
    np.testing.assert_allclose(coef[:, 1], [9.19063630e-5, -3.16398782e-5, -1.43402915e-4], rtol=1e-7)
    np.testing.assert_allclose(se[:, 0], [0.196730925, 0.194516707, 0.228631954], rtol=1e-7)
    np.testing.assert_allclose(se[:, 1], [4.06637e-5, 4.18463e-5, 5.32884e-5], rtol=1e-5)


def test_housing_with_frequency_weights_equals_repeated_rows():
    x, y, frequency = housing()
    model = MultinomialLogisticRegression().fit(x, y, sample_weight=frequency)
    coef, se = table(model)
    assert -2 * model.loglik_ == pytest.approx(3470.083866, abs=1e-6)
    medium = [-0.4192287, 0.4463959, 0.6649353, -0.4356887, 0.1313703, -0.6665705, 0.3608519]
    high = [-0.1387428, 0.7348632, 1.6126311, -0.7356317, -0.4079781, -1.4123277, 0.481827]
    np.testing.assert_allclose(coef, [medium, high], rtol=2e-6)  # the published digits stop at nnet's tolerance
    n = frequency.astype(int)
    repeated = MultinomialLogisticRegression().fit(x.loc[x.index.repeat(n)], np.repeat(y, n))
    coef_repeated, se_repeated = table(repeated)
    np.testing.assert_allclose(coef, coef_repeated, rtol=1e-9)
    np.testing.assert_allclose(se, se_repeated, rtol=1e-9)
    for kind in ("observed", "expected", "sandwich"):
        options = {"weights": "frequency"} if kind == "sandwich" else {}
        one = model.standard_errors(kind, **options).to_numpy(dtype=float)
        np.testing.assert_allclose(one, repeated.standard_errors(kind).to_numpy(dtype=float), rtol=1e-9)


def test_spector():
    data = sm.datasets.spector.load_pandas()
    # stored in single precision, too
    model = MultinomialLogisticRegression().fit(data.exog.astype(np.float32), data.endog)
    assert model.loglik_ == pytest.approx(-12.8896334653, abs=1e-9)
    coef, _ = table(model)
    np.testing.assert_allclose(coef[0], [-13.0213483, 2.82611297, 0.09515767, 2.37868773], rtol=1e-6)
    published = np.asarray(Spector.logit.cov_params)
    order = [3, 0, 1, 2]
    np.testing.assert_allclose(model.covariance().to_numpy(dtype=float), published[np.ix_(order, order)], rtol=1e-5)


def test_9_wald_test_of_the_identity_is_the_square_of_z():
    """statsmodels #8905: a table of coefficients that is not square must not be read in the wrong order."""
    x, y, frequency = housing()
    model = MultinomialLogisticRegression().fit(x, y, sample_weight=frequency)
    frame = model.summary().to_frame()
    p = len(frame)
    for i in range(p):
        test = model.wald_test(np.eye(p)[i : i + 1])
        assert test.statistic == pytest.approx(float(frame["z"].iloc[i]) ** 2, rel=1e-9)
    rows = model.wald_test(np.eye(p)).to_frame()
    assert list(rows.index) == list(frame.index)
    names = [("1", "infl_medium"), ("1", "infl_high"), ("2", "infl_medium"), ("2", "infl_high")]
    fitted = sm.MNLogit(
        np.repeat(y, frequency.astype(int)), sm.add_constant(x.loc[x.index.repeat(frequency.astype(int))])
    ).fit(disp=0)
    r = np.zeros((4, p))
    for i, j in enumerate([1, 2, 8, 9]):
        r[i, j] = 1.0
    expected = fitted.wald_test(r, scalar=True)
    assert model.wald_test(names).statistic == pytest.approx(float(expected.statistic), rel=1e-6)
