from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raphson import _json
from raphson._errors import InputError
from raphson.saved import _saved as saved
from raphson.table import Design


class Fake:
    """Just enough of an estimator to be saved."""

    def __init__(self, l2: float = 0.0, class_weight: Any = None, progress: Any = False) -> None:
        self.l2, self.class_weight, self.progress = l2, class_weight, progress

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"l2": self.l2, "class_weight": self.class_weight, "progress": self.progress}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"coef": torch.arange(6, dtype=torch.float64).view(2, 3).T}

    def metadata(self) -> dict[str, Any]:
        return {"classes": [1, 2], "loglik": -np.float64(2.5), "gap": float("nan"), "shape": (2, 3)}

    @classmethod
    def from_state(cls, params: dict[str, Any], tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Fake:
        model = cls(**params)
        model.tensors, model.facts = tensors, metadata  # type: ignore[attr-defined]
        return model


@pytest.fixture(autouse=True)
def known_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(saved._CLASSES, "Fake", __name__)
    monkeypatch.setattr(saved, "import_module", lambda name: __import__("types").SimpleNamespace(Fake=Fake))


def test_round_trip(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2], "b": ["x", "y"], "t": [0, 1]})
    design = Design.fit(frame, "t")
    saved.save(Fake(0.5, {1: 2.0, 2: 1.0}, progress=print), tmp_path / "new" / "m", design)
    back = saved.load(tmp_path / "new" / "m")
    assert back.design == design
    assert (back.model.l2, back.model.class_weight, back.model.progress) == (0.5, {1: 2.0, 2: 1.0}, False)
    assert torch.equal(back.model.tensors["coef"], Fake().state_dict()["coef"])
    assert back.model.facts["loglik"] == -2.5 and np.isnan(back.model.facts["gap"])
    assert back.model.facts["shape"] == (2, 3)
    assert sorted(os.listdir(tmp_path / "new")) == ["m"]


def test_without_design_and_over_an_older_model(tmp_path: Path) -> None:
    saved.save(Fake(1.0), tmp_path / "m")
    saved.save(Fake(2.0), tmp_path / "m")
    back = saved.load(tmp_path / "m")
    assert back.design is None and back.model.l2 == 2.0
    assert os.listdir(tmp_path) == ["m"]


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("precious")
    with pytest.raises(InputError, match="holds files that are not a saved model"):
        saved.save(Fake(), folder)
    with pytest.raises(InputError, match="is a file"):
        saved.save(Fake(), folder / "chapter.txt")
    assert (folder / "chapter.txt").read_text() == "precious"
    assert os.listdir(tmp_path) == ["thesis"]


def test_a_failed_save_leaves_the_older_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save(Fake(1.0), tmp_path / "m")

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        saved.save(Fake(2.0), tmp_path / "m")
    assert saved.load(tmp_path / "m").model.l2 == 1.0
    assert os.listdir(tmp_path) == ["m"]


def test_a_rename_that_fails_brings_the_older_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save(Fake(1.0), tmp_path / "m")
    rename = os.rename

    def refuse_new(old: Path, new: Path) -> None:
        if Path(old).suffix == ".new":
            raise OSError(13, "Permission denied")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(InputError, match="Permission denied"):
        saved.save(Fake(2.0), tmp_path / "m")
    assert saved.load(tmp_path / "m").model.l2 == 1.0


@pytest.mark.parametrize("name", [saved.MODEL_FILE, saved.TENSOR_FILE])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_damage_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    saved.save(Fake(0.5), tmp_path / "m")
    file = tmp_path / "m" / name
    data = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(data[:-10])
    elif damage == "change":
        file.write_bytes(data.replace(b"0.5", b"0.7") if name == saved.MODEL_FILE else data[:-1] + b"\x07")
    else:
        file.unlink()
    with pytest.raises(InputError, match=name):
        saved.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99, this raphson reads 1"),
        ({"format": "other"}, "not a raphson model file"),
        ({"class": "Popen"}, "class Popen is not known"),
    ],
)
def test_other_versions_and_classes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    saved.save(Fake(), tmp_path / "m")
    file = tmp_path / "m" / saved.MODEL_FILE
    content = {**json.loads(file.read_text()), **change}
    del content["sha256"]
    content["sha256"] = saved._digest(saved._canonical(content))
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        saved.load(tmp_path / "m")


def test_not_a_model_and_an_unknown_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a saved model"):
        saved.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a object cannot be saved"):
        saved.save(object(), tmp_path / "m")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, "x", [1, [2]], (1, "a"), {"a": 1}, {1: 2.0, "b": (3,)}, {True: 1}, float("inf"),
        {"$tuple": 1}, {0: {1: [float("-inf")]}},
    ],
)  # fmt: skip
def test_json_gives_back_what_it_was_given(value: Any) -> None:
    back = _json.decode(json.loads(json.dumps(_json.encode(value, "it"), allow_nan=False)))
    assert back == value and type(back) is type(value)


def test_json_keeps_arrays_and_refuses_what_it_cannot_hold() -> None:
    for array in (np.array([1.5, np.nan]), np.array([[1, 2]], dtype=np.int32), np.array(["a", "b"])):
        back = _json.decode(json.loads(json.dumps(_json.encode(array, "it"))))
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
    with pytest.raises(InputError, match="the state of f holds a value of type function"):
        _json.encode([test_round_trip], "the state of f")
