"""Tables, targets, weights, offsets and groups in other libraries' containers: the same numbers, or a clear refusal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch

import raphson as rp

N = 60
RNG = np.random.default_rng(0)
X = RNG.integers(-4, 5, (N, 3)) / 2.0  # exact in every type below
Y = RNG.integers(0, 2, N)
W = RNG.integers(1, 4, N).astype(float)
T = RNG.integers(-2, 3, N) / 4.0
G = np.repeat(np.arange(12.0), 5)
TENSOR = torch.from_numpy(X)
MODEL = rp.VectorGLM(rp.Poisson()).fit(X, Y)


def records() -> Any:
    made = np.zeros(N, dtype=[(name, ">f8") for name in "abc"])
    for name, column in zip("abc", X.T, strict=True):
        made[name] = column
    return made


def twice() -> torch.Tensor:
    """Return a table each of whose entries is given in two halves, which float32 and less would round."""
    half = TENSOR.to_sparse().coalesce()
    index, value = half.indices(), half.values() / 2
    return torch.sparse_coo_tensor(torch.cat([index, index], 1), torch.cat([value, value]), TENSOR.shape)


FRAME = pd.DataFrame(X, columns=list("abc"))
TABLES: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: TENSOR.bfloat16(),
    "float16": lambda: TENSOR.half(),
    "float8": lambda: TENSOR.to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(TENSOR.float(), 0.5, 0, torch.qint8),
    "graph": lambda: TENSOR.clone().requires_grad_() * 1.0,
    "parameter": lambda: torch.nn.Parameter(TENSOR.clone()),
    "negated": lambda: torch.complex(TENSOR * 0, -TENSOR).conj().imag,
    "coo": lambda: TENSOR.to_sparse(),
    "coo in parts": twice,
    "coo bfloat16": lambda: TENSOR.bfloat16().to_sparse(),
    "csr": lambda: TENSOR.to_sparse_csr(),
    "csc": lambda: TENSOR.float().to_sparse_csc(),
    "bsr": lambda: TENSOR.to_sparse_bsr((2, 1)),
    "bsc": lambda: TENSOR.to_sparse_bsc((2, 3)),
    "records": records,
    "recarray": lambda: records().view(np.recarray),
    "big-endian": lambda: X.astype(">f4"),
    "longdouble": lambda: X.astype(np.longdouble),
    "objects": lambda: X.astype(object),
    "arrow": lambda: pa.table(dict(zip("abc", X.T, strict=True))),
    "sparse about nan": lambda: FRAME.astype(pd.SparseDtype(float, np.nan)),
    "one sparse column": lambda: FRAME.astype({"b": pd.SparseDtype(float, 0.0)}),
    "decimals": lambda: FRAME.map(Decimal),
    "dok": lambda: sp.dok_array(X),
    "bsr of scipy": lambda: sp.coo_array(X).tobsr((2, 3)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_in_any_container(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UserWarning, DeprecationWarning))
        table = TABLES[kind]()
        np.testing.assert_allclose(MODEL.predict(table), MODEL.predict(X), rtol=1e-12)
        np.testing.assert_allclose(rp.VectorGLM(rp.Poisson()).fit(table, Y).coef_, MODEL.coef_, atol=1e-9)
        if np.ndim(table) == 1 or hasattr(table, "column_names"):
            assert list(rp.VectorGLM(rp.Poisson()).fit(table, Y).feature_names_in_) == list("abc")


def test_names_of_an_arrow_table_serve_a_formula() -> None:
    table = pa.table({"a": X[:, 0], "g": [str(v) for v in G], "y": Y})
    model = rp.VectorGLM("poisson", formula="y ~ a + g", l2=0.1).fit(table)
    assert model.score(table) == pytest.approx(model.score(table.to_pandas()))
    assert model.predict(table).shape == (N,)


VECTORS: dict[str, Callable[[Any], Any]] = {
    "bfloat16": lambda v: torch.from_numpy(v).bfloat16(),
    "graph": lambda v: torch.from_numpy(v).double().requires_grad_(),
    "sparse tensor": lambda v: torch.from_numpy(v).to_sparse(),
    "arrow": lambda v: pa.array(v),
    "arrow in parts": lambda v: pa.chunked_array([v[:20], v[20:]]),
    "nullable": lambda v: pd.Series(v).astype("Float64"),
    "big-endian": lambda v: v.astype(">f8"),
    "objects": lambda v: v.astype(object),
    "longdouble": lambda v: v.astype(np.longdouble),
}


def fits(values: dict[str, Any]) -> list[Any]:
    """Return what takes each kind of argument, at fit and after it."""
    y, w, t, g = (values[name] for name in "YWTG")
    model = rp.VectorGLM(rp.Poisson()).fit(X, y, w, t)
    classes = rp.MultinomialLogisticRegression().fit(X, y, w)
    return [
        *(model.coef_, model.predict(X, t), model.score(X, y, w, t), model.standard_errors(groups=g)),
        *(classes.coef_, classes.score(X, y, w), model.margins(groups=g).to_frame()["effect"].astype(float)),
    ]


@pytest.mark.parametrize("kind", VECTORS)
def test_what_goes_with_the_rows_in_any_container(kind: str) -> None:
    given = {"Y": Y, "W": W, "T": T, "G": G}
    for one, expected in zip(fits({k: VECTORS[kind](v) for k, v in given.items()}), fits(given), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-9)


class Lazy:
    columns = ("a",)

    def collect(self) -> None: ...


NO_TABLES = {
    "meta": (TENSOR.to("meta"), "X is a tensor on the meta device"),
    "conjugate": (torch.complex(TENSOR, TENSOR).conj(), "Complex data not supported"),
    "complex column": (FRAME.astype({"b": complex}), "column 'b' holds complex"),
    "categories": (FRAME.astype({"b": "category"}), "Column 'b' holds categories"),
    "intervals": (FRAME.assign(b=pd.arrays.IntervalArray.from_breaks(range(N + 1))), "Column 'b' holds intervals"),
    "periods": (FRAME.assign(b=pd.period_range("2020", periods=N, freq="D")), "Column 'b' holds dates"),
    "a date among numbers": (np.array([[np.datetime64("2020")], [1.0]], dtype=object), "date or time in row 0, 2020"),
    "text among numbers": (np.array([[1.0, 2.0], [3.0, "u"]], dtype=object), "row 1, column 'x1': 'u' is not a number"),
    "missing": (np.array([[1.0], [pd.NA]] * 30, dtype=object), "NaN .* in row 1, column 'x0'"),
    "rows of other lengths": ([[1.0, 2.0], [3.0]], "row 1, has 1 entries and row 0 has 2"),
    "fields of several values": (np.zeros(3, dtype=[("a", float, 2)]), "'a' has several values a row"),
    "lazy": (Lazy(), r"collect\(\) it first"),
    "one axis": (X[:, 0], r"Reshape your data: a single column is X.reshape\(-1, 1\)"),
    "series": (FRAME["a"], r"a single column is X.to_frame\(\)"),
    "None": (None, "X is None, but a table"),
    "text": ("data.csv", "X is the text 'data.csv'"),
    "iterator": (iter(X), "X is an iterator|X is a generator"),
    "columns": ({"a": X[:, 0]}, r"pandas.DataFrame\(X\)"),
    "a name twice": (FRAME.assign(c=1)[["a", "c", "c"]], "more than one column named 'c'"),
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_what_is_no_table(kind: str) -> None:
    table, message = NO_TABLES[kind]
    model = rp.MultinomialLogisticRegression()
    with pytest.raises(rp.InputError, match=message):
        model.fit(table, Y[: len(table)] if hasattr(table, "__len__") else Y)


DATES = pd.date_range("2020", periods=N)
NO_VALUES = {
    "dates": (DATES.to_numpy(), "dates"),
    "durations": (T.astype("m8[D]"), "dates"),
    "complex": (T + 0j, "complex"),
    "set": (set(T.tolist()), "is a set"),
    "dictionary": (dict(enumerate(T)), "is a dictionary"),
    "iterator": (iter(T), "is an iterator"),
    "sparse": (sp.csr_matrix(T[:, None]), r"is a sparse matrix.*toarray\(\)"),
    "records": (records(), r"such as \w+\['a'\]"),
    "meta": (torch.from_numpy(T).to("meta"), "meta device"),
}


@pytest.mark.parametrize("kind", NO_VALUES)
def test_what_holds_no_number_for_each_row(kind: str) -> None:
    values, message = NO_VALUES[kind]
    calls = [
        lambda: rp.VectorGLM(rp.Gaussian()).fit(X, values),
        lambda: rp.VectorGLM(rp.Poisson()).fit(X, Y, values),
        lambda: rp.VectorGLM(rp.Poisson()).fit(X, Y, None, values),
        lambda: MODEL.predict(X, values),
        lambda: MODEL.score(X, Y, values),
    ]
    for call in calls:
        with pytest.raises(rp.InputError, match=message):
            call()


@pytest.mark.parametrize("groups", [np.ma.array(G, mask=G == 3), np.column_stack([G, G]), {1, 2}])
def test_groups_that_give_no_cluster_to_each_row(groups: Any) -> None:
    with pytest.raises(rp.InputError, match="^groups"):
        MODEL.standard_errors(groups=groups)


@pytest.mark.parametrize("factor", [1e-310, 1e-200, 1e200, 1e308])
def test_weights_whose_sum_is_no_number(factor: float) -> None:
    with pytest.raises(rp.InputError, match=r"largest sample_weight is .* divide all of them"):
        rp.VectorGLM(rp.Poisson()).fit(X, Y, W / 3 * factor)
    with pytest.raises(rp.InputError, match="class_weight"):
        rp.MultinomialLogisticRegression(class_weight={0: factor, 1: factor}).fit(X, Y)


def test_a_score_of_classes_takes_labels_as_fit_does() -> None:
    text = np.where(Y > 0, "yes", "no")
    frame = FRAME.assign(y=text)
    model = rp.MultinomialLogisticRegression(formula="y ~ a + b + c").fit(frame)
    share = (model.predict(frame) == text).mean()
    assert model.score(frame) == share
    assert model.score(frame.drop(columns="y").assign(y=pd.Categorical(text))) == share
    plain = rp.MultinomialLogisticRegression().fit(X, Y)
    assert plain.score(X, Y.astype(object)) == plain.score(X, pd.Series(Y, dtype="Int64")) == plain.score(X, Y)
    unseen = np.where(np.arange(N) == 0, 7, plain.predict(X))
    assert plain.score(X, unseen) == 1 - 1 / N
    with pytest.raises(rp.InputError, match="No label of y is a class of the fit: they begin with '0', '1', the"):
        plain.score(X, Y.astype(str))
    offset = np.column_stack([np.zeros(N), np.full(N, 100.0)])
    assert plain.score(X, Y, offset=offset) == Y.mean()


def test_a_score_of_a_network_counts_classes_as_the_fit_did() -> None:
    made = [rp.BayesianMLP(hidden=(2,), likelihood=rp.Categorical(), max_iter=1, steps=2) for _ in range(2)]
    one, other = made[0].fit(X, Y), made[1].fit(X, Y + 1)
    assert other.score(X, Y + 1) == one.score(X, Y)
    assert other.score(X[Y == 0], Y[Y == 0] + 1) == one.score(X[Y == 0], Y[Y == 0])
    with pytest.raises(rp.InputError, match="label in row 2 is no class"):
        other.score(X[:3], [1, 2, 3])


def test_labels_that_mix_texts_and_numbers() -> None:
    with pytest.raises(rp.InputError, match="mixes types"):
        rp.MultinomialLogisticRegression().fit(X, ["a", 1] * 30)
