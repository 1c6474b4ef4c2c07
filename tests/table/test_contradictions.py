"""Tables and options that contradict themselves: columns in two roles, files of another kind, names taken already."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import raphson as rp

N = 80
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"x": RNG.normal(size=N).round(3), "g": RNG.choice(list("ab"), N), "k": RNG.poisson(2, N)})
DAYS = pd.date_range("2020", periods=N)


@pytest.mark.parametrize("role", ["weights", "groups", "exposure", "event", "offset"])
def test_the_target_has_no_other_role(role: str) -> None:
    with pytest.raises(rp.InputError, match=f"'k' is the target and given as {role}"):
        rp.Design.fit(FRAME, "k", **{role: "k"})


@pytest.mark.parametrize("given", [{"target": "k"}, {"target": "k", "weights": "x"}, {"formula": "k ~ x"}])
def test_a_column_that_is_used_is_not_dropped(given: dict[str, str]) -> None:
    with pytest.raises(rp.InputError, match="is to be dropped and to be used"):
        rp.Design.fit(FRAME, **given, drop=["k"] if "weights" not in given else ["x"])  # type: ignore[arg-type]


def test_a_column_of_the_formula_is_not_dropped() -> None:
    with pytest.raises(rp.InputError, match="'x' is to be dropped and stands in the formula"):
        rp.Design.fit(FRAME, formula="k ~ x + g", drop=["x"])
    assert rp.Design.fit(FRAME, formula="k ~ .", drop=["x"]).names == ("g[T.b]",)


@pytest.mark.parametrize("days", [DAYS, DAYS.date, DAYS - DAYS[0], DAYS.to_period("D"), DAYS.time])
def test_a_target_of_dates_is_none(days: pd.Index) -> None:
    frame = FRAME.assign(d=days)
    frame.index = pd.Index(np.zeros(N))  # labels that repeat
    for given in ({"target": "d"}, {"formula": "d ~ x"}):
        with pytest.raises(rp.InputError, match="the target 'd' holds dates"):
            rp.Design.fit(frame, **given)
    with pytest.raises(rp.InputError, match="column 'd' holds dates"):
        rp.Design.fit(frame, "k")


@pytest.mark.parametrize("kind", ["int64", "uint64", "Int64", "int64[pyarrow]"])
def test_whole_numbers_that_float64_rounds_to_a_few(kind: str) -> None:
    ids = pd.Series(10**17 + np.arange(N)).astype(kind)
    for formula in ("k ~ id", "k ~ I(id - 10**17)"):
        with pytest.raises(rp.InputError, match="'id' holds whole numbers about 1e\\+17 that differ by .* exact to 16"):
            rp.VectorGLM("poisson", formula=formula).fit(FRAME.assign(id=ids))
    with pytest.raises(rp.InputError, match="'id' holds whole numbers"):
        table = FRAME.assign(id=ids)
        rp.Design.fit(table, "k").training(table)
    wide = pd.Series(np.arange(N) * 10**16).astype(kind)  # sixteen digits of them are kept
    assert rp.VectorGLM("poisson", formula="k ~ id").fit(FRAME.assign(id=wide)).solution_.converged


@pytest.mark.parametrize("style", ["{:.1f}%", "{:,.2f}", "${:.2f}", "€ {:.2f}", "({:.2f})", "{:.2f} %"])
def test_numbers_with_other_signs(style: str) -> None:
    texts = [style.format(value) for value in 1e4 * RNG.random(N)]
    with pytest.raises(rp.InputError, match="'p' holds numbers written with other signs .* percent and currency"):
        rp.Design.fit(FRAME.assign(p=texts), "k")
    with pytest.raises(rp.InputError, match="'p' is text with 80 different values"):
        rp.Design.fit(FRAME.assign(p=[f"u{text}" for text in texts]), "k")


@pytest.mark.parametrize("other", ["A", " a", "a  "])
def test_levels_that_differ_in_spaces_or_case(other: str) -> None:
    frame = FRAME.assign(g=np.where(np.arange(N) < 9, other, FRAME["g"]))
    for design in (rp.Design.fit(frame, "k"), rp.Design.fit(frame, formula="k ~ g")):
        assert any("differ in spaces or case only" in note for note in design.notes)
    assert not any("differ" in note for note in rp.Design.fit(FRAME, "k").notes)


def test_a_column_called_as_the_intercept() -> None:
    frame = FRAME.rename(columns={"x": "(intercept)"})
    with pytest.raises(rp.InputError, match=r"column is called '\(intercept\)'"):
        rp.VectorGLM(rp.Poisson()).fit(frame[["(intercept)"]], FRAME["k"])
    found = rp.VectorGLM(rp.Poisson(), fit_intercept=False).fit(frame[["(intercept)"]], FRAME["k"])
    assert found.estimates().labels == (("log_mean", "(intercept)"),)


KINDS = {
    "a.xlsx": (b"PK\x03\x04" + bytes(100), "Excel or OpenDocument"),
    "a.xls": (b"\xd0\xcf\x11\xe0" + bytes(100), "old Excel"),
    "a.csv": (gzip.compress(b"x,k\n1,2\n"), "must end in .gz"),
    "b.csv": (b"PAR1" + bytes(100), "must end in .parquet"),
    "c.csv": ("x,k\n1,2\n".encode("utf-16"), "UTF-16"),
    "a.json": (b'[{"x": 1}]', "is JSON"),
    "a.dta": (b"<stata_dta><header>", "Stata"),
    "d.csv": (b"\n \n\n", "empty lines only"),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_of_another_kind(name: str, tmp_path: Path) -> None:
    content, message = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(rp.InputError, match=message):
        rp.read_table(tmp_path / name)


def test_a_model_within_a_model_is_refused(tmp_path: Path) -> None:
    model = rp.VectorGLM(rp.Poisson()).fit(FRAME[["x"]], FRAME["k"])
    rp.save(model, tmp_path / "one")
    for place in ("one/two", "one/two/three"):
        with pytest.raises(rp.InputError, match="one is a saved model"):
            rp.save(model, tmp_path / place)
    rp.save(model, tmp_path / "one")
    assert rp.load(tmp_path / "one").model.coef_[0, 0] == model.coef_[0, 0]


def test_a_network_wider_than_memory() -> None:
    with pytest.raises(rp.TooLargeError, match="fewer hidden units"):
        rp.BayesianMLP(hidden=(10**9,)).fit(FRAME[["x"]], FRAME["k"])


def test_a_design_takes_frames_of_pandas() -> None:
    design = rp.Design.fit(FRAME, "k")
    for other in (FRAME.to_numpy(), {"x": [1.0]}, pa.Table.from_pandas(FRAME)):
        for call in (lambda t: rp.Design.fit(t, "k"), design.matrix, design.training):
            with pytest.raises(rp.InputError, match="and a pandas frame is needed"):
                call(other)


LEVELS = pd.DataFrame({
    "s": np.resize(list("12uvwz"), N),
    "b": np.arange(N) % 2 > 0,
    "n": np.arange(N) % 3,
    "k": FRAME["k"],
})


@pytest.mark.parametrize(("formula", "column"), [("k ~ s", "s"), ("k ~ C(n)", "n"), ("k ~ C(b)", "b"), ("k ~ b", "b")])
def test_levels_are_those_of_the_fit_by_their_texts(formula: str, column: str) -> None:
    model = rp.VectorGLM("poisson", formula=formula).fit(LEVELS)
    part = LEVELS[LEVELS["s"].isin(["1", "2"])]  # a file of them is read as numbers
    forms = {"s": (int, float, "Int64", "category"), "n": (float, str, "category", "Int64"), "b": (object, "boolean")}
    for form in forms[column]:
        other = part.assign(**{column: part[column].astype(form)})
        np.testing.assert_array_equal(model.predict(other), model.predict(part))


def test_truth_values_and_numbers_are_other_levels() -> None:
    model = rp.VectorGLM("poisson", formula="k ~ C(b)").fit(LEVELS)
    with pytest.raises(rp.InputError, match="'b', row 0: the level '0' was not in the fit"):
        model.predict(LEVELS.assign(b=LEVELS["b"].astype(int)))
    with pytest.raises(rp.InputError, match="'n', row 0: the level 'True' was not in the fit"):
        rp.VectorGLM("poisson", formula="k ~ C(n)").fit(LEVELS).predict(LEVELS.assign(n=True))
    with pytest.raises(rp.InputError, match="column 'b', row 1: 'yes' is not a number|column 'b', row 0: 'no' is not"):
        rp.VectorGLM("poisson", formula="k ~ b").fit(LEVELS).predict(
            LEVELS.assign(b=np.where(LEVELS["b"], "yes", "no"))
        )


@pytest.mark.parametrize("given", [{"target": "k"}, {"formula": "k ~ s"}, {"formula": "k ~ C(s)"}])
def test_a_level_as_number_and_as_text(given: dict[str, str]) -> None:
    frame = LEVELS[["s", "k"]].astype({"s": object})
    frame.loc[0, "s"] = 1
    with pytest.raises(rp.InputError, match="level 1 both as a number and as text"):
        rp.Design.fit(frame, **given)
