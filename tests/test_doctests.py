"""Every example in a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import raphson

MODULES = [info.name for info in pkgutil.walk_packages(raphson.__path__, "raphson.") if ".cli" not in info.name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


PUBLIC = [
    name
    for name in dir(raphson)
    if getattr(getattr(raphson, name), "__module__", "").startswith(("raphson.linalg", "raphson.network"))
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_of_curvature_says_what_it_takes_and_shows_it(name):
    words = inspect.getdoc(getattr(raphson, name)) or ""
    assert ">>> " in words
    takes = [p for p in inspect.signature(getattr(raphson, name)).parameters if p != "labels"]
    missing = [p for p in takes if f"\n    {p}:" not in words and not words.startswith(f"{p}:")]
    assert "Args:" not in words or not missing


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(found) >= 35
