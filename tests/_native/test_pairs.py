"""Pairs of L-BFGS in compiled code: those of PyTorch, and what is refused."""

from __future__ import annotations

import pytest
import torch

from raphson import _native
from raphson._native import _module
from raphson._native._module import own
from raphson.solve._pairs import _Pairs
from tests.instruction_sets import each_instruction_set as each_instruction_set

pytestmark = pytest.mark.usefixtures("each_instruction_set")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("p, threads", [(1, 1), (3, 1), (16, 4), (77, 1), (1000, 1), (2100, 2), (5000, 3), (9000, 2)])
def test_directions_are_those_of_pytorch(p, threads, scaled, dtype, monkeypatch):
    """Of vectors of any length, with pairs that are refused and after the pairs were forgotten."""
    monkeypatch.setattr(_module, "threads", lambda *_: threads)
    generator, memories = torch.Generator().manual_seed(p), min(p, 4)
    draw = lambda: torch.randn(p, dtype=dtype, generator=generator)  # noqa: E731
    curvature = torch.rand(p, dtype=dtype, generator=generator) + 0.5
    initial = 1.0 + 0.1 * torch.rand(p, dtype=dtype, generator=generator)
    gradient = draw()
    ours = _native.Pairs(p, memories, dtype, scaled=scaled, scale=0.7)
    theirs = _Pairs(gradient, memories, scaled=scaled, scale=0.7)
    taken = 0
    for number in range(9):
        step, before, refused = draw(), gradient, number % 4 == 1
        gradient = before + (-curvature if refused else curvature) * step
        taken += not refused
        given = step, gradient, before, initial * gradient, initial * before
        ours_to, theirs_to = ours.take(*given), theirs.take(*given)
        near = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
        torch.testing.assert_close(ours_to, theirs_to, **near)
        assert ours.number == theirs.number == min(memories, taken)
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-12 if dtype == torch.float64 else 1e-5)
    ours.clear(), theirs.clear()
    assert ours.number == theirs.number == 0
    torch.testing.assert_close(ours.take(*given), theirs.take(*given), **near)


@pytest.mark.parametrize("name", ["step", "gradient", "before", "solved", "solved_before"])
def test_vectors_that_do_not_fit_are_refused(name):
    """By size, element type and strides."""
    pairs = _native.Pairs(4, 2, torch.float64, scaled=True, scale=1.0)
    right = {
        key: torch.ones(4, dtype=torch.float64) for key in ("step", "gradient", "before", "solved", "solved_before")
    }
    wrong = torch.ones(5, dtype=torch.float64), torch.ones(4), torch.ones(8, dtype=torch.float64)[::2]
    pairs.take(**right)
    for vector in wrong:
        with pytest.raises(ValueError, match=f"'{name}' is a tensor"):
            pairs.take(**right | {name: vector})


def test_the_compiled_module_checks_again():
    """Sizes past the door are refused in C, before anything is read or written."""
    pairs = _native.Pairs(4, 2, torch.float64, scaled=True, scale=1.0)
    ones, narrow = torch.ones(4, dtype=torch.float64), torch.ones(4)
    vector, few, single = own(ones), (ones.data_ptr(), 3, "d"), own(narrow)
    number, threads, scaled, curved, numbers, rows = pairs.arguments
    taken = torch.full((28,), -1.0, dtype=torch.float64)
    kernels = _module.kernels
    kernels.pairs(pairs.arguments, *[vector] * 6)
    for place in range(6):
        for wrong in (few, single):
            with pytest.raises(ValueError):
                kernels.pairs(pairs.arguments, *[wrong if i == place else vector for i in range(6)])
    for wrong in (
        (0, threads, scaled, curved, numbers, rows),
        (3, threads, scaled, curved, numbers, rows),
        (2**63, threads, scaled, curved, numbers, rows),
        (number, 0, scaled, curved, numbers, rows),
        (number, threads + 1, scaled, curved, numbers, rows),
        (number, threads, scaled, curved, numbers, (rows[0], 15, "d")),
        (number, threads, scaled, curved, (numbers[0], numbers[1] - 1, "d"), rows),
        (number, threads, scaled, curved, own(taken), rows),
    ):
        with pytest.raises(ValueError):
            kernels.pairs(wrong, *[vector] * 6)
    for wrong in ((number, threads, scaled, curved, numbers), None, (number, threads, scaled, "0", numbers, rows)):
        with pytest.raises(TypeError):
            kernels.pairs(wrong, *[vector] * 6)
