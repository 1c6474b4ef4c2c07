"""K-FAC against dense references, and in the ways in which networks are trained."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import raphson as rp

KFAC, CurvatureOptions, DampingOptions = rp.optim.KFAC, rp.optim.CurvatureOptions, rp.optim.DampingOptions
EXACT = CurvatureOptions(estimator="exact", factor_period=1, inverse_period=1, decay=0.0)
PLAIN = rp.optim.QuadraticStep(averaging=0.0, exponent=1.0)


def fixed(value):
    return DampingOptions(value, adapt=False)


def mlp(*sizes, activation=nn.Tanh, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1]).to(dtype)


def data(n=40, d=5, classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def moved(opt, model, *batch):
    before = vector(model)
    opt.step(*batch)
    return vector(model) - before


class TestAgainstDenseReferences:
    """Where K-FAC is exact: one linear layer under squared error, with any number of examples."""

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def parts(self):
        torch.manual_seed(0)
        model = nn.Linear(4, 2, bias=False).double()
        objective = rp.Objective(model, rp.Gaussian(), (self.x, self.y))
        return model, objective.gradient(), rp.ggn(objective, "dense").to_dense()

    def along(self, direction, g, matrix):
        return -direction * (g @ direction) / (direction @ matrix @ direction)

    def test_the_exact_damped_solve_in_the_eigenbasis(self):
        model, g, matrix = self.parts()
        damped = matrix + 0.3 * torch.eye(8, dtype=torch.float64)
        options = CurvatureOptions("exact", "ekfac", decay=0.0)
        step = moved(
            KFAC(model, rp.Gaussian(), damping=fixed(0.3), step_size=PLAIN, curvature=options), model, self.x, self.y
        )
        torch.testing.assert_close(step, -torch.linalg.solve(damped, g))

    def split(self):
        a, b = self.x.T @ self.x / 30, torch.eye(2, dtype=torch.float64)
        pi = ((a.trace() / 4) / (b.trace() / 2)).sqrt()
        return torch.kron(b + 0.3**0.5 / pi * torch.eye(2), a + pi * 0.3**0.5 * torch.eye(4))

    def test_the_split_damping(self):
        model, g, matrix = self.parts()
        split = self.split()
        step = moved(
            KFAC(model, rp.Gaussian(), damping=fixed(0.3), step_size=PLAIN, curvature=EXACT), model, self.x, self.y
        )
        damped = matrix + 0.3 * torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(step, self.along(torch.linalg.solve(split, g), g, damped))

    @pytest.mark.parametrize("structure", ["kfac", "ekfac"])
    @pytest.mark.parametrize("exponent", [0.4, 0.7])
    def test_a_power_of_the_damped_inverse(self, structure, exponent):
        model, g, matrix = self.parts()
        damped = matrix + 0.3 * torch.eye(8, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(damped if structure == "ekfac" else self.split())
        direction = vectors @ (values**-exponent * (vectors.T @ g))
        rule = rp.optim.QuadraticStep(averaging=0.0, exponent=exponent)
        options = CurvatureOptions("exact", structure, decay=0.0)
        opt = KFAC(model, rp.Gaussian(), damping=fixed(0.3), step_size=rule, curvature=options)
        torch.testing.assert_close(moved(opt, model, self.x, self.y), self.along(direction, g, damped))

    def test_weight_decay_is_part_of_gradient_and_curvature(self):
        model, g, matrix = self.parts()
        options = CurvatureOptions("exact", "ekfac", decay=0.0)
        opt = KFAC(model, rp.Gaussian(), damping=fixed(0.2), weight_decay=0.1, step_size=PLAIN, curvature=options)
        expected = -torch.linalg.solve(matrix + 0.3 * torch.eye(8, dtype=torch.float64), g + 0.1 * vector(model))
        torch.testing.assert_close(moved(opt, model, self.x, self.y), expected)

    def test_step_and_momentum_minimize_the_quadratic_model(self):
        model, x, y = mlp(5, 4, 3), *data()
        rule = rp.optim.QuadraticStep(averaging=0.0, momentum=True)
        opt = KFAC(model, rp.Categorical(), damping=fixed(0.05), step_size=rule, curvature=EXACT)
        first = moved(opt, model, x, y)
        objective = rp.Objective(model, rp.Categorical(), (x, y))
        g = objective.gradient()
        damped = rp.ggn(objective, "dense").to_dense() + 0.05 * torch.eye(len(g), dtype=torch.float64)
        second = moved(opt, model, x, y)
        # optimal in the plane of both: the model's gradient is orthogonal to either step
        at = damped @ second + g
        assert abs(float(at @ first)) < 1e-9 * float(g.norm() * first.norm())
        assert abs(float(at @ second)) < 1e-9 * float(g.norm() * second.norm())

    @pytest.mark.parametrize("estimator", ["exact", "empirical", "mc", "recursive"])
    def test_factors_are_those_of_kfac(self, estimator):
        model, x, y = mlp(5, 4, 3), *data()
        objective = rp.Objective(model, rp.Categorical(), (x, y))
        samples = 4000 if estimator == "mc" else 1
        options = CurvatureOptions(estimator, decay=0.0, samples=samples)
        opt = KFAC(model, rp.Categorical(), damping=fixed(1.0), curvature=options)
        opt.step(x, y)
        state = opt.state_dict()["kfac"]["curvature"]["blocks"]["0.weight"]
        found = torch.kron(state["left_factor"][0], state["right_factor"][0])
        torch.manual_seed(0)
        model = mlp(5, 4, 3)
        objective = rp.Objective(model, rp.Categorical(), (x, y))
        block = rp.kfac(objective, "exact" if estimator == "mc" else estimator).blocks[0].to_dense()
        torch.testing.assert_close(found, block, rtol=0.05 if estimator == "mc" else 1e-10, atol=2e-3)


class TestRecursiveFactors:
    """KFRA in training; that the factors are those of ``rp.kfac`` is tested above."""

    options = CurvatureOptions("recursive")

    @pytest.mark.parametrize("structure", ["kfac", "ekfac"])
    def test_it_trains_with_weights_a_frozen_layer_and_both_structures(self, structure):
        model, (x, y) = mlp(5, 6, 4, 3), data(n=60)
        model[2].weight.requires_grad_(False)
        weight = torch.randint(0, 4, (60,)).double()
        opt = KFAC(model, rp.Categorical(), curvature=CurvatureOptions("recursive", structure))
        losses = [float(opt.step(x, y, weight)) for _ in range(20)]
        assert losses[-1] < 0.8 * losses[0]
        state = opt.state_dict()["kfac"]["curvature"]["blocks"]
        assert list(state) == ["0.weight", "4.weight"]
        assert opt.diagonal_parameters == ("2.bias",)

    def test_weights_are_repetitions(self):
        x, y = data(n=20)
        weight = torch.randint(1, 4, (20,)).double()
        found = []
        for batch in ((x, y, weight), (x.repeat_interleave(weight.long(), 0), y.repeat_interleave(weight.long(), 0))):
            opt = KFAC(mlp(5, 4, 3), rp.Categorical(), damping=0.1, curvature=self.options)
            opt.step(*batch)
            found.append(opt.state_dict()["kfac"]["curvature"]["blocks"]["0.weight"]["left_factor"])
        torch.testing.assert_close(*found)

    @pytest.mark.parametrize(
        ("last", "closure", "match"),
        [
            (nn.Dropout(0.5), False, "module '1' drops values"),
            (nn.LayerNorm(3), False, "module '1' is a LayerNorm"),
            (nn.Identity(), True, "not a closure"),
        ],
    )
    def test_what_it_does_not_know_is_refused(self, last, closure, match):
        x, y = data()
        model = nn.Sequential(nn.Linear(5, 3), last).double()
        opt = KFAC(model, rp.Categorical(), curvature=self.options)
        with pytest.raises(rp.InputError, match=match):
            opt.step(lambda: (model(x), y)) if closure else opt.step(x, y)


def test_invariance_to_a_linear_change_of_a_layers_inputs():
    x, y = data(n=300)
    torch.manual_seed(3)
    change = torch.randn(5, 5, dtype=torch.float64) + 3 * torch.eye(5, dtype=torch.float64)
    losses = []
    for matrix in (torch.eye(5, dtype=torch.float64), change):
        model = mlp(5, 6, 3)
        with torch.no_grad():
            model[0].weight.copy_(model[0].weight @ torch.linalg.inv(matrix))
        rule = rp.optim.QuadraticStep(exponent=1.0)
        opt = KFAC(model, rp.Bernoulli(), damping=fixed(1e-18), step_size=rule, curvature=EXACT)
        losses.append([float(opt.step(x @ matrix.T, F.one_hot(y, 3).to(x.dtype))) for _ in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_scaling_the_loss_changes_no_step():
    x, y = data(n=300)
    ends = []
    for scale in (1.0, 1e-3):
        model = mlp(5, 6, 3)
        opt = KFAC(model, rp.Gaussian(scale**-0.5, normalized=False))
        for _ in range(4):
            opt.step(x, x[:, :3])
        ends.append(vector(model))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


class TestTheNormConstraint:
    """Twice the Kullback-Leibler divergence that a step may make, for each target."""

    def moved(self, loss, *batches, copies=1, lr=1.0, damping=1e-12):
        model = nn.Sequential(nn.Linear(5, 3)).double()
        with torch.no_grad():
            torch.nn.init.zeros_(model[0].bias)
            model[0].weight.copy_(torch.linspace(-1, 1, 15).reshape(3, 5))
        step = rp.optim.FixedStep(norm_constraint=1e-2)
        net = nn.Sequential(model[0], Repeated(copies)) if copies > 1 else model
        opt = KFAC(net, loss, lr=lr, damping=fixed(damping), step_size=step, curvature=EXACT)
        before = vector(model)
        for batch in batches[:-1]:
            opt.accumulate(*batch)
        opt.step(*batches[-1])
        return model, vector(model) - before

    def test_a_sum_over_examples_takes_the_same_step_as_a_mean(self):
        x, y = data()
        weight = torch.rand(40, dtype=torch.float64)
        parts = [(x[:15], y[:15], weight[:15]), (x[15:], y[15:], weight[15:])]
        _, mean = self.moved(nn.CrossEntropyLoss(), (x, y, weight), damping=0.1)
        for batches in ([(x, y, weight)], parts):
            loss, total = nn.CrossEntropyLoss(reduction="sum"), float(weight.sum())
            torch.testing.assert_close(self.moved(loss, *batches, damping=0.1 * total)[1], mean)

    def test_it_is_for_each_target(self):
        x, _ = data()
        y = (x[:, :3] + 0.5 * x[:, 2:]).gt(0).double()
        _, once = self.moved(rp.Bernoulli(), (x, y), damping=0.1)
        _, twice = self.moved(rp.Bernoulli(), (x, y.repeat(1, 2)), copies=2, damping=0.2)
        torch.testing.assert_close(twice, once)

    def test_the_step_moves_predictions_by_it(self):
        x, _ = data()
        y = 3.0 * torch.ones(40, 3, dtype=torch.float64)
        start, _ = self.moved(rp.Gaussian(), (x, y), lr=1e-12)
        end, _ = self.moved(rp.Gaussian(), (x, y))
        # twice the divergence of two normal distributions of variance 1 is their squared distance
        assert float((end(x) - start(x)).detach().square().mean()) == pytest.approx(1e-2, rel=1e-4)


class Repeated(nn.Module):
    """Outputs again and again."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def forward(self, x):
        return x.repeat(1, self.copies)


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
@pytest.mark.parametrize("step_size", ["quadratic", "fixed"])
def test_resuming_gives_the_same_losses_bit_for_bit(tmp_path, structure, step_size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
            self.drop, self.out = nn.Dropout(0.3), nn.Linear(6, 3)

        def forward(self, tokens):
            return self.out(self.drop(self.norm(self.embed(tokens).mean(1))))

    tokens, y = torch.randint(0, 7, (32, 4)), torch.randint(0, 3, (32,))

    def fresh():
        torch.manual_seed(0)
        model = Net()
        options = CurvatureOptions(structure=structure, factor_period=2, inverse_period=3)
        opt = KFAC(model, rp.Categorical(), lr=0.5, step_size=step_size, curvature=options)
        return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)

    def run(model, opt, schedule, steps):
        losses = []
        for _ in range(steps):
            losses.append(float(opt.step(tokens, y)))
            schedule.step()
        return losses

    model, opt, schedule = fresh()
    run(model, opt, schedule, 7)
    saved = {
        "model": model.state_dict(),
        "opt": opt.state_dict(),
        "schedule": schedule.state_dict(),
        "chance": torch.get_rng_state(),
    }
    torch.save(saved, tmp_path / "state.pt")
    expected = run(model, opt, schedule, 8)
    with opt.averaged():
        average = vector(model)

    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again, opt, schedule = fresh()
    again.load_state_dict(loaded["model"])
    opt.load_state_dict(loaded["opt"])
    schedule.load_state_dict(loaded["schedule"])
    torch.set_rng_state(loaded["chance"])
    assert run(again, opt, schedule, 8) == expected
    assert torch.equal(vector(again), vector(model))
    with opt.averaged():
        assert torch.equal(vector(again), average)


