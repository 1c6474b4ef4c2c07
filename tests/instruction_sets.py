"""Compiled code in every instruction set that the processor has."""

from __future__ import annotations

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
