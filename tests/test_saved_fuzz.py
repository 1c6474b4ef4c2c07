"""Saved models edited and signed again: they load with the same numbers, or are refused by one sentence."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import raphson as rp
from raphson.saved import _saved

OTHERS: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**70, 0.5, -2.5, 1e300, "", "x", "first", "0", "1.0", "none", [], [[]], [1], ["x"],
    [None], {}, {"x": 1}, {"$float": "nan"}, {"$float": 3}, {"$float": "x"}, {"$tuple": 1}, {"$tuple": ["x"]},
    {"$array": [1, 2], "dtype": "<f8"}, {"$array": ["a"], "dtype": "<f8"}, {"$array": [1], "dtype": "<U999999999"},
    {"$array": [[1], [2, 3]], "dtype": "<i8"}, {"$array": 1}, {"$pairs": [[1, 2]]}, {"$pairs": [[[], 2]]},
    {"$pairs": 5}, {"$likelihood": {}}, {"$tensor": "x", "dtype": "load"}, [1e400], "\ud800", "I(__import__('os'))",
]  # fmt: skip


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=60), rng.choice(["a", "b", "c"], 60)
    return pd.DataFrame({
        "x": x,
        "g": g,
        "n": rng.negative_binomial(3, 0.4, 60),
        "party": rng.choice(["p", "q", "r"], 60),
        "grade": pd.Categorical(rng.choice(["lo", "mid", "hi"], 60), categories=["lo", "mid", "hi"], ordered=True),
        "size": np.exp(x / 2 + rng.normal(size=60)),
    })


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any]]:
    """Folders of models, and what each is made to tell."""
    frame, folder = table(), tmp_path_factory.mktemp("models")
    design = rp.Design.fit(frame, formula="party ~ poly(x, 2) + C(g) + bs(x, df=4)")
    plain = rp.Design.fit(frame[["x", "g", "grade"]], "grade")
    by_class = rp.MultinomialLogisticRegression(l2=0.1, class_weight={"p": 2.0, "q": 1.0, "r": 1.0})
    x, _ = design.matrix(frame)
    made = [
        (by_class.fit(pd.DataFrame(x, columns=list(design.names)), frame["party"]), design),
        (rp.VectorGLM(rp.Ordinal(3)).fit(plain.matrix(frame)[0], frame["grade"]), plain),
        (
            rp.VectorGLM(rp.Gamma(), formula={"log_mean": "size ~ x * g", "log_shape": "~ center(x)"}).fit(frame),
            None,
        ),
        (rp.MultinomialLogisticRegression().fit(frame[["x"]], frame["n"] > 4), None),
    ]
    found = []
    for position, (model, coding) in enumerate(made):
        rp.save(model, folder / str(position), coding)
        found.append((folder / str(position), numbers(rp.load(folder / str(position)))))
    return found


def numbers(saved: rp.Saved) -> list[np.ndarray]:
    """What a model predicts for the table, and its standard errors."""
    model, frame = saved.model, table()
    x: Any = frame
    if saved.design is not None:
        x, names = saved.design.matrix(frame)
        x = pd.DataFrame(x, columns=list(names)) if hasattr(model, "feature_names_in_") else x
    elif getattr(model, "formula", None) is None:
        x = frame[["x"]]
    predicted = model.predict_proba(x) if isinstance(model, rp.MultinomialLogisticRegression) else model.predict(x)
    try:
        frame_of_errors = model.summary().to_frame()
    except rp.NotEstimableError:
        frame_of_errors = pd.DataFrame()
    return [np.asarray(predicted, dtype=float), frame_of_errors.to_numpy(dtype=float)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def edit(content: dict[str, Any], draw: random.Random) -> str:
    """Change the type of one field, take it out, or put another one in."""
    path = draw.choice([p for p in places(content) if p[0] in ("params", "metadata", "design", "class")])
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    action = draw.randrange(8)
    if action == 0:
        del parent[path[-1]]
    elif action == 1 and isinstance(parent, dict):
        parent["odd"] = draw.choice(OTHERS)
    elif action == 2 and isinstance(parent, list):
        parent.append(copy.deepcopy(draw.choice([*OTHERS, *parent])))
    else:
        parent[path[-1]] = copy.deepcopy(draw.choice(OTHERS))
    return f"{path} {action}"


def sign(folder: Path, content: dict[str, Any], data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    content = {key: item for key, item in content.items() if key != "sha256"}
    content["tensors_sha256"] = _saved._digest(data)
    content["sha256"] = _saved._digest(_saved._canonical(content))
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "tensors.safetensors").write_bytes(data)


def is_statement(path: str) -> bool:
    """Whether a field is a number or name that predictions are made of and no other field can contradict."""
    return any(word in path for word in ("state", "offset", "names", "values", "labels", "fields", "levels"))


def fuzz(models: list[tuple[Path, Any]], folder: Path, cases: int, seed: int) -> None:
    draw = random.Random(seed)
    refused = 0
    for _ in range(cases):
        source, expected = draw.choice(models)
        content = json.loads((source / "model.json").read_text())
        data = (source / "tensors.safetensors").read_bytes()
        what = edit(content, draw)
        sign(folder, content, data)
        try:
            saved = rp.load(folder)
        except rp.InputError as error:
            assert "\n" not in str(error), what
            refused += 1
            continue
        try:
            found = numbers(saved)
        except rp.RaphsonError:
            continue
        except Exception as error:
            raise AssertionError(f"{source.name} {what}: {error!r}") from error
        for one, other in zip(found[:1], expected[:1], strict=True):
            same = one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
            assert same or is_statement(what), (source.name, what)
    assert refused > cases / 2


def test_edited_models(models: list[tuple[Path, Any]], tmp_path: Path) -> None:
    fuzz(models, tmp_path / "m", 300, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 11))
def test_edited_models_at_length(models: list[tuple[Path, Any]], tmp_path: Path, seed: int) -> None:
    fuzz(models, tmp_path / "m", 300, seed)


def test_tensors_of_other_shapes_types_and_names(models: list[tuple[Path, Any]], tmp_path: Path) -> None:
    for source, _ in models:
        content = json.loads((source / "model.json").read_text())
        tensors = safetensors.torch.load_file(source / "tensors.safetensors")
        for name, tensor in tensors.items():
            changed = [{**tensors, name: tensor[..., :-1].contiguous()}, {**tensors, name: tensor.to(torch.float32)}]
            changed += [{key: item for key, item in tensors.items() if key != name}, {**tensors, "odd": tensor.clone()}]
            for other in changed if name in ("coef", "intercept", "covariance_root", "estimable") else changed[:2]:
                sign(tmp_path / "m", content, safetensors.torch.save(other))
                with pytest.raises(rp.InputError, match="tensors"):
                    rp.load(tmp_path / "m")
        sign(tmp_path / "m", content, b"no tensors at all")
        with pytest.raises(rp.InputError):
            rp.load(tmp_path / "m")


@pytest.mark.parametrize("depth", [200, 400, 900, 100_000])
@pytest.mark.parametrize("field", ["params", "metadata", "design"])
def test_deeply_nested_json(models: list[tuple[Path, Any]], tmp_path: Path, field: str, depth: int) -> None:
    sign(tmp_path / "m", json.loads((models[0][0] / "model.json").read_text()), b"")
    text = (tmp_path / "m" / "model.json").read_text()
    text = text.replace(
        f'"{field}": {{', f'"{field}": {{"deep": ' + '{"a": [' * (depth // 2) + "]}" * (depth // 2) + ", ", 1
    )
    try:  # signed, where Python itself can read it
        sign(tmp_path / "m", json.loads(text), b"")
    except RecursionError:
        (tmp_path / "m" / "model.json").write_text(text)
    with pytest.raises(rp.InputError):
        rp.load(tmp_path / "m")


@pytest.mark.parametrize("reference", ["first", None, 2])
def test_the_reference_comes_back(reference, tmp_path):
    """Of a multinomial model with any reference class, or none: the argument, the labels and the errors."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 2)), rng.integers(0, 3, 90)
    model = rp.MultinomialLogisticRegression(reference=reference).fit(x, y)
    rp.save(model, tmp_path / "model")
    again = rp.load(tmp_path / "model").model
    assert again.reference == reference
    pd.testing.assert_series_equal(again.standard_errors(), model.standard_errors())
