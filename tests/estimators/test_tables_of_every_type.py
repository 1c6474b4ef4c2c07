"""Columns of pandas' own types, of Arrow's and of objects give the same model; dates and damaged tables give none."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import raphson as rp

N = 120
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"x": RNG.normal(size=N), "g": RNG.choice(list("abc"), N), "i": RNG.integers(0, 5, N)})
FRAME = FRAME.assign(b=FRAME.x > 0, k=RNG.poisson(2, N), j=RNG.integers(0, 3, N))
FORMULA = "k ~ x + g + b + C(j) + bs(i, df=3) + I(x**2):b"
KINDS = {
    "nullable": FRAME.convert_dtypes(),
    "arrow": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "categories of arrow": FRAME.assign(g=FRAME.g.astype("string[pyarrow]").astype("category")),
    "unsigned": FRAME.assign(x=FRAME.x.astype("Float64"), i=FRAME.i.astype("UInt8")),
    "objects": FRAME.astype(object),
    "sparse": FRAME.assign(x=pd.arrays.SparseArray(FRAME.x), i=pd.arrays.SparseArray(FRAME.i)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_type_of_a_column_changes_nothing(kind):
    plain = rp.VectorGLM("poisson", formula=FORMULA).fit(FRAME)
    model = rp.VectorGLM("poisson", formula=FORMULA).fit(KINDS[kind])
    assert str(model.summary()) == str(plain.summary())
    np.testing.assert_allclose(plain.predict(KINDS[kind]), plain.predict(FRAME), rtol=1e-12)


DATES = pd.date_range("2020", periods=N)
NO_NUMBERS = {
    "dates": pd.DataFrame({"t": DATES}),
    "durations": pd.DataFrame({"t": DATES - DATES[0]}),
    "array of dates": DATES.to_numpy()[:, None],
    "objects": pd.DataFrame({"t": [datetime.date(2020, 1, 1)] * N}),
    "complex": pd.DataFrame({"t": np.arange(N) + 1j}),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_refused(kind):
    table = NO_NUMBERS[kind]
    with pytest.raises(rp.InputError):
        rp.VectorGLM("poisson").fit(table, FRAME.k)
    if kind != "objects":
        with pytest.raises(rp.InputError, match="needs real numbers"):
            rp.VectorGLM("gaussian").fit(FRAME[["x"]], np.asarray(table)[:, 0])
    if isinstance(table, pd.DataFrame):
        with pytest.raises(rp.InputError, match="'t'"):
            rp.VectorGLM("poisson", formula="k ~ t").fit(FRAME.assign(t=table["t"]))


@pytest.mark.parametrize("value", [np.nan, None, pd.NA, np.inf, 1j, "text"])
@pytest.mark.parametrize("formula", [None, "k ~ x * g"])
def test_values_of_variables_are_numbers(value, formula):
    model = rp.VectorGLM("poisson", formula=formula)
    model = model.fit(FRAME[["x"]], FRAME.k) if formula is None else model.fit(FRAME)
    for ask in (model.margins, model.predictions):
        with pytest.raises(rp.InputError, match="'x'"):
            ask(at={"x": value})


def _table():
    return sp.csr_array(RNG.random((N, 40)) * (RNG.random((N, 40)) < 0.2))


DAMAGE = {
    "column beyond": lambda x: x.indices.__setitem__(3, 10**6),
    "column below": lambda x: x.indices.__setitem__(3, -5),
    "start beyond": lambda x: x.indptr.__setitem__(5, 10**6),
    "start back": lambda x: x.indptr.__setitem__(5, 0),
    "first start": lambda x: x.indptr.__setitem__(0, 3),
    "values": lambda x: setattr(x, "data", x.data[:10]),
    "starts": lambda x: setattr(x, "indptr", x.indptr[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", ["csr", "csc", "bsr"])
@pytest.mark.parametrize("limit", [0, 2**18])
def test_a_damaged_sparse_table_is_refused(damage, form, limit, monkeypatch):
    monkeypatch.setattr("raphson.estimators.input._rows._FEW_ENTRIES", limit)
    model = rp.VectorGLM("poisson", l2=0.1).fit(_table(), FRAME.k)
    x = _table().asformat(form)
    DAMAGE[damage](x)
    for use in (lambda: rp.VectorGLM("poisson", l2=0.1).fit(x, FRAME.k), lambda: model.predict(x)):
        with pytest.raises(rp.InputError, match="The sparse table is damaged"):
            use()


def test_entries_after_the_last_row_do_not_count():
    x = _table()
    room = x.copy()
    room.data, room.indices = np.r_[x.data, [9.0, np.nan]], np.r_[x.indices, [10**6, -5]]
    fits = [rp.VectorGLM("poisson", l2=0.1).fit(table, FRAME.k) for table in (x, room)]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)
    np.testing.assert_array_equal(fits[0].predict(x), fits[0].predict(room))


def test_coordinates_beyond_the_table_are_refused():
    x = _table().tocoo()
    x.col[3] = 10**6
    with pytest.raises(rp.InputError, match="entry 3 is in column 1000000, and there are 40"):
        rp.VectorGLM("poisson").fit(x, FRAME.k)


@pytest.mark.parametrize("limit", [0, 2**18])
@pytest.mark.parametrize("written", [True, False])
def test_duplicates_are_added_up_and_the_table_left_alone(limit, written, monkeypatch):
    monkeypatch.setattr("raphson.estimators.input._rows._FEW_ENTRIES", limit)
    columns = RNG.integers(0, 40, 6 * N)
    columns[1::2] = columns[::2]
    x = sp.csr_array((RNG.random(6 * N), columns, np.arange(0, 6 * N + 1, 6)), shape=(N, 40))
    before = [part.copy() for part in (x.data, x.indices, x.indptr)]
    for part in (x.data, x.indices, x.indptr):
        part.setflags(write=written)
    model = rp.VectorGLM("poisson", l2=0.1).fit(x, FRAME.k)
    of_array = rp.VectorGLM("poisson", l2=0.1).fit(x.toarray(), FRAME.k)
    np.testing.assert_allclose(model.coef_, of_array.coef_, atol=1e-9)
    np.testing.assert_allclose(model.predict(x), of_array.predict(x.toarray()), rtol=1e-9)
    for part, was in zip((x.data, x.indices, x.indptr), before, strict=True):
        np.testing.assert_array_equal(part, was)


@pytest.mark.parametrize(
    ("shape", "classes", "sparse"),
    [
        ((500, 300, 0.05), 50, True),
        ((500, 300, 0.05), 10, True),
        ((500, 300, 0.3), 10, False),
        ((500, 60, 0.05), 50, False),
        ((60, 300, 0.05), 50, False),
        ((8000, 10, 0.05), 3, False),
        ((8000, 40, 0.05), 9, True),
        ((8000, 40, 0.3), 9, False),
        ((8000, 40, 0.3), 3, True),
    ],
)
def test_small_sparse_tables_are_made_dense_where_that_is_faster(shape, classes, sparse):
    """Those of few columns or many entries, and tiny ones; the fit is the same."""
    rng = np.random.default_rng(0)
    x, y = sp.random(*shape, format="csr", random_state=rng), np.arange(shape[0]) % classes
    model = rp.MultinomialLogisticRegression(l2=0.1).fit(x, y)
    assert sp.issparse(model._training.x) is sparse
    other = rp.MultinomialLogisticRegression(l2=0.1).fit(x.toarray(), y)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-6)
