"""K-FAC goes on from a saved state, and refuses numbers that are not finite before they enter it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import raphson as rp
from tests.optim.kfac_cases import KFAC, CurvatureOptions, data, mlp, vector


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
