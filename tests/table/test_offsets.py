"""Offsets and censored times in formulas are data, as all of a formula is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raphson as rp
from raphson.table import split_offsets, split_survival


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"y": [1.0, 2, 3, 4], "x": [0.5, 1, 2, 1], "t a": [1.0, 2, 4, 8], "e": [1, 0, 1, 1]})


@pytest.mark.parametrize(
    ("right", "kept", "found"),
    [
        ("x + offset(log(t))", "x", ("log(t)",)),
        ("offset(t) + x", "+ x", ("t",)),
        ("offset(t)", "1", ("t",)),
        ("x + offset(log(t)) + offset(u / 2) - 1", "x  - 1", ("log(t)", "u / 2")),
        ("x + offset", "x + offset", ()),
    ],
)
def test_offsets_are_taken_out(right: str, kept: str, found: tuple[str, ...]) -> None:
    rest, terms = split_offsets(right)
    assert (" ".join(rest.split()), terms) == (" ".join(kept.split()), found)


def test_a_design_keeps_its_offset(frame: pd.DataFrame) -> None:
    design = rp.Design.fit(frame, formula="y ~ x + offset(log(`t a`) + 1)")
    for one in (design, rp.Design.from_json(json.loads(json.dumps(design.to_json())))):
        offset = one.offsets(frame)
        assert offset is not None
        np.testing.assert_allclose(offset[:, 0], np.log(frame["t a"]) + 1)
    both = rp.Design.fit(frame, "y", "x", offset="e", exposure="t a").training(frame)
    assert both.offset is not None
    np.testing.assert_allclose(both.offset[:, 0], np.log(frame["t a"]) + frame["e"])
    with pytest.raises(rp.InputError, match="several columns of offsets"):
        rp.Design.fit(frame, "y", "x", offset=["e", "x"], exposure="t a")


def test_times_and_events(frame: pd.DataFrame) -> None:
    assert split_survival("Surv(`t a`, e) ~ x") == ("t a", "e", "x")
    data = rp.Design.fit(frame, formula="Surv(`t a`, e) ~ .").training(frame)
    assert data.names == ("y", "x") and data.event is not None and data.event.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + offset(__import__('os').system('touch P'))",
        "y ~ x + offset(`x`.__class__)",
        "y ~ x + offset(x**9**9**9)",
        "y ~ x + offset((lambda: x)())",
        "Surv(open('P', 'w'), e) ~ x",
        "Surv(y, e, x) ~ x",
        "y ~ x + offset(x",
    ],
)
def test_nothing_is_run(frame: pd.DataFrame, formula: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rp.InputError):
        rp.Design.fit(frame, formula=formula).training(frame)
    assert not list(tmp_path.iterdir())
