"""What an objective over a network refuses, in words that name the place and the remedy, and what it leaves alone."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import raphson as rp

from .network_cases import BY_NAME, DTYPE, C, D, draw, network

LOSS = BY_NAME["categorical"]


def data(n=6):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=g, dtype=DTYPE), torch.randint(0, C, (n,), generator=g)


def refuse(match, model=None, batches=None, likelihood=None, **options):
    with pytest.raises(rp.InputError, match=match):
        rp.Objective(
            model or network(), likelihood or rp.Categorical(), data() if batches is None else batches, **options
        )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.BatchNorm1d(D),
        nn.InstanceNorm1d(D, track_running_stats=True),
        nn.RReLU(),
        nn.AlphaDropout(0.1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_case_20_layers_in_training_mode_are_refused_by_name(layer):
    model = nn.Sequential(nn.Identity(), layer, nn.Linear(D, C)).to(DTYPE)
    refuse(rf"Module '1' \({type(layer).__name__}\) is in training mode.*model.eval\(\)", model)


def test_case_20_recurrent_dropout_and_attention_dropout_are_refused():
    class Wrap(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

    refuse(r"'part' \(LSTM\).*dropout=0.1", Wrap(nn.LSTM(2, 2, num_layers=2, dropout=0.1)))
    refuse(r"'part' \(MultiheadAttention\).*dropout=0.3", Wrap(nn.MultiheadAttention(2, 1, dropout=0.3)))
    # harmless in training mode
    rp.Objective(nn.Sequential(nn.Dropout(0.0), nn.Linear(D, C)).to(DTYPE), rp.Categorical(), data())


def test_case_20_the_training_flag_of_an_accepted_model_stays():
    model = network().train()
    rp.Objective(model, rp.Categorical(), data())
    assert model.training and all(part.training for part in model)


def test_case_20_a_model_that_mixes_examples_is_refused():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, C).to(DTYPE)

        def forward(self, x):
            f = self.layer(x)
            return f - f.mean(0, keepdim=True)

    refuse("mixes examples across the batch", Mixes())

    class Noise(Mixes):
        def forward(self, x):
            return self.layer(x) + torch.randn(x.shape[0], C, dtype=DTYPE)

    refuse(r"\(Noise\) draws random numbers \(aten.randn\)", Noise())
    recurrent = nn.GRU(D, C).to(DTYPE)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = recurrent

        def forward(self, x):
            return self.gru(x)[0]

    x, y, _ = draw(LOSS)
    refuse("batch_first=True", Last(), (x, y))


def test_case_22_a_shuffled_loader_is_refused_at_the_second_pass():
    set_ = TensorDataset(*data(12))
    for loader in (
        DataLoader(set_, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(set_, batch_size=5, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)),
    ):
        o = rp.Objective(network(), rp.Categorical(), loader)
        with pytest.raises(rp.InputError, match=r"Batch 0 is not the one.*shuffle=False"):
            o.value()


def test_case_22_a_loader_with_drop_last_is_what_it_yields():
    x, y = data(12)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, drop_last=True)
    o = rp.Objective(network(), rp.Categorical(), loader)
    assert (o.n_examples, o.n_batches) == (10, 2)
    torch.testing.assert_close(o.value(), rp.Objective(network(), rp.Categorical(), (x[:10], y[:10])).value())


def test_case_22_passes_of_another_length_are_refused():
    x, y = data()

    class Shrinks:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for _ in range({1: 2, 2: 1}.get(self.passes, 3)):
                yield x, y

    o = rp.Objective(network(), rp.Categorical(), Shrinks())
    with pytest.raises(rp.InputError, match="2 batches on the first pass and has 1 now"):
        o.value()
    with pytest.raises(rp.InputError, match="2 batches on the first pass and has more now"):
        o.value()
    refuse("can be read only once", batches=iter([(x, y)]))


def test_case_22_two_models_made_before_either_is_used():
    a, b = network(seed=0), network(seed=1)
    batch = data()
    first, second = rp.Objective(a, rp.Categorical(), batch), rp.Objective(b, rp.Categorical(), batch)
    ops = rp.hessian(first), rp.hessian(second)
    again = rp.hessian(rp.Objective(network(seed=0), rp.Categorical(), batch))
    torch.testing.assert_close(ops[0].to_dense(), again.to_dense())
    assert not torch.allclose(ops[0].to_dense(), ops[1].to_dense())


def test_data_of_another_form_are_refused():
    x, y = data()
    refuse("data is a int", batches=3)
    refuse("no batch", batches=[])
    refuse("Batch 2 is a Tensor", batches=[(x, y), (x, y), x])
    refuse("Batch 0 has 6 rows of inputs but 5 targets", batches=(x, y[:5]))
    refuse(r"weights of batch 0 have shape \(3,\)", batches=(x, y, torch.ones(3)))
    refuse("weight of row 2 of batch 0 is -1", batches=(x, y, torch.tensor([1.0, 1, -1, 1, 1, 1])))
    refuse("add up to 0", batches=(x, y, torch.zeros(6)))
    refuse("Batch 1: The target in row 3 is 7", batches=[(x, y), (x, torch.tensor([0, 1, 2, 7, 0, 0]))])
    refuse("no example", batches=(x[:0], y[:0]))


def test_arguments_are_refused_in_words():
    x, y, _ = draw(LOSS)
    refuse("reduction is 'none'", reduction="none")
    refuse("l2 is -1", l2=-1.0)
    refuse(r"There is no parameter '2.weigth'. Did you mean '2.weight'", params=["2.weigth"])
    refuse("needs params=", model=lambda p, x: x)
    refuse(
        "CrossEntropyLoss has reduction='mean', but the objective was given reduction='sum'",
        likelihood=nn.CrossEntropyLoss(),
        reduction="sum",
    )
    refuse("no parameter to differentiate", model=network().requires_grad_(False))

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x).movedim(-1, 1)

    refuse(
        r"Batch 0: the outputs have shape \(2, 3, 4\).*movedim",
        Turned(),
        (torch.randn(5, 4, D, dtype=DTYPE), torch.zeros(5, 4, dtype=torch.long)),
    )
    o = rp.Objective(network(), rp.Categorical(), (x, y))
    with pytest.raises(rp.InputError, match="structure is 'full'"):
        rp.ggn(o, "full")
    with pytest.raises(rp.InputError, match="blocks is 'module'"):
        rp.hessian(o, "blocks", blocks="module")
    with pytest.raises(rp.InputError, match="kind is 'exact'"):
        rp.fisher(o, "exact")
    with pytest.raises(rp.InputError, match="kind is 'mc'"):
        rp.ggn(o, kind="mc")
    with pytest.raises(rp.InputError, match="samples is 0"):
        rp.fisher(o, "mc", samples=0)
    with pytest.raises(rp.InputError, match="vector has 3 entries, but there are 31 parameters"):
        rp.ggn(o).mv(torch.ones(3, dtype=DTYPE))


def test_a_loss_that_is_not_finite_is_refused_by_batch_and_row():
    x, y = data()
    x[4] = float("nan")
    o = rp.Objective(network(), rp.Categorical(), [(x[:3], y[:3]), (x[3:], y[3:])])
    for call in (
        lambda: o.value(),
        lambda: o.gradient(),
        lambda: rp.ggn(o).mv(torch.ones(31, dtype=DTYPE)),
        lambda: rp.hessian(o).mv(torch.ones(31, dtype=DTYPE)),
        lambda: rp.ggn(o, "diagonal"),
        lambda: rp.example_gradients(o),
    ):
        with pytest.raises(rp.InputError, match=r"loss in batch 1, row 1 is nan"):
            call()


def test_a_model_of_two_types_is_refused():
    model = nn.Sequential(nn.Linear(D, D).to(DTYPE), nn.Linear(D, C))
    refuse("'1.weight' has dtype torch.float32 but '0.weight' has torch.float64", model)


def test_an_operator_of_other_parameters_is_refused():
    model = network()
    o = rp.Objective(model, rp.Categorical(), data())
    op = rp.hessian(o)
    v = torch.ones(31, dtype=DTYPE)
    op.mv(v)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(rp.RaphsonError, match="changed after this operator was made"):
        op.mv(v)
    rp.hessian(o).mv(v)


def test_nothing_is_left_on_the_model_and_no_randomness_is_used():
    model = network()
    before = {name: dict(part.__dict__) for name, part in model.named_modules()}
    state = torch.get_rng_state()
    o = rp.Objective(model, rp.Categorical(), data())
    for op in (rp.hessian(o), rp.ggn(o), rp.fisher(o, "mc"), rp.fisher(o, "empirical")):
        op.mv(torch.ones(31, dtype=DTYPE))
    o.value_and_gradient()
    rp.example_gradients(o)
    assert torch.equal(state, torch.get_rng_state())
    for name, part in model.named_modules():
        assert before[name].keys() == part.__dict__.keys()
        assert not any((part._forward_hooks, part._forward_pre_hooks, part._backward_hooks))
    for p in model.parameters():
        assert p.grad is None and p.requires_grad and not vars(p)


def tensors_alive() -> int:
    return sum(type(x) is torch.Tensor for x in gc.get_objects())


def resident_pages() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) if statm.exists() else 1


def test_case_21_memory_is_flat_over_a_thousand_products():
    o = rp.Objective(network(), rp.Categorical(), data())
    ops = rp.hessian(o), rp.ggn(o)
    v = torch.ones(31, dtype=DTYPE)

    def products(count: int) -> None:
        for _ in range(count):
            for op in ops:
                op.mv(v)

    products(100)
    gc.collect()
    gc.disable()  # what reference counts alone do not free would grow
    try:
        tensors, pages = tensors_alive(), resident_pages()
        products(1000)
        assert tensors_alive() == tensors
        assert resident_pages() <= 1.01 * pages
    finally:
        gc.enable()


def test_case_21_operators_are_freed_without_the_garbage_collector():
    o = rp.Objective(network(), rp.Categorical(), data())
    gc.collect()
    gc.disable()
    try:
        count = []
        for _ in range(3):
            for make in (rp.hessian, rp.ggn, rp.fisher):
                make(o).mv(torch.ones(31, dtype=DTYPE))
            count.append(tensors_alive())
        assert count[0] == count[2]
    finally:
        gc.enable()


class OneDictionary(nn.Module):
    """A model that takes a dictionary as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, parts):
        return self.linear(parts["a"]) * parts["b"]


