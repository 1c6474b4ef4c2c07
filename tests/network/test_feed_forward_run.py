"""Training passes of feed-forward networks in closed form, against those that record layer calls and make a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import raphson as rp
from raphson.data import checked_batch
from raphson.network import TrainedModel
from raphson.network.training._feed_forward_run import FeedForwardRun
from raphson.network.training._recorded_run import RecordedRun

SIZES = (5, 7, 6, 3)


class Wrapped(nn.Module):
    """A network that is no sequence of layers, so that its calls have to be recorded."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def network(activation=nn.Tanh, bias=True, after=()):
    torch.manual_seed(0)
    layers = []
    for a, b in zip(SIZES, SIZES[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1], *after).double()


def batch(*positions, weight=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, *positions, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (9, *positions), generator=generator)
    return (x, y, torch.rand(9, generator=generator, dtype=torch.float64)) if weight else (x, y)


def made(model, given, params=None):
    trained = TrainedModel(model, rp.Categorical(), params)
    return trained.run(checked_batch(given), True)


def kind(model, given, params=None):
    return type(made(model, given, params)._now)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.Hardswish])
@pytest.mark.parametrize("positions", [(), (4,)])
@pytest.mark.parametrize("params", [None, ["2", "4.weight"]])
def test_a_pass_is_that_of_the_graph(activation, positions, params):
    model, given = network(activation), batch(*positions, weight=True)
    inner = None if params is None else [f"inner.{name}" for name in params]
    closed, graph = made(model, given, params), made(Wrapped(model), given, inner)
    assert isinstance(closed._now, FeedForwardRun)
    assert isinstance(graph._now, RecordedRun)
    torch.testing.assert_close(closed.f, graph.f)
    torch.testing.assert_close(closed.loss, graph.loss)
    torch.testing.assert_close(closed.loss_now(), graph.loss)
    torch.testing.assert_close(closed.gradient(keep=True), graph.gradient(keep=True))
    for mine, theirs in zip(closed.empirical_gradients(), graph.empirical_gradients(), strict=True):
        torch.testing.assert_close(mine, theirs)
    v = torch.randn(closed.space.numel, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(closed.jvp(v), graph.jvp(v))
    torch.testing.assert_close(closed.product(v), graph.product(v))
    u = torch.randn(closed.f.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for names in ([], closed.space.names[:2]):
        mine, named = closed.backward(u, names)
        theirs, others = graph.backward(u, [f"inner.{name}" for name in names])
        assert [f"inner.{name}" for name in named] == list(others)
        for one, other in zip([*mine, *named.values()], [*theirs, *others.values()], strict=True):
            torch.testing.assert_close(one, other)
    closed.release()
    assert closed.released
    torch.testing.assert_close(closed.jvp(v), graph.jvp(v))


@pytest.mark.parametrize("estimator", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("step_size", ["quadratic", "fixed"])
@pytest.mark.parametrize("bias", [True, False])
def test_steps_are_those_of_the_graph(estimator, step_size, bias):
    models = [network(bias=bias), Wrapped(network(bias=bias))]
    options = rp.optim.CurvatureOptions(estimator=estimator)
    opts = [
        rp.optim.KFAC(m, rp.Categorical(), step_size=step_size, curvature=options, weight_decay=1e-3) for m in models
    ]
    for i in range(7):
        x, y = batch()
        losses = [opt.step(x.roll(i, 1), y) for opt in opts]
        torch.testing.assert_close(losses[0], losses[1])
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_what_has_no_closed_form_is_recorded():
    x, y = batch()
    assert kind(network(), (x, y)) is FeedForwardRun
    assert kind(network(), ((x,), y)) is RecordedRun
    assert kind(network(after=[nn.Softmax(-1)]), (x, y)) is RecordedRun
    assert kind(network(), (x, y), ["0.bias", "2"]) is RecordedRun  # a bias whose weight is constant
    hooked = network()
    hooked[0].register_forward_hook(lambda module, args, out: 2 * out)
    assert kind(hooked, (x, y)) is RecordedRun
    assert kind(nn.Sequential(*[nn.Linear(5, 5).double()] * 2, nn.Linear(5, 3).double()), (x, y)) is RecordedRun


def test_dropout_is_looked_at_in_every_step():
    model, (x, y) = network(), batch()
    model.insert(2, nn.Dropout(0.5))
    opt = rp.optim.KFAC(model.eval(), rp.Categorical(), step_size="fixed")
    opt.step(x, y)
    model.train()
    before = copy.deepcopy(model)
    torch.manual_seed(5)
    loss = opt.step(x, y)
    torch.manual_seed(5)
    expected = nn.functional.cross_entropy(before(x), y)
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, nn.functional.cross_entropy(before.eval()(x), y))


def test_values_that_were_put_in_place_of_others_are_followed():
    model, (x, y) = network(), batch()
    opt = rp.optim.KFAC(model, rp.Categorical())
    opt.step(x, y)
    model[0].weight.data = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    expected = nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(opt.step(x, y), expected.detach())


@pytest.mark.parametrize("x", [torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 5), torch.randn(9, 5).long()])
def test_inputs_that_do_not_fit_are_told_as_by_other_networks(x):
    _, y = batch()
    messages = []
    for model in (network(), Wrapped(network())):
        opt = rp.optim.KFAC(model, rp.Categorical())
        with pytest.raises(rp.InputError) as caught:
            opt.step(x, y)
        messages.append(str(caught.value).replace("inner.", ""))
    assert messages[0].split("(")[0].split("'")[0] == messages[1].split("(")[0].split("'")[0]