class TestWhatIsNotFinite:
    def trained(self):
        model, (x, y) = mlp(5, 4, 3), data()
        opt = KFAC(model, rp.Categorical(), damping=0.1)
        opt.step(x, y)
        return model, opt, x, y

    def unchanged(self, model, opt, batch, match):
        before, state = vector(model), copy.deepcopy(opt.state_dict())
        with pytest.raises(rp.InputError, match=match):
            opt.step(*batch)
        assert torch.equal(vector(model), before)
        now = opt.state_dict()["kfac"]
        for name, block in state["kfac"]["curvature"]["blocks"].items():
            assert all(torch.equal(t, now["curvature"]["blocks"][name][key]) for key, t in block.items())
        assert torch.equal(state["kfac"]["gradient"], now["gradient"])
        for key in ("count", "damping", "promised"):
            assert state["kfac"][key] == now[key]

    def test_inputs(self):
        model, opt, x, y = self.trained()
        bad = x.clone()
        bad[3, 1] = float("inf")
        self.unchanged(model, opt, (bad, y), "begins in the inputs")
        opt.step(x, y)

    def test_a_layer(self):
        model, opt, x, y = self.trained()
        with torch.no_grad():
            model[0].bias[0] = float("nan")
        with pytest.raises(rp.InputError, match=r"layer with parameter '0\.weight'"):
            opt.step(x, y)

    def test_running_statistics_do_not_keep_the_batch(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        x, y = data()
        opt = KFAC(model, rp.Categorical(), damping=0.1)
        opt.step(x, y)
        before = {k: b.clone() for k, b in model.named_buffers()}
        bad = x.clone()
        bad[0, 0] = float("nan")
        with pytest.raises(rp.InputError, match="the inputs"):
            opt.step(bad, y)
        assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())

    def test_a_gradient(self):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

            def forward(self, x):
                return self.last((0.0 * self.first(x)).sqrt())

        torch.manual_seed(0)
        model = Root().double()
        x, y = data()
        opt = KFAC(model, rp.Categorical(), damping=0.1)
        with pytest.raises(rp.InputError, match=r"gradient in parameter 'first\.bias' is not finite"):
            opt.step(x, y)
        assert opt.state_dict()["kfac"]["count"] == 0


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


