"""Steps of K-FAC against dense references, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import raphson as rp
from tests.optim.kfac_cases import EXACT, KFAC, PLAIN, CurvatureOptions, data, fixed, mlp, moved, vector


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


class Repeated(nn.Module):
    """Outputs again and again."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def forward(self, x):
        return x.repeat(1, self.copies)


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
