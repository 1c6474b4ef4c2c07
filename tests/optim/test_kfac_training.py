"""K-FAC in the ways in which networks are trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import raphson as rp
from tests.optim.kfac_cases import EXACT, KFAC, CurvatureOptions, DampingOptions, data, fixed, mlp, vector


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        self.second = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        self.short = nn.Conv2d(a, b, 1, bias=False)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def resnet():
    return nn.Sequential(Block(1, 6), Block(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(9, 16), nn.Parameter(0.1 * torch.randn(10, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.out = nn.Linear(16, 9)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.out(self.layer(self.embed(tokens) + self.position, src_mask=mask, is_causal=True))


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(5, 16), nn.Linear(5, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.out = nn.Linear(16, 3)
        nn.init.zeros_(self.up.weight)
        for p in (*self.base.parameters(), *self.out.parameters()):
            p.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.tanh(self.base(x) + self.up(self.down(x))))


def problem(name):
    generator = torch.Generator().manual_seed(0)
    if name == "resnet":
        y = torch.randint(0, 3, (64,), generator=generator)
        x = torch.randn(64, 1, 8, 8, generator=generator)
        x[:, 0] += 0.5 * torch.eye(8) * (y[:, None, None] - 1)
        return resnet, x, y
    if name == "recurrent":
        x = torch.randn(64, 6, 4, generator=generator)
        return Recurrent, x, (x.sum((1, 2)) > 0).long() + (x[:, 0, 0] > 0).long()
    if name == "transformer":
        tokens = torch.randint(0, 9, (32, 10), generator=generator)
        return Tokens, tokens, tokens.roll(1, 1)
    x, y = data(n=64, dtype=torch.float32)
    return Adapted, x, (x[:, :3].argmax(1) + 0 * y)


@pytest.mark.parametrize("step_size", ["quadratic", "fixed"])
@pytest.mark.parametrize("name", ["resnet", "recurrent", "transformer", "adapters"])
def test_networks_in_train_mode_learn(name, step_size):
    make, x, y = problem(name)
    torch.manual_seed(0)
    model = make().train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    opt = KFAC(model, nn.CrossEntropyLoss() if y.ndim == 1 else rp.Categorical(), step_size=step_size)
    losses = [float(opt.step(x, y)) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0], losses
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    if name == "resnet":
        assert int(model[0].first[1].num_batches_tracked) == 40  # one forward pass a step that counts
        assert any("first.1.weight" in n for n in opt.diagonal_parameters)
    if name == "recurrent":
        assert "rnn.weight_hh_l0" in opt.diagonal_parameters
    if name == "adapters":
        assert opt.diagonal_parameters == ()


def test_a_closure_and_several_batches_are_the_batch():
    ends = []
    x, y = data(n=60)
    for way in ("batch", "closure", "parts", "dictionary"):
        model = mlp(5, 4, 3)
        opt = KFAC(model, rp.Categorical(), damping=fixed(0.1), step_size="quadratic", curvature=EXACT)
        for _ in range(3):
            if way == "batch":
                loss = opt.step(x, y)
            elif way == "closure":
                loss = opt.step(lambda model=model: (model(x), y))
            elif way == "dictionary":
                loss = opt.step({"input": x}, y)
            else:
                opt.accumulate(x[:10], y[:10])
                opt.accumulate(x[10:25], y[10:25])
                loss = opt.step(x[25:], y[25:])
        ends.append(torch.cat([vector(model), loss.reshape(1)]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-11)


def test_weights_are_repetitions():
    x, y = data(n=20)
    weight = torch.randint(0, 4, (20,)).double()
    ends = []
    for batch in ((x, y, weight), (x.repeat_interleave(weight.long(), 0), y.repeat_interleave(weight.long(), 0))):
        model = mlp(5, 4, 3)
        opt = KFAC(model, rp.Categorical(), damping=fixed(0.1), step_size="quadratic", curvature=EXACT)
        opt.step(*batch)
        ends.append(vector(model))
    torch.testing.assert_close(*ends)


def test_groups_and_schedulers():
    x, y = data(n=60)
    model = mlp(5, 4, 3)
    groups = [{"params": ["0"], "lr": 0.0}, {"params": ["2"], "weight_decay": 0.1}]
    opt = KFAC(model, rp.Categorical(), groups, damping=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(6):
        opt.step(x, y)
        schedule.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])
    assert opt.param_groups[1]["lr"] == 0.5**6
    with pytest.raises(rp.InputError, match="names"):
        KFAC(model, rp.Categorical(), [{"params": list(model.parameters())}])
    with pytest.raises(rp.InputError, match="two groups"):
        KFAC(model, rp.Categorical(), [{"params": ["0"]}, {"params": ["0.weight"]}])


def test_groups_are_shown_line_by_line():
    model, (x, y) = mlp(5, 4, 3), data()
    groups = [{"params": ["0"], "lr": 0.5}, {"params": ["2.bias"], "weight_decay": 0.1}, {"params": ["2.weight"]}]
    opt = KFAC(model, rp.Categorical(), groups, damping=0.1)
    opt.step(x, y)
    head, *lines = repr(opt).split("\n")
    assert head.startswith("KFAC(Categorical(") and "damping 0.1, 1 steps" in head and "FixedStep" in head
    assert lines == [
        "  group 0: lr 0.5, weight_decay 0; 2 parameters: 0.weight, 0.bias",
        "  group 1: lr 1, weight_decay 0.1; 1 parameter: 2.bias",
        "  group 2: lr 1, weight_decay 0; 1 parameter: 2.weight",
    ]
    assert "0.weight, ..., 4.bias" in repr(KFAC(mlp(5, 4, 4, 3), rp.Categorical()))


def test_a_step_runs_the_network_once():
    x, y = data(n=300)
    model = mlp(5, 4, 3)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    opt = KFAC(model, rp.Categorical(), damping=DampingOptions(0.1, period=4))
    opt.step(x, y)
    counts = []
    for _ in range(8):
        calls.clear()
        opt.step(x, y)
        counts.append(len(calls))
    assert counts == [1, 1, 1, 2, 1, 1, 1, 2]  # after every fourth step its loss is compared


def test_the_average_is_there_and_gone_again():
    x, y = data(n=60)
    model = mlp(5, 4, 3)
    opt = KFAC(model, rp.Categorical(), damping=0.1)
    with opt.averaged():
        pass
    seen = []
    for _ in range(5):
        opt.step(x, y)
        seen.append(vector(model))
    average = seen[0]
    for t, theta in enumerate(seen[1:], 2):
        average = average + (theta - average) * 9 / (t + 8)
    with opt.averaged():
        torch.testing.assert_close(vector(model), average)
    assert torch.equal(vector(model), seen[-1])
    off = KFAC(model, rp.Categorical(), averaging=False)
    with pytest.raises(rp.InputError, match="averaging=True"):
        off.averaged()


def test_memory_is_reported_by_layer():
    x, y = data(n=40)
    model = mlp(5, 4, 3)
    opt = KFAC(model, rp.Categorical(), damping=0.1)
    opt.step(x, y)
    first = opt.report().rows[0]
    assert first[:3] == ("0.weight, 0.bias", 24, "Kronecker 4 x 6")
    assert first[3] == 2 * (16 + 36) * 8


class Sentence(nn.Module):
    """Words plus places, which all rows share, through weights that are seen from the other side, or in parts."""

    def __init__(self, unsqueezed: bool) -> None:
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(7, 4), nn.Embedding(3, 4), nn.Linear(4, 3)
        self.square, self.both = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(8, 4))
        self.unsqueezed = unsqueezed

    def forward(self, i):
        at = torch.arange(i.shape[1])
        h = self.words(i) + self.places(at[None] if self.unsqueezed else at)
        first, second = self.both.chunk(2)
        return self.out(torch.tanh(torch.tanh(h @ self.square) @ first.T) * torch.sigmoid(h @ second.T))


@pytest.mark.parametrize("estimator", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("unsqueezed", [False, True])
@pytest.mark.parametrize("n", [3, 5])
def test_places_that_all_rows_share_have_the_diagonal_of_rows_apart(n, unsqueezed, estimator):
    """In expectation: by the mean over many samples, beside the diagonal of the objective."""
    torch.manual_seed(0)
    model = Sentence(unsqueezed).double()
    g = torch.Generator().manual_seed(1)
    i, y = torch.randint(7, (n, 3), generator=g), torch.randint(3, (n, 3), generator=g)
    y[0, 1] = -100
    opt = KFAC(
        model,
        rp.Categorical(),
        [{"params": ["words", "places", "out"]}, {"params": ["square", "both"], "weight_decay": 0.1}],
        lr=0.0,
        curvature=CurvatureOptions(estimator=estimator, samples=400),
    )
    opt.step(i, y)
    names = [row[0] for row in opt.report().rows if "diagonal, sampled" in row[2]]
    assert names == ["places.weight"]
    objective = rp.Objective(model, rp.Categorical(), (i, y))
    expected = rp.ggn(objective, "diagonal").diagonal()[objective.space.slices["places.weight"]]
    torch.testing.assert_close(opt._curvature._diagonal, expected, rtol=0.3, atol=2e-3)
    # the halves of a weight have their state under names of their own
    assert len({state.block.owner for state in opt._curvature._blocks}) == len(opt._curvature._blocks) == 5
