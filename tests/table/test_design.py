from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from formulaic import ModelSpec, model_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

from raphson._errors import InputError
from raphson.table import Design


def people() -> pd.DataFrame:
    return pd.DataFrame({
        "age": [30.0, 41.0, 25.0, 52.0, 38.0, 60.0],
        "educ": ["low", "high", "mid", "low", "high", "mid"],
        "smoker": [True, False, True, False, False, True],
        "w": [1, 2, 1, 3, 1, 1],
        "party": ["a", "b", "a", "c", "b", "c"],
    })


def restored(design: Design) -> Design:
    return Design.from_json(json.loads(json.dumps(design.to_json())))


def test_default_coding_and_its_notes() -> None:
    design = Design.fit(people(), "party", weights="w")
    assert design.names == ("age", "educ[T.low]", "educ[T.mid]", "smoker[T.True]")
    assert design.notes == (
        "educ: text with 3 levels, coded against 'high'",
        "smoker: truth values with 2 levels, coded against 'False'",
    )
    data = design.training(people())
    expected = [[30, 1, 0, 1], [41, 0, 0, 0], [25, 0, 1, 1], [52, 1, 0, 0], [38, 0, 0, 0], [60, 0, 1, 1]]
    np.testing.assert_array_equal(data.x, expected)
    assert data.x.dtype == np.float64
    assert data.y is not None and data.y.tolist() == ["a", "b", "a", "c", "b", "c"]
    assert data.weights is not None and data.weights.tolist() == [1, 2, 1, 3, 1, 1]
    assert data.offset is None and data.groups is None


def test_offsets_and_groups_are_not_predictors() -> None:
    frame = people().assign(o1=[0.0, 1, 2, 3, 4, 5], o2=1.5, clinic=list("ppqqrr"))
    design = restored(Design.fit(frame, "party", offset=["o1", "o2"], groups="clinic", drop=["w", "smoker", "educ"]))
    assert design.names == ("age",)
    data = design.training(frame)
    np.testing.assert_array_equal(data.offset, frame[["o1", "o2"]])
    assert data.groups is not None and data.groups.tolist() == list("ppqqrr")
    one = restored(Design.fit(frame, formula="party ~ age", offset="o1"))
    np.testing.assert_array_equal(one.offsets(frame), frame[["o1"]])
    with pytest.raises(InputError, match="'o1', row 1: the value is missing"):
        one.offsets(frame.assign(o1=[0.0, None, 2, 3, 4, 5]))


def test_category_order_gives_the_reference_and_unused_levels_go() -> None:
    frame = people()
    frame["educ"] = pd.Categorical(frame["educ"], categories=["none", "low", "mid", "high"])
    design = Design.fit(frame[["educ", "party"]], "party")
    assert design.names == ("educ[T.mid]", "educ[T.high]")


def test_rows_with_missing_values_are_dropped_and_counted() -> None:
    frame = people().astype({"w": "float64"})
    frame.loc[1, "age"] = np.nan
    frame.loc[1, "educ"] = None
    frame.loc[4, "educ"] = None
    frame.loc[5, "party"] = None
    design = Design.fit(frame, "party", drop=["w"])
    assert design.notes[-1] == "3 of 6 rows left out for missing values (age 1, educ 2, party 1)"
    data = design.training(frame)
    assert data.rows.tolist() == [0, 2, 3]
    assert data.x[:, 0].tolist() == [30, 25, 52]
    with pytest.raises(InputError, match=r"column 'age', row 1: the value is missing \(rows .* 3; age 1"):
        Design.fit(frame, "party", drop=["w"], missing="error")


def test_missing_values_in_an_unused_column_do_not_matter() -> None:
    frame = people()
    frame["note"] = [None] * 6
    assert Design.fit(frame, "party", drop=["note"]).training(frame).x.shape[0] == 6
    assert Design.fit(frame, formula="party ~ age").training(frame).x.shape[0] == 6


