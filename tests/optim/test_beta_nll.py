"""Examples weighted by a power of their variance: the loss by hand, and steps where every batch is the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import raphson as rp

KFAC, beta_nll = rp.optim.KFAC, rp.optim.beta_nll
SCALE = rp.HeteroscedasticGaussian("mean_log_scale")


def table(n=300):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64) * torch.exp(1.5 * x[:, 1])
    return x, (x[:, 0] + x[:, 2].sin() + 0.1 * noise)[:, None]


def regressor(outputs=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def by_hand(model, x, y, beta, f_of_weights=None):
    """The weighted mean loss by torch's own normal distribution, as in the paper: the weights carry no gradient."""
    f = model(x)
    weight = torch.exp(2 * (f if f_of_weights is None else f_of_weights).detach()[:, 1]) ** beta
    loss = -torch.distributions.Normal(f[:, 0], f[:, 1].exp()).log_prob(y[:, 0])
    return (weight * loss).sum() / weight.sum()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_loss_gradient_and_curvature_against_the_definition(beta):
    x, y = table(40)
    model = regressor()
    opt = KFAC(model, SCALE, step_size="quadratic")
    batch = opt._gather(beta_nll(model, SCALE, x, y, beta), None, None)[0]
    loss = by_hand(model, x, y, beta)
    torch.testing.assert_close(batch.loss, loss.detach())
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(batch.gradient, torch.cat([g.reshape(-1) for g in expected]))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    found = jacrev(lambda p: functional_call(model, p, (x,)))(parameters)
    j = torch.cat([found[n].flatten(2) for n in parameters], -1)
    variance = torch.exp(2 * model(x).detach()[:, 1])
    weight = variance**beta / (variance**beta).sum()
    inner = torch.stack([1 / variance, torch.full_like(variance, 2.0)], 1)  # Fisher information of mean, log-scale
    matrix = torch.einsum("n,nc,ncp,ncq->pq", weight, inner, j, j)
    v = torch.randn(len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(batch.product(v), matrix @ v)


def test_variances_of_several_responses_are_averaged_after_the_power_whatever_the_inputs_are():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = regressor(4)

        def forward(self, a, b):
            return self.inner(a + b)

    model, (x, _) = Named(), table(7)
    f = model(x, x).detach()
    expected = (torch.exp(f[:, 1]) + torch.exp(f[:, 3])) / 2  # the root of exp(2 s)
    y = torch.zeros(7, 2, dtype=torch.float64)
    for inputs in ((x, x), {"a": x, "b": x}):
        outputs, targets, weight = beta_nll(model, SCALE, inputs, y, 0.5)()
        torch.testing.assert_close(outputs, f)
        assert targets is y and not weight.requires_grad
        torch.testing.assert_close(weight, expected)
    assert beta_nll(model.inner, SCALE, x, y)()[2].shape == (7,)


@pytest.mark.parametrize("beta", [-0.5, float("nan"), "1"])
def test_a_power_that_makes_no_sense_is_refused(beta):
    with pytest.raises(rp.InputError, match="beta"):
        beta_nll(regressor(), SCALE, *table(5), beta)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_same_batch_is_told_though_its_weights_follow_the_outputs(parts):
    x, y = table()
    model, generator = regressor(), torch.Generator().manual_seed(0)
    opt = KFAC(model, SCALE, step_size="quadratic")
    for k in range(25):
        order = torch.randperm(len(x), generator=generator)
        *before, last = order.split(len(x) // parts)
        for rows in before:
            opt.accumulate(beta_nll(model, SCALE, x[rows], y[rows]))
        if k:
            held = model(x).detach()
            was = by_hand(model, x, y, 1.0, held).item()
        opt.step(beta_nll(model, SCALE, x[last], y[last]))
        assert opt._progress.expected == pytest.approx(by_hand(model, x, y, 1.0).item(), rel=1e-10)
        if k > 1:  # the first step is taken back by the second; what falls is the loss with the weights of the start
            assert by_hand(model, x, y, 1.0, held).item() < was
    opt.step(beta_nll(model, SCALE, x[:280], y[:280]))
    assert opt._progress.expected is None


def test_the_same_rows_with_weights_of_chance_are_another_batch():
    x, y = table()
    model, generator = regressor(), torch.Generator().manual_seed(0)
    opt = KFAC(model, SCALE)

    def batch():
        return model(x), y, torch.rand(len(x), generator=generator, dtype=torch.float64).round()

    opt.step(batch)
    opt.step(batch)
    assert opt._progress.expected is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_a_batch_that_is_given_again(reduction):
    model, (x, _) = regressor(), table(20)
    y = torch.arange(20) % 2
    opt = KFAC(model, nn.CrossEntropyLoss(reduction=reduction), step_size="quadratic")

    def weighted(rows):
        f = model(x[rows])
        return f, y[rows], f.detach()[:, 0].exp()

    opt.accumulate(lambda: weighted(slice(0, 8)))
    opt.accumulate(x[8:12], y[8:12])
    found = opt._gather(lambda: weighted(slice(12, 20)), None, None)[0]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
        f = model(x)
    loss, weight = nn.functional.cross_entropy(f, y, reduction="none"), f[:, 0].exp()
    weight[8:12] = 1.0
    expected = (loss * weight).sum() / (weight.sum() if reduction == "mean" else 1)
    assert found.given_again(0.0) == pytest.approx(float(expected), rel=1e-12)
    fixed = KFAC(model, nn.CrossEntropyLoss())._gather(x, y, None)[0]
    assert fixed.given_again(0.25) == 0.25


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_weights_that_cannot_be_after_a_step_end_it_and_the_next_step_says_why(bad):
    x, y = table()
    model, calls = regressor(), []
    opt = KFAC(model, SCALE)
    plain = beta_nll(model, SCALE, x, y)
    opt.step(plain)
    opt.step(plain)

    def breaks():
        calls.append(1)
        f, target, weight = plain()
        # a pass, one try of the step, and then what the batch would be
        return f, target, weight * (1.0 if len(calls) < 3 else bad)

    opt.step(breaks)
    assert len(calls) == 3
    before = vector(model)
    with pytest.raises(rp.InputError, match="weight"):
        opt.step(breaks)
    assert torch.equal(vector(model), before)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_examples_that_a_large_scale_explains_are_fitted(seed, beta):
    # a sine as in section 3 of the paper, where scales grow that are not fitted: by the likelihood alone, too
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-3, 3, 300, dtype=torch.float64)[:, None]
    y = 0.4 * torch.sin(3 * x) + 0.01 * torch.randn(300, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    opt = KFAC(model, SCALE)
    for _ in range(60):
        opt.step(beta_nll(model, SCALE, x, y, beta))
    error = float((model(x)[:, :1] - y).detach().square().mean().sqrt())
    assert error < 0.06, error