def test_a_dictionary_goes_in_by_name_or_in_a_tuple_as_one():
    net, y = OneDictionary(), torch.tensor([0, 1, 1, 0])
    parts = {"a": torch.randn(4, 3), "b": torch.rand(4, 1)}
    with pytest.raises(rp.InputError, match=r"inputs a, b are given by name.*OneDictionary.*tuple that holds it"):
        rp.Objective(net, nn.CrossEntropyLoss(), (parts, y))
    value = rp.Objective(net, nn.CrossEntropyLoss(), ((parts,), y)).value()
    torch.testing.assert_close(value, nn.functional.cross_entropy(net(parts), y))


def test_an_unknown_estimator_is_told_all_of_them():
    objective = rp.Objective(nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.tensor([0, 1, 1, 0])))
    with pytest.raises(rp.InputError, match="'foo', but it must be one of exact, mc, empirical, recursive"):
        rp.kfac(objective, "foo")


def test_loaders_that_leave_examples_out_are_pointed_out() -> None:
    model, data = nn.Linear(4, 3), torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.warns(rp.RaphsonWarning, match="drop_last=True and leaves 2 of 8 examples out"):
        rp.Objective(model, rp.Categorical(), torch.utils.data.DataLoader(data, 3, drop_last=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rp.Objective(model, rp.Categorical(), torch.utils.data.DataLoader(data, 4, drop_last=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"l2": "1"}, "l2 is '1'"),
        ({"l2": float("nan")}, "l2 is nan"),
        ({"l2": -1}, "l2 is -1"),
        ({"params": [torch.ones(1)]}, "params holds a Tensor, but parameters are named.*'weight'"),
        ({"params": 3}, "params is a int"),
        ({"data": (torch.ones(4, 4), torch.ones(4, 3, dtype=torch.complex64))}, "targets of batch 0 are complex"),
        (
            {"data": (torch.ones(4, 4), torch.zeros(4).long(), torch.ones(4, dtype=torch.complex64))},
            "weights of batch 0 are complex",
        ),
    ],
)
def test_arguments_of_another_kind_are_named(options: dict[str, Any], match: str) -> None:
    data = options.pop("data", (torch.ones(4, 4), torch.zeros(4).long()))
    with pytest.raises(rp.InputError, match=match):
        rp.Objective(nn.Linear(4, 3), rp.Categorical(), data, **options)
