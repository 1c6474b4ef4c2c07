"""What data leave open, and bad input: a ``VectorGLM`` names it."""

from __future__ import annotations

import numpy as np
import pytest

from raphson import (
    Bernoulli,
    Beta,
    CollinearityWarning,
    Gamma,
    HeteroscedasticGaussian,
    InputError,
    NegativeBinomial,
    NotEstimableError,
    Ordinal,
    Poisson,
    SeparationWarning,
    VectorGLM,
)

from .vector_tables import COUNTS, LEVELS, OVER, POSITIVE, REAL, SHARE, N, X, coef, errors

# what the data do not determine ---------------------------------------------------------------------------------------


def test_a_column_of_one_parameter_may_repeat_that_of_another():
    tables = {"mean": X, "log_scale": X[["a"]].rename(columns={"a": "copy of a"})}
    model = VectorGLM(HeteroscedasticGaussian()).fit(tables, REAL)
    plain = VectorGLM(HeteroscedasticGaussian()).fit({"mean": X, "log_scale": X[["a"]]}, REAL)
    assert model.collinearity_ is None
    np.testing.assert_allclose(coef(model), coef(plain), rtol=1e-6)


def test_collinear_columns_leave_predictions_and_estimable_contrasts():
    wide = X.assign(twice=2 * X["a"] + X["b"])
    with pytest.warns(CollinearityWarning, match="twice"):
        model = VectorGLM(NegativeBinomial()).fit(wide, OVER)
    plain = VectorGLM(NegativeBinomial()).fit(X, OVER)
    np.testing.assert_allclose(model.predict(wide), plain.predict(X), rtol=1e-6)
    frame = model.summary().to_frame()["std_err"]
    assert frame.isna().sum() == 3 and frame[("log_mean", "c")] == pytest.approx(errors(plain)[3], rel=1e-6)
    labels = list(frame.index)
    contrast = np.zeros(len(labels))
    contrast[labels.index(("log_mean", "a"))], contrast[labels.index(("log_mean", "twice"))] = 1.0, 2.0
    test = model.wald_test(contrast)
    assert test.statistic == pytest.approx((coef(plain)[1] / errors(plain)[1]) ** 2, rel=1e-5)
    assert model.df_model_ == plain.df_model_


@pytest.mark.parametrize(
    ("likelihood", "y", "named"),
    [
        (Poisson(), np.where(X["a"] > 1, 0, COUNTS), "empty"),
        (Ordinal(4), np.where(X["a"] > 1, 3, LEVELS), "empty"),
    ],
    ids=["poisson", "ordinal"],
)
def test_infinite_estimates_are_refused_and_the_others_kept(likelihood, y, named):
    table = X.assign(empty=(X["a"] > 1).astype(float))[["b", "c", "empty"]]
    with pytest.warns(SeparationWarning, match="no finite maximum likelihood estimate") as caught:
        model = VectorGLM(likelihood).fit(table, y)
    assert named in str(caught[0].message)
    assert model.solution_.status.name == "DIVERGING"
    # in the limit the other coefficients are those of the rows that are not separated
    rest = table["empty"] == 0
    found, alone = model.estimates().to_frame(), VectorGLM(likelihood).fit(table.loc[rest, ["b", "c"]], y[rest])
    assert found[found["coef"].isna()].index.get_level_values(1).tolist() == [named]
    expected = alone.estimates().to_frame()
    kept = found.dropna(subset=["coef"]).loc[expected.index]
    np.testing.assert_allclose(kept.to_numpy(float), expected.to_numpy(float), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        model.confint(method="profile").loc[expected.index].to_numpy(float),
        alone.confint(method="profile").to_numpy(float),
        rtol=1e-6,
        atol=1e-9,
    )
    assert np.isfinite(model.predict(table)).all()
    assert VectorGLM(likelihood, l2=1e-2).fit(table, y).solution_.converged


@pytest.mark.filterwarnings("ignore")
def test_no_overdispersion_to_estimate_is_refused_by_name():
    model = VectorGLM(NegativeBinomial()).fit(X, np.tile([2, 3], N // 2))
    with pytest.raises(NotEstimableError, match="of log_dispersion"):
        model.standard_errors()
    assert "of log_dispersion" in str(model.summary())


def test_separated_yes_and_no_names_the_column():
    y = (X["a"] > 0).astype(float)
    with pytest.warns(SeparationWarning, match="'a'"):
        model = VectorGLM(Bernoulli()).fit(X, y)
    assert model.separation_.kind == "complete"


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorGLM(Poisson).fit(X, COUNTS), r"pass an instance, Poisson\(\)"),
        (lambda: VectorGLM(Poisson()).fit(X, COUNTS - 5), "row .* is -"),
        (lambda: VectorGLM(Poisson()).fit(X, np.where(np.arange(N) == 7, np.nan, COUNTS)), "missing in row 7"),
        (lambda: VectorGLM(Beta()).fit(X, np.where(np.arange(N) == 3, 1.0, SHARE)), "row 3"),
        (lambda: VectorGLM(Poisson()).fit(X, ["a"] * N), "row 0 is 'a'"),
        (lambda: VectorGLM(Poisson()).fit(X, COUNTS[:-1]), "399 rows"),
        (lambda: VectorGLM(Poisson(), constraints={"z": "own"}).fit(X, COUNTS), "column 'z'"),
        (lambda: VectorGLM(Gamma(), constraints="scale").fit(X, POSITIVE), "no parameter called 'scale'"),
        (lambda: VectorGLM(Gamma(), constraints=np.eye(3)).fit(X, POSITIVE), "each of the 2 outputs"),
        (lambda: VectorGLM(Gamma(), constraints=np.ones((2, 2))).fit(X, POSITIVE), "linearly dependent"),
        (lambda: VectorGLM(Gamma(), constraints="own").fit({"log_mean": X}, POSITIVE), "leave out constraints"),
        (lambda: VectorGLM(Gamma()).fit({"mean": X}, POSITIVE), "no parameter called 'mean'"),
        (lambda: VectorGLM(Gamma()).fit({}, POSITIVE), "empty dictionary"),
        (lambda: VectorGLM(Gamma(), solver="sgd").fit(X, POSITIVE), "Solver 'sgd'"),
        (lambda: VectorGLM(Gamma()).fit(X, POSITIVE, offset=np.ones((N, 3))), "offset"),
    ],
)
def test_bad_input_is_one_clear_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_predicting_with_other_tables():
    model = VectorGLM(HeteroscedasticGaussian()).fit({"mean": X, "log_scale": X[["a"]]}, REAL)
    with pytest.raises(InputError, match="no table for the parameter 'log_scale'"):
        model.predict({"mean": X})
    with pytest.raises(InputError, match="2 columns, but was fitted with 3"):
        model.predict({"mean": X[["a", "b"]], "log_scale": X[["a"]]})
    np.testing.assert_array_equal(model.predict(X), model.predict({"mean": X, "log_scale": X[["a"]]}))