def test_integer_target_beside_missing_values_stays_integer() -> None:
    frame = people().assign(party=[0, 1, np.nan, 1, 2, 0])
    y = Design.fit(frame, "party").training(frame).y
    assert y is not None and y.dtype == np.int64 and y.tolist() == [0, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"target": "partie"}, "no column 'partie'; did you mean 'party'"),
        ({}, {"target": "party", "weights": "W"}, "did you mean 'w'"),
        ({}, {"formula": "party ~ agee"}, "no column 'agee'; did you mean 'age'"),
        ({"age": ["30", "41", "n/k", "52", "38", "60"]}, {}, "'age', row 2: 'n/k' is not a number"),
        ({"age": [1.0, 2, 3, np.inf, 5, 6]}, {}, "'age', row 3: the value is infinite"),
        (
            {"age": [1.0, 2, 3, np.inf, 5, 6]},
            {"formula": "party ~ age"},
            "'age', row 3: the value is inf",
        ),
        ({"w": [1, 2, -1, 1, 1, 1]}, {"weights": "w"}, "'w', row 2: the weight -1 is negative"),
        ({"w": [0] * 6}, {"weights": "w"}, "no weight is positive"),
        ({"age": pd.date_range("2020-01-01", periods=6)}, {}, "'age' holds dates"),
        ({"age": [None] * 6}, {}, "every row has a missing value"),
        ({"age": [(1,)] * 6}, {}, "'age' holds values of type tuple"),
        ({}, {"formula": "party ~ age + party"}, "also on the right side"),
        ({}, {"formula": "party + w ~ age"}, "left side must be one column"),
        ({}, {"formula": "party ~ age +"}, "cannot be read"),
        ({}, {"formula": "party ~ age | educ"}, "bar, as in \\(1 \\| g\\), stands for random effects"),
        (
            {"age": [0.0, 1, 2, 3, 4, 5]},
            {"formula": "party ~ log(age)"},
            r"'log\(age\)', row 0: the value is -inf",
        ),
        ({}, {"formula": "w ~ age", "target": "party"}, "give one of them"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    frame = people().assign(**change)
    if "formula" not in arguments:
        arguments = {"target": "party", **arguments}
    with pytest.raises(InputError, match=message) as caught:
        Design.fit(frame, **arguments).training(frame)
    assert "\n" not in str(caught.value)


def test_row_numbers_in_messages_are_those_of_the_file() -> None:
    frame = people().set_axis(list("uvwxyz"), axis=0)
    frame.loc["u", "age"] = np.nan
    frame.loc["y", "age"] = np.inf
    for arguments in ({"target": "party"}, {"formula": "party ~ age"}, {"formula": "party ~ poly(age, 2)"}):
        with pytest.raises(InputError, match="row 4"):
            Design.fit(frame, **arguments).training(frame)


def test_identifiers_duplicate_names_and_tables_without_columns() -> None:
    names = pd.DataFrame({"name": [f"n{i}" for i in range(30)], "y": [0, 1] * 15})
    with pytest.raises(InputError, match="'name' is text with 30 different values in 30 rows"):
        Design.fit(names, "y")
    with pytest.raises(InputError, match="no column is left"):
        Design.fit(names, "y", drop=["name"])
    twice = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "y"])
    with pytest.raises(InputError, match="'a' occurs more than once"):
        Design.fit(twice, "y")


