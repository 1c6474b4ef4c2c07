"""Networks in half precision: sums over many batches keep their digits, and what needs more is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raphson as rp

HALF = (torch.bfloat16, torch.float16)
N, BATCH = 900, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).eval()


def inputs() -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).bfloat16().half()


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    x, y = inputs().to(dtype), torch.arange(N) % 7 % 3
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, N, BATCH)]


def ones(o: rp.Objective) -> Tensor:
    return torch.ones(o.n_parameters, dtype=o.dtype)


QUANTITIES: dict[str, Callable[[rp.Objective], Tensor]] = {
    "value": lambda o: o.value(),
    "gradient": lambda o: o.gradient(),
    "hessian": lambda o: rp.hessian(o) @ ones(o),
    "ggn": lambda o: rp.ggn(o) @ ones(o),
    "dense": lambda o: rp.ggn(o, "dense").to_dense(),
    "diagonal": lambda o: rp.ggn(o, "diagonal").diagonal(),
    "blocks": lambda o: rp.hessian(o, "blocks").to_dense(),
    "empirical": lambda o: rp.fisher(o, "empirical", "diagonal").diagonal(),
    "kfac": lambda o: rp.kfac(o).to_dense(),
    "ekfac": lambda o: rp.ekfac(o).to_dense(),
    "gradients of examples": rp.example_gradients,
    "learning rate": lambda o: torch.tensor(rp.suggest_learning_rate(o).value),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("dtype", "reduction"), [(torch.bfloat16, "sum"), (torch.float16, "mean")], ids=str)
def test_many_batches_lose_no_digits(dtype: torch.dtype, reduction: Any, quantity: str) -> None:
    """Added up in bfloat16, 300 losses are off by a tenth: a term below 1/256 of the sum leaves no trace."""
    model = network().to(dtype)
    found = QUANTITIES[quantity](rp.Objective(model, rp.Categorical(), batches(dtype), reduction=reduction))
    exact = rp.Objective(copy.deepcopy(model).double(), rp.Categorical(), batches(torch.float64), reduction=reduction)
    expected = QUANTITIES[quantity](exact)
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-4


def written(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight.mul_(1.5)


def written_unseen(model: nn.Sequential) -> None:
    model[0].weight.data.mul_(1.5)


def loaded(model: nn.Sequential) -> None:
    model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [written, written_unseen, loaded])
def test_present_values_count(change: Callable[[nn.Sequential], None]) -> None:
    model = network().bfloat16()
    objective = rp.Objective(model, rp.Categorical(), batches(torch.bfloat16))
    operator = rp.ggn(objective)
    operator @ ones(objective)
    change(model)
    again = rp.Objective(model, rp.Categorical(), batches(torch.bfloat16))
    assert torch.equal(objective.gradient(), again.gradient())
    with pytest.raises(rp.RaphsonError, match="parameters of the model changed"):
        operator @ ones(objective)


def test_a_function_follows_its_dictionary_in_half_precision() -> None:
    params = {"a": torch.ones(4, 3).bfloat16()}

    def gradient() -> Tensor:
        made = rp.Objective(
            lambda p, x: torch.tanh(x @ p["a"]), rp.Categorical(), batches(torch.bfloat16), params=params
        )
        return made.gradient()

    objective = rp.Objective(
        lambda p, x: torch.tanh(x @ p["a"]), rp.Categorical(), batches(torch.bfloat16), params=params
    )
    params["a"].mul_(0.5)
    assert torch.equal(objective.gradient(), gradient())
    params["a"] = torch.linspace(0, 1, 12).view(4, 3).bfloat16()
    assert torch.equal(objective.gradient(), gradient())
    params["a"] = params["a"].float()
    with pytest.raises(rp.InputError, match="Parameter 'a' is now .*torch.float32"):
        objective.value()


def test_changes_of_the_model_are_refused_as_in_single_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).bfloat16().eval()
    objective = rp.Objective(model, rp.Categorical(), batches(torch.bfloat16))
    model.train()
    with pytest.raises(rp.InputError, match=r"'1' \(Dropout\) is in training mode"):
        objective.gradient()
    model.eval().float()
    with pytest.raises(rp.InputError, match=r"'0.weight' is now .*float32"):
        objective.gradient()


def test_data_that_are_written_into_are_refused() -> None:
    x, y = inputs().bfloat16(), torch.arange(N) % 3
    objective = rp.Objective(network().bfloat16(), rp.Categorical(), (x, y))
    operator = rp.ggn(objective)
    operator @ ones(objective)
    x.mul_(2)
    with pytest.raises(rp.InputError, match="changed in place"):
        operator @ ones(objective)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "kfac": lambda model: rp.optim.KFAC(model, rp.Categorical()),
    "levenberg-marquardt": lambda model: rp.optim.LevenbergMarquardt(model, rp.Categorical()),
    "newton-cg": lambda model: rp.optim.NewtonCG(model, rp.Categorical()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_optimizers_say_what_they_need(dtype: torch.dtype, name: str) -> None:
    model, (x, y) = network().to(dtype), batches(dtype)[0]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(rp.InputError, match=r"needs parameters in single.*'0.weight' is in half.*model.float\(\)"):
        OPTIMIZERS[name](model).step(x, y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_posterior_of_layers_of_several_types_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).bfloat16(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.bfloat16())).float())

    data = inputs().float(), torch.arange(N) % 3
    with pytest.raises(rp.InputError, match=r"'b.weight' has dtype torch.float32 but 'a.weight' has torch.bfloat16"):
        rp.laplace(Mixed(), rp.Categorical(), data)


def test_types_without_arithmetic_are_named() -> None:
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(rp.InputError, match="'weight' has type torch.float8_e4m3fn, which is for storage only"):
        rp.Objective(layer, rp.Categorical(), batches(torch.float32), params=["weight"])
    with pytest.raises(rp.InputError, match="has no parameters at all, as a quantized one"):
        rp.Objective(nn.Sequential(nn.Tanh()), rp.Categorical(), batches(torch.float32))


def test_a_model_that_casts_by_itself_is_told_why_it_was_run_in_single_precision() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.bfloat16())

    with pytest.raises(rp.InputError, match=r"Module 'layer'.*copy in single: take casts .*model.float\(\)"):
        rp.Objective(Casts(), rp.Categorical(), batches(torch.float32))


def test_a_posterior_of_a_network_in_half_precision_is_loaded_into_one() -> None:
    model, (x, y) = network().bfloat16(), batches(torch.bfloat16)[0]
    post = rp.laplace(model, rp.Categorical(), (x, y))
    again = rp.Posterior.from_state(post.state_dict(), post.metadata(), network().bfloat16())
    torch.testing.assert_close(again.predict(x).mean, post.predict(x).mean)


def test_an_optimizer_refuses_a_model_that_was_converted_under_it() -> None:
    model, (x, y) = network(), batches(torch.float32)[0]
    opt = rp.optim.KFAC(model, rp.Categorical())
    opt.step(x, y)
    model.double()
    with pytest.raises(rp.InputError, match=r"'0.weight' is now \(5, 4\) of type torch.float64.*was .*torch.float32"):
        opt.step(x.double(), y)
