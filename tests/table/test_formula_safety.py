"""A formula is data: it runs no code, and takes no time or memory beyond its columns."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raphson._errors import InputError
from raphson.table import Design


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "x": rng.normal(size=40) + 5, "z": rng.normal(size=40), "g": rng.choice(list("abc"), 40), "y": [0, 1] * 20,
    })  # fmt: skip


RUNS_CODE = [
    "I(z * ('`' < str(__import__('os').system('touch {}')) + '`'))",
    "I(z * ('`' < __import__('os').system('touch {}') + '`'))",
    'C(g, levels=["`", __import__("os").system("touch {}"), "`"])',
    "I(__import__('os').system('touch {}'))",
    "{{__import__('os').system('touch {}')}}",
    "np.save('{}', x)",
    "np.savetxt('{}', x)",
    "I((lambda: open('{}', 'w'))())",
    "I([open(p, 'w') for p in ['{}']])",
    "I(x if open('{}', 'w') else z)",
    "I((p := open('{}', 'w')) * x)",
    "I(x[open('{}', 'w')])",
    'I(f\'{{open("{}", "w")}}\')',
    "I('{{0.__class__}}'.format(x))",
    "I(x.to_csv('{}'))",
    "x.to_csv('{}')",
    "I(x)(open('{}', 'w'))",
    "ｅｖａｌ(\"open('{}', 'w')\")",
    "I(ｏｐｅｎ('{}', 'w'))",
    "np.ｓａｖｅ('{}', x)",
    "I(x @ open('{}', 'w'))",
    "Q('x') + hashed(g) + lag(x)",
    "C(g, contr.treatment(open('{}', 'w')))",
    "C(g, contr.treatment.__init__.__globals__)",
    "C(g, contr.treatment())(open('{}', 'w'))",
    "poly(x, 2, _state=open('{}', 'w'))",
    "bs(x, 4, _context=1)",
    "np.log(x, out=z)",
    "np.log(x, z)",
    "cr(x, df=4, constraints=\"open('{}', 'w')\")",
    "`x` + `' + open('{}', 'w') + '`",
]


@pytest.mark.parametrize("text", RUNS_CODE)
def test_no_code_is_run(frame: pd.DataFrame, tmp_path: Path, text: str) -> None:
    formula = text.format(tmp_path / "P")
    before = frame.copy()
    with pytest.raises(InputError) as caught:
        Design.fit(frame, formula=f"y ~ x + {formula}").training(frame)
    assert "\n" not in str(caught.value)
    saved = Design.fit(frame, formula="y ~ x").to_json()
    saved["coding"]["formula"] = f"x + {formula}"
    with pytest.raises(InputError):
        Design.from_json(saved).matrix(frame)
    assert not (tmp_path / "P").exists()
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    "text",
    [
        "I(x*9**9**9)", "I('a'*10**10)", "I(g*10**9)", "I(x + [1]*10**9)", "(x+z+g)**99999", "bs(x, df=10**9)",
        "bs(x, 4, None, 10**9)", "cr(x, df=10**9)", "poly(x, 10**9)", "poly(x, degree=1e9)", "-" * 5000 + "x",
        "I(" + "- " * 5000 + "x)", "x**" + "9" * 50, "I(x**" + "9" * 5000 + ")", "(" * 3000 + "x" + ")" * 3000,
        "I(" * 3000 + "x" + ")" * 3000, "I(" + "**".join(["x"] * 600) + ")", "I(1 << 10**10)", "+".join(["x"] * 99999),
        "I(" + "+".join(["x"] * 9999) + ")", "*".join(f"`a{i}`" for i in range(40)), "I(x*1e999)",
        "1" * 29000 + "x", "1." * 14000, "I(" + "1." * 900 + ")", "`" * 29999, "'" * 29999, "C(g, [0]*10**9)",
    ],
)  # fmt: skip
def test_work_is_bounded(frame: pd.DataFrame, text: str) -> None:
    Design.fit(frame, formula="y ~ x + C(g)")  # what is imported by the first is not counted
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        Design.fit(frame, formula=f"y ~ {text}").training(frame)
    assert time.process_time() - started < 1.0
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)


ODD = [
    "z` + I(z * ('`' < str(__import__('os').system('touch /nowhere')) + '`')) + `x",
    "it's", 'a"b', "a.b", "a\nb", "a\\", "`", "~", "a ~ b", "log(x)", "log", "np", "C", "1", "0", "2020", "Intercept",
    "C(g)", "ｅｖａｌ", "{x}", "%s", "(1)x", "", " lead", "é", "a:b", "lambda", "_0", "True", "x | z", ".",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_names_of_columns_are_data(frame: pd.DataFrame, name: str) -> None:
    frame = frame.drop(columns="z").assign(**{name: np.arange(40.0)})
    design = Design.from_json(Design.fit(frame, formula="y ~ .").to_json())
    assert design.names == ("x", "g[T.b]", "g[T.c]", name) or set(design.names) == {"x", "g[T.b]", "g[T.c]", name}
    matrix, names = design.matrix(frame)
    np.testing.assert_array_equal(matrix[:, names.index(name)], frame[name])
    if not name:
        return
    quoted = "`" + name.replace("`", "``") + "`"
    inside = Design.from_json(Design.fit(frame, formula=f"y ~ I({quoted} + 1) + center({quoted})").to_json())
    assert inside.names == (f"I({quoted} + 1)", f"center({quoted})")
    np.testing.assert_allclose(inside.matrix(frame)[0], np.column_stack([frame[name] + 1, frame[name] - 19.5]))


def test_names_with_dots_need_no_quotes(frame: pd.DataFrame) -> None:
    frame = frame.rename(columns={"x": "Sepal.Length"})
    design = Design.fit(frame, formula="y ~ Sepal.Length + log(Sepal.Length) + I(Sepal.Length**2)")
    assert design.names == ("Sepal.Length", "log(Sepal.Length)", "I(Sepal.Length ** 2)")
    values = frame["Sepal.Length"]
    np.testing.assert_allclose(design.matrix(frame)[0], np.column_stack([values, np.log(values), values**2]))


def test_names_of_functions_may_be_columns(frame: pd.DataFrame) -> None:
    frame = frame.rename(columns={"x": "log", "z": "C"})
    design = Design.fit(frame, formula="y ~ log + log(log) + C + C(g)")
    assert design.names == ("log", "log(log)", "C", "C(g)[T.b]", "C(g)[T.c]")


def test_whole_numbers_do_not_wrap_around(frame: pd.DataFrame) -> None:
    frame = frame.assign(n=np.full(40, 2**40), m=np.arange(40) % 3)
    design = Design.fit(frame, formula="y ~ I(n**2) + I(n * n * n) + C(m + 1)")
    assert design.names[2:] == ("C(m + 1)[T.2]", "C(m + 1)[T.3]")
    assert design.matrix(frame)[0][0, :2].tolist() == [2.0**80, 2.0**120]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C(g, 3)", "contrasts are given as contr.treatment"),
        ("C(g, contr.treatment('q'))", "not among the provided levels"),
        ("log(g)", "'g' is not numeric"),
        ("I(g + g)", "'g' is not numeric"),
        ("I(2)", "reads no column"),
        ("I(x, z)", "'I' has 1 argument"),
        ("x ** 0", "a whole number from 1 to 100"),
        ("2", "a number other than 0 and 1 only scales a term"),
        ("`log(x)` + log(x)", "is called like an expression"),
        ("I(x", "a parenthesis is not closed"),
        ("`x", "a ` is not closed"),
    ],
)
def test_other_mistakes_are_one_sentence(frame: pd.DataFrame, text: str, message: str) -> None:
    frame["log(x)"] = 1.0
    with pytest.raises(InputError, match=message):
        Design.fit(frame, formula=f"y ~ {text}").training(frame)