FORMULAS = [
    None,
    "party ~ age + educ",
    "party ~ age * C(educ)",
    "party ~ 0 + educ + age",
    "party ~ poly(age, 2) + educ",
    "party ~ bs(age, df=4)",
    "party ~ center(age) + scale(w) + smoker",
    "party ~ C(educ, contr.treatment('mid')) + np.log(age)",
    "party ~ C(w) + age",
    "party ~ .",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_new_data_are_coded_as_in_the_fit_also_after_json(formula: str | None) -> None:
    frame = people()
    design = Design.fit(frame, "party", formula)
    whole = design.training(frame).x
    assert whole.shape == (6, len(design.names))
    assert design.fit_intercept == (formula is None or "0 +" not in formula)
    again = restored(design)
    assert again.names == design.names and again.notes == design.notes and again.target == "party"
    for row in range(6):
        one = frame.iloc[[row]].drop(columns="party")
        np.testing.assert_allclose(design.matrix(one)[0], whole[[row]], rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(again.matrix(one)[0], design.matrix(one)[0])
        assert again.matrix(one)[1] == design.names


def test_formula_matrix_equals_hand_coding() -> None:
    frame = people()
    design = Design.fit(frame, formula="party ~ age * C(educ)")
    low, mid = (frame["educ"] == "low").to_numpy(float), (frame["educ"] == "mid").to_numpy(float)
    age = frame["age"].to_numpy()
    by_name = dict(zip(design.names, design.training(frame).x.T, strict=True))
    assert set(by_name) == {
        "age",
        "C(educ)[T.low]",
        "C(educ)[T.mid]",
        "age:C(educ)[T.low]",
        "age:C(educ)[T.mid]",
    }
    np.testing.assert_array_equal(by_name["age:C(educ)[T.mid]"], age * mid)
    np.testing.assert_array_equal(by_name["C(educ)[T.low]"], low)
    assert design.notes == ("C(educ): 3 levels, coded against 'high'",)


@pytest.mark.parametrize("formula", [None, "party ~ age + educ", "party ~ C(educ)", "party ~ educ:age"])
def test_unseen_level_names_column_row_and_level(formula: str | None) -> None:
    design = restored(Design.fit(people(), "party", formula))
    new = people().assign(educ=["low", "phd", "mid", "low", "high", "mid"])
    with pytest.raises(InputError, match="column 'educ', row 1: the level 'phd' was not in the fit"):
        design.matrix(new)


def test_new_data_with_a_hole_or_without_a_column() -> None:
    design = Design.fit(people(), "party", drop=["w"])
    with pytest.raises(InputError, match=r"column 'age', row 2: the value is missing \(1 such in all\)"):
        design.matrix(people().assign(age=[1, 2, None, 4, 5, 6]))
    with pytest.raises(InputError, match="there is no column 'smoker'"):
        design.matrix(people().drop(columns="smoker"))


def test_column_names_that_need_quotes() -> None:
    frame = people().rename(columns={"age": "age (years)"})
    quoted = Design.fit(frame, formula="party ~ `age (years)` + np.log(`age (years)`)")
    assert quoted.names[0] == "age (years)"
    again = restored(quoted)
    np.testing.assert_array_equal(again.matrix(frame)[0], quoted.matrix(frame)[0])
    np.testing.assert_allclose(again.matrix(frame)[0][:, 1], np.log(frame["age (years)"]))


@pytest.mark.parametrize(
    "expression",
    [
        "I(__import__('os').system('true'))",
        "I(age.__class__)",
        "np.load('x')",
        "I((lambda: age)())",
        "I([a for a in age])",
        "{open('x')}",
        "eval('age')",
        "np.log.__self__",
    ],
)
def test_a_formula_cannot_run_other_code(expression: str) -> None:
    with pytest.raises(InputError, match="not allowed|cannot be read|no column"):
        Design.fit(people(), formula=f"party ~ {expression}")
    saved = Design.fit(people(), formula="party ~ age").to_json()
    saved["coding"]["formula"] = expression
    with pytest.raises(InputError, match="not allowed|cannot be read|other columns"):
        Design.from_json(saved)


def test_a_changed_design_file_is_refused() -> None:
    saved = Design.fit(people(), "party").to_json()
    del saved["coding"][0]["name"]
    with pytest.raises(InputError, match="design of the model cannot be read"):
        Design.from_json(saved)


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
        min_size=2,
        max_size=6,
        unique=True,
    ),
    data=st.data(),
)
def test_treatment_coding_of_any_text(levels: list[str], data: st.DataObject) -> None:
    text = [f"~{level}" for level in levels]  # a tilde in front, so that no draw looks like a number
    cells = text + data.draw(st.lists(st.sampled_from(text), min_size=6, max_size=12))
    frame = pd.DataFrame({"c": cells, "y": [i % 2 for i in range(len(cells))]})
    design = restored(Design.fit(frame, "y"))
    ordered = sorted(text)
    assert design.names == tuple(f"c[T.{level}]" for level in ordered[1:])
    expected = np.array([[float(cell == level) for level in ordered[1:]] for cell in cells])
    np.testing.assert_array_equal(design.matrix(frame)[0], expected)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ a + g + n + t",
        "y ~ a * g + C(n, contr.sum())",
        "y ~ poly(a, 2):C(g, contr.treatment('z')) + t",
        "y ~ 0 + bs(a, df=4) + g",
    ],
)
def test_columns_of_a_formula_are_learned_from_the_first_row_of_each_level(
    formula: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    g = np.array(["x", "y"] * 150)
    g[250:] = "w"
    g[299] = "z"
    frame = pd.DataFrame({
        "y": rng.normal(size=300),
        "a": rng.normal(size=300),
        "g": g,
        "n": rng.integers(0, 4, 300),
        "t": np.arange(300) > 280,
    })
    sizes = []
    made = ModelSpec.get_model_matrix

    def counted(self: ModelSpec, data: pd.DataFrame, **options: Any) -> Any:
        sizes.append(len(data))
        return made(self, data, **options)

    monkeypatch.setattr(ModelSpec, "get_model_matrix", counted)
    design = restored(Design.fit(frame, formula=formula))
    matrix = design.training(frame).x
    assert sizes[0] <= 12 and sizes[1:] == [300]
    whole = model_matrix(formula.partition("~")[2], frame)
    columns = [name for name in whole.columns if name != "Intercept"]
    assert list(design.names) == columns
    np.testing.assert_allclose(matrix, whole[columns].to_numpy(dtype=float), rtol=1e-12, atol=1e-12)


def test_numbers_too_large_to_tell_rows_apart_are_no_levels() -> None:
    frame = pd.DataFrame({"y": [0, 1, 0, 1], "x": [1.0, 3.0, 2.0, 5.0], "id": [1e20 + k for k in range(4)]})
    with pytest.raises(InputError, match="column 'id', row 0: 1e\\+20 is too large to be a level or a group"):
        Design.fit(frame, formula="y ~ x + C(id)")
    exact = frame.assign(id=[2**63 - 1, 2**63 - 2, 2**63 - 1, 2**63 - 2])
    assert Design.fit(exact, formula="y ~ x + C(id)").training(exact).x.shape == (4, 2)
