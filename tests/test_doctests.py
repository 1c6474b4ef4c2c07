"""Every example in a docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import raphson

MODULES = [info.name for info in pkgutil.walk_packages(raphson.__path__, "raphson.") if ".cli" not in info.name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(found) >= 35
