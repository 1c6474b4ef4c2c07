"""Batches of examples: what is refused is tested with networks; here, weights that are none."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from raphson import RaphsonWarning
from raphson.data import Batches

CPU = torch.device("cpu")
X, Y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def loader(third: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(X, Y, third), batch_size=8)


@pytest.mark.parametrize(
    "third",
    [
        torch.arange(20),
        torch.arange(20.0),
        torch.arange(20).flip(0),
        torch.randperm(20, generator=torch.Generator().manual_seed(1)),
        3 * torch.arange(20) ** 2,
    ],
    ids=["range", "floating", "backwards", "permutation", "scattered"],
)
def test_weights_that_look_like_indices_are_pointed_out_once(third):
    with pytest.warns(
        RaphsonWarning, match=r"different whole numbers from \d+ to \d+, which look like indices"
    ) as seen:
        batches = Batches(loader(third), CPU)
        for _ in range(2):
            assert sum(batch.n_examples for batch in batches) == 20
    assert len(seen) == 1
    with pytest.warns(RaphsonWarning, match=r"20 different whole numbers from 0 to \d+"):
        Batches((X, Y, third), CPU)


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(20),
        torch.arange(20) % 4,
        torch.arange(20) % 4 > 0,
        torch.rand(20, generator=torch.Generator().manual_seed(2)),
        torch.linspace(0, 2, 20),
        torch.arange(20.0) ** 2,
    ],
    ids=["ones", "counts", "mask", "fractions", "grid", "distinct floating counts"],
)
def test_weights_that_can_be_weights_are_taken_in_silence(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(Batches(loader(weight), CPU))
        list(Batches((X[:2], Y[:2], torch.tensor([1, 2])), CPU))