def appended(model, opt):
    model.append(nn.Linear(3, 3).double())


def replaced(model, opt):
    model[0] = nn.Linear(5, 4).double()


def removed(model, opt):
    del model[2]


def frozen(model, opt):
    model[2].bias.requires_grad_(False)


def negative(model, opt):
    opt.param_groups[0]["lr"] = -0.1


def group(model, opt):
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (appended, "'3.weight' of the model is new"),
        (replaced, "'0.weight' of the model is another tensor"),
        (removed, "'2.weight' of the model is gone"),
        (frozen, "'2.bias' has requires_grad=False"),
        (negative, "lr of group 0 .'0.weight'. is -0.1"),
        (group, "made with it, by names"),
    ],
)
def test_what_changes_after_it_was_made_is_refused(change, match):
    model, (x, y) = mlp(5, 4, 3), data()
    opt = KFAC(model, rp.Categorical(), damping=0.1)
    opt.step(x, y)
    change(model, opt)
    before = vector(model)
    for batch in ((x, y), (lambda: (model(x), y),)):
        with pytest.raises(rp.InputError, match=match):
            opt.step(*batch)
    assert torch.equal(vector(model), before)


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


def state_of(model, x, y):
    opt = KFAC(model, rp.Categorical(), damping=0.1)
    opt.step(x, y)
    return opt.state_dict()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda model, x, y: KFAC(model, rp.Categorical(), lr=-1.0), "lr is -1"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), damping=0.0), "damping is 0"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), step_size="newton"), "step_size is 'newton'"),
        (lambda model, x, y: CurvatureOptions("sampled"), "estimator is 'sampled'"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), ["0.wieght"]), "Did you mean '0.weight'"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x), "needs targets"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(lambda: model(x).sum()), r"return \(model\(x\), y\)"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x, y[:, None]), "shape"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x, y + 5), "class|target"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).load_state_dict({}), "'kfac'"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).load_state_dict(state_of(mlp(5, 3), x, y)), "another netw"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).load_state_dict(state_of(mlp(5, 6, 3), x, y)), "another ne"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x[:, :3], y), r"Module '0' \(Linear\) says: mat1"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x.float(), y), "have type torch.float32 and"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step((x, x), y), "The model .Sequential. says: .*forward"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x.numpy(), y), "inputs of the batch hold no tensor"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x, y.numpy()), "targets of the batch must be a tensor"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x[:7], y), "7 rows of inputs but 40"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x[:0], y[:0]), "has no example"),
        (
            lambda model, x, y: KFAC(model, rp.Categorical()).step(x, y, x[:7, 0].abs()),
            r"weights of the batch .*\(7,\)",
        ),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(x, y, y - 1.0), "weight of row .* is -1"),
        (
            lambda model, x, y: KFAC(model, rp.Categorical()).step(lambda: (model(x), y, torch.ones(3))),
            r"weights of the batch .*\(3,\)",
        ),
        (lambda model, x, y: KFAC(model, rp.Categorical(), model.parameters()), "params holds tensors"),
        (lambda model, x, y: KFAC(model, rp.Categorical()).step(lambda: None), "returned a NoneType"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), lr="1"), "lr is '1'"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), damping="1"), "damping is '1'"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), curvature="ekfac"), "curvature is 'ekfac'"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), step_size=0.1), "step_size is 0.1"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), averaging=0.9), "averaging is 0.9"),
        (lambda model, x, y: KFAC(model, rp.Categorical(), [{"params": "0", "momentum": 1}]), "option 'momentum'"),
        (
            lambda model, x, y: KFAC(model, rp.Categorical(), [{"params": "0", "lr": -1}]),
            "lr of the group of '0' is -1",
        ),
        (lambda model, x, y: CurvatureOptions(decay="x"), "decay is 'x'"),
        (lambda model, x, y: CurvatureOptions(samples=0), "samples is 0"),
        (lambda model, x, y: CurvatureOptions(generator=3), "generator is 3"),
        (lambda model, x, y: rp.optim.QuadraticStep(exponent=1.5), "exponent is 1.5"),
        (lambda model, x, y: rp.optim.QuadraticStep(exponent=0.0), "exponent is 0"),
        (lambda model, x, y: rp.optim.QuadraticStep(momentum=0.9), "momentum is 0.9"),
        (lambda model, x, y: DampingOptions(period=1.5), "period is 1.5"),
        (lambda model, x, y: DampingOptions(smallest=1.0, largest=0.5), "smallest is 1.0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(call, match):
    with pytest.raises(rp.InputError, match=match):
        call(mlp(5, 4, 3), *data())


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
