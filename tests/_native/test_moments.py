"""Sums of rows by class and of squares in compiled code, against NumPy, and what it refuses."""

import numpy as np
import pytest
import torch

from raphson import _native
from raphson._native import _module
from raphson.data import fused_sums
from tests.instruction_sets import each_instruction_set as each_instruction_set

pytestmark = pytest.mark.usefixtures("each_instruction_set")


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 9, 3), (40, 300, 2), (9, 257, 2), (33, 17, 40)])
def test_rows_are_added_to_the_sums_of_their_classes(monkeypatch, n, d, k, threads):
    """To what is there already; classes without a row keep it; rows may be apart."""
    monkeypatch.setattr(_module, "threads", lambda *_: threads)
    rng = np.random.default_rng(n)
    x, codes, before = rng.normal(size=(n, d + 2)), rng.integers(0, k, n), rng.normal(size=(k + 1, d))
    sums, squares = torch.from_numpy(before[:k].copy()), torch.from_numpy(before[k].copy())
    _native.class_sums(torch.from_numpy(x)[:, 1 : d + 1], torch.from_numpy(codes), k, sums, squares)
    part = x[:, 1 : d + 1]
    for c in range(k):
        np.testing.assert_allclose(sums[c], before[c] + part[codes == c].sum(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(squares, before[k] + np.square(part).sum(0), rtol=1e-13, atol=1e-13)


def test_tables_of_many_rows_are_added_up_in_parts():
    """Sums of sums: of 50,000 rows the rounding is that of some thousands."""
    rng = np.random.default_rng(0)
    x, codes = rng.uniform(size=(50_001, 64)) + 0.1, rng.integers(0, 3, 50_001)
    sums = fused_sums(torch.from_numpy(x), torch.from_numpy(codes), 3)
    exact = np.stack([x[codes == c].astype(np.longdouble).sum(0) for c in range(3)])
    np.testing.assert_allclose(sums.by_class, exact.astype(float), rtol=1e-13)
    np.testing.assert_allclose(sums.squares, np.square(x.astype(np.longdouble)).sum(0).astype(float), rtol=1e-13)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": zeros(5, 4, dtype=torch.float32)},
        {"x": zeros(4, 5).mT},
        {"codes": zeros(4, dtype=torch.int64)},
        {"codes": zeros(5, dtype=torch.int32)},
        {"codes": torch.tensor([0, 1, 2, 3, 0])},
        {"codes": torch.tensor([0, 1, -1, 2, 0])},
        {"k": 0},
        {"k": 2},
        {"sums": zeros(3, 5)},
        {"squares": zeros(3)},
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(changes):
    given = {"x": zeros(5, 4), "codes": zeros(5, dtype=torch.int64), "k": 3, "sums": zeros(3, 4), "squares": zeros(4)}
    _native.class_sums(*given.values())
    _native.class_sums(*(given | {"codes": None}).values())
    with pytest.raises(ValueError):
        _native.class_sums(*(given | changes).values())


def test_the_compiled_module_checks_again():
    x, sums, squares = zeros(5, 4), zeros(1, 4), zeros(4)
    memory = [_module.memory("x", t, *t.shape) for t in (x, sums, squares)]
    good = [5, 4, 4, memory[0], None, None, 1, memory[1], memory[2], 1]
    assert _module.kernels.moments(*good) is None
    orders = [torch.tensor(given) for given in ([4, 3, 2, 1, 0], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1])]
    allowed, *wrong_orders = [_module.memory("order", given, 5, dtype=torch.int64) for given in orders]
    assert _module.kernels.moments(*good[:5], allowed, *good[6:]) is None
    places = ((0, 6), (0, 2**63), (1, 5), (2, 5), (2, 2**63), (6, 0), (6, 2), (9, 0), *((5, o) for o in wrong_orders))
    for place, wrong in places:
        with pytest.raises(ValueError):
            _module.kernels.moments(*good[:place], wrong, *good[place + 1 :])
    with pytest.raises(TypeError, match="arguments"):
        _module.kernels.moments(*good[:-1])
