"""What K-FAC refuses: arguments, and networks that change after they were given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import raphson as rp
from tests.optim.kfac_cases import KFAC, CurvatureOptions, DampingOptions, data, mlp, vector


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
