"""Layer calls that all examples share: positions, coordinates, constants, looked up once and broadcast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import raphson as rp
from raphson.network.curvature.factors import _recorded_batches

from .kfac_oracle import gauss_newton

VOCABULARY, WIDTH, CLASSES = 7, 4, 3


class Positions(nn.Module):
    """``wte(i) + wpe(arange(T))``; ``expanded``: with the position of every example looked up by itself."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(9, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, i: Tensor) -> Tensor:
        n, t = i.shape
        place = torch.arange(t)
        place = {"plain": place, "row": place[None], "expanded": place.expand(n, t)}[self.form]
        h = self.mix(torch.tanh(self.tokens(i) + self.positions(place)))
        return self.head(torch.tanh(h + h.cumsum(1)))


class Constants(nn.Module):
    """A linear layer on coordinates, one on a vector, a norm of what it makes, and a bare scale of a constant."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.expanded = form == "expanded"
        self.coordinates, self.vector, self.norm = nn.Linear(2, WIDTH), nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH)
        self.scale, self.head = nn.Parameter(torch.rand(WIDTH)), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        grid = torch.linspace(-1, 1, 2 * t, dtype=x.dtype).view(t, 2)
        ones = torch.arange(3.0, dtype=x.dtype)
        if self.expanded:
            grid, ones = grid.expand(n, t, 2), ones.expand(n, 1, 3)
        shared = self.norm(torch.tanh(self.coordinates(grid))) + self.vector(ones)
        return self.head(
            (torch.tanh(x * shared) + x * (torch.cos(grid[..., :1]).expand_as(shared) * self.scale)).mean(1)
        )


def pair(kind: str, form: str, n: int, t: int) -> tuple[rp.Objective, rp.Objective]:
    """Return an objective with shared calls, and the same with the shared input expanded over the examples."""
    made = []
    g = torch.Generator().manual_seed(0)
    if kind == "positions":
        x, y = torch.randint(VOCABULARY, (n, t), generator=g), torch.randint(CLASSES, (n, t), generator=g)
    else:
        x, y = torch.randn(n, t, WIDTH, dtype=torch.float64, generator=g), torch.randint(CLASSES, (n,), generator=g)
    weight = torch.rand(n, dtype=torch.float64, generator=g) + 0.1
    for one in (form, "expanded"):
        torch.manual_seed(0)
        module = (Positions if kind == "positions" else Constants)(one).double()
        made.append(rp.Objective(module, rp.Categorical(), (x, y, weight)))
    return made[0], made[1]


CASES = [("positions", "plain"), ("positions", "row"), ("constants", "plain")]


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize(("n", "t"), [(6, 5), (5, 5), (1, 4)])
def test_shared_calls_have_the_gradients_of_every_example(kind: str, form: str, n: int, t: int) -> None:
    shared, _ = pair(kind, form, n, t)
    exact = gauss_newton(shared)
    torch.testing.assert_close(rp.ggn(shared, "diagonal").diagonal(), exact.diagonal(), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(rp.ggn(shared, keep=True).to_dense(), exact, rtol=1e-9, atol=1e-13)
    rows = rp.example_gradients(shared)
    torch.testing.assert_close(rp.example_gradient_norms(shared), rows.norm(dim=1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize(("n", "t"), [(6, 5), (5, 5)])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_factors_are_those_with_the_input_expanded(
    kind: str, form: str, n: int, t: int, sharing: str, estimator: str
) -> None:
    shared, expanded = pair(kind, form, n, t)
    ours, expected = rp.kfac(shared, estimator, sharing), rp.kfac(expanded, estimator, sharing)
    torch.testing.assert_close(ours.to_dense(), expected.to_dense(), rtol=1e-9, atol=1e-13)
    # equal inputs leave the eigenbasis open, but not the trace in it
    traces = [torch.stack([b.trace() for b in rp.ekfac(o, estimator, sharing).blocks]) for o in (shared, expanded)]
    torch.testing.assert_close(*traces, rtol=1e-9, atol=1e-13)


def test_case_nanogpt_trace_of_the_positions_block() -> None:
    """With a corrected eigenbasis the trace of the block is the exact one, as many examples as there are."""
    shared, _ = pair("positions", "plain", 16, 5)
    place = shared.space.slices["positions.weight"]
    exact = gauss_newton(shared).diagonal()[place].sum()
    torch.testing.assert_close(rp.ekfac(shared).diagonal()[place].sum(), exact)


def test_parts_of_a_batch_of_which_the_first_has_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, expanded = pair("positions", "plain", 5, 4)
    expected = rp.kfac(expanded).to_dense()
    monkeypatch.setattr(_recorded_batches, "_PART_ELEMENTS", 2 * shared.traits.entries)
    torch.testing.assert_close(rp.kfac(shared).to_dense(), expected, rtol=1e-9, atol=1e-13)
