"""Compiled code in every instruction set that the processor has, and what stands in for it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from raphson._native import _module


@pytest.fixture(params=[128, 256, 512], scope="module")
def each_instruction_set(request):
    """Run every test of a module with each instruction set; without compiled code they are skipped.

    ``RAPHSON_NATIVE=1``, as .ci/run sets it, makes missing compiled code an error.
    """
    longest = _module.vector_bits()
    if not _module.use_vectors(request.param):
        pytest.skip(_module.reason or f"the processor has no vectors of {request.param} bits")
    yield
    _module.use_vectors(longest)


def each_way(module: ModuleType, name: str) -> Any:
    """Return a fixture that runs every test without compiled code, and with each instruction set.

    Args:
        module: What calls the compiled code.
        name: What the compiled module is called there; None stands for none.
    """

    @pytest.fixture(params=["plain", 128, 256, 512], scope="module", autouse=True)
    def how(request):
        compiled = getattr(module, name)
        if request.param == "plain":
            setattr(module, name, None)
            yield
            setattr(module, name, compiled)
            return
        if compiled is None or not compiled.use_vectors(request.param):
            pytest.skip(f"no compiled code, or no vectors of {request.param} bits")
        yield
        for bits in (128, 256, 512):
            compiled.use_vectors(bits)

    return how
