"""Factors of single layers, what reports say, and the scale of weighted and averaged losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import raphson as rp
from raphson.network.curvature._layer_diagonal import layer_diagonal

from .kfac_models import integers, objective_of, randn
from .kfac_oracle import block_places, gauss_newton, relative, within_blocks
from .largest_tensor import Largest


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), 2, (1, 0), (1, 2), 2),
        nn.Conv1d(4, 6, 3, padding="same", dilation=2),
        nn.Conv3d(2, 3, 2, padding=1),
        nn.ConvTranspose2d(2, 4, (2, 3), 2, 1, groups=2),
        nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, dilation=2),
    ],
    ids=["2d grouped", "1d same", "3d", "transposed 2d grouped", "transposed 1d"],
)
def test_convolution_factors(layer: nn.Module) -> None:
    """Inputs of a convolution are the gradients of one output entry in its weight; outputs come from a perturbation."""
    torch.manual_seed(0)
    layer = layer.double()
    dims = layer.weight.ndim - 2
    x = randn(2, layer.in_channels, *(5, 4, 3)[:dims])
    shift = torch.zeros_like(layer(x), requires_grad=True)
    head = randn(2, shift[0].numel(), seed=2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)).flatten(1) @ head.T

    objective = rp.Objective(Net(), rp.Gaussian(), (x, randn(2, 2)))
    groups, o = layer.groups, layer.out_channels // layer.groups
    patches: list[list[Tensor]] = [[] for _ in range(groups)]
    out = layer(x)
    transposed = "Transpose" in type(layer).__name__
    for n in range(2):
        for place in range(out[0, 0].numel()):
            for g in range(groups):
                (w,) = torch.autograd.grad(out[n, g * o].flatten()[place], layer.weight, retain_graph=True)
                per_group = layer.in_channels // groups
                row = w[g * per_group : (g + 1) * per_group, 0] if transposed else w[g * o]
                patches[g].append(torch.cat([row.reshape(-1), torch.ones(1)]))
    outputs = torch.tanh(layer(x).detach() + shift).flatten(1) @ head.T
    gradients = [torch.autograd.grad(outputs[:, c].sum(), shift, retain_graph=True)[0] for c in range(2)]
    blocks = []
    for g in range(groups):
        a = torch.stack(patches[g])
        u = torch.cat([t[:, g * o : (g + 1) * o].flatten(2).movedim(1, 2).reshape(-1, o) for t in gradients])
        blocks.append(torch.kron(u.T @ u * objective.scale, a.T @ a / len(a)))
    expected = torch.block_diag(*blocks)
    operator = rp.kfac(objective)
    index = operator.index
    assert index is not None
    torch.testing.assert_close(operator.to_dense()[index][:, index], expected, rtol=1e-9, atol=1e-12)
    # and the places of the block are those of the weight and bias that it is about
    torch.testing.assert_close(
        rp.ekfac(objective).trace(), gauss_newton(objective).diagonal().sum(), rtol=1e-9, atol=1e-12
    )


def test_a_lookup_is_a_linear_layer_on_unit_vectors() -> None:
    tokens, y = integers(6, 5, 3), randn(5, 3, 2)
    table = randn(6, 2, seed=4)
    embedding = nn.Sequential(nn.Embedding.from_pretrained(table, freeze=False), nn.Tanh(), nn.Linear(2, 2)).double()
    linear = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Tanh(), nn.Linear(2, 2)).double()
    linear[0].weight.data, linear[2] = table.T.clone(), embedding[2]
    first = rp.Objective(embedding, rp.Gaussian(), (tokens, y), params="0")
    second = rp.Objective(linear, rp.Gaussian(), (F.one_hot(tokens, 6).double(), y), params="0")
    order = torch.arange(12).view(2, 6).T.reshape(-1)
    for make in (rp.kfac, rp.ekfac):
        for sharing in ("expand", "reduce"):
            expected = make(second, sharing=sharing).to_dense()[order][:, order]
            if make is rp.kfac:
                torch.testing.assert_close(make(first, sharing=sharing).to_dense(), expected)
            torch.testing.assert_close(make(first, sharing=sharing).trace(), expected.diagonal().sum())


def test_report_names_every_parameter_and_its_structure() -> None:
    operator = rp.kfac(objective_of("transformer"))
    report = operator.report()
    stored = {names: (n, what) for names, n, what, _ in report.rows}
    assert stored["embedding.weight"] == (28, "Kronecker 7 (diagonal) x 4 + Kronecker 7 x 4")
    assert stored["norm.weight, norm.bias"] == (8, "exact block")
    assert stored["start"] == (4, "exact block")
    assert sum(n for n, _ in stored.values()) + 2 * 20 == operator.shape[0]  # three parts of one name
    assert report.nbytes == sum(row[3] for row in report.rows)
    assert str(report).splitlines()[0].split() == ["parameters", "number", "stored", "as", "bytes"]
    assert "all" in str(report).splitlines()[-1]


def test_large_scales_are_diagonal() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 200), nn.LayerNorm(200), nn.Linear(200, 2)).double()
    objective = rp.Objective(module, rp.Gaussian(), (randn(4, 3), randn(4, 2)))
    operator = rp.kfac(objective)
    assert [row[2] for row in operator.report().rows][1] == "exact diagonal"
    places = block_places(operator)[1]
    # by the definition of the layer: its scale multiplies the normalized input, its shift adds
    z = F.layer_norm(module[0](randn(4, 3)), (200,))
    w = module[2].weight
    expected = torch.cat([torch.einsum("cd,nd->d", w**2, z**2), 4 * w.square().sum(0)]).detach() * objective.scale
    torch.testing.assert_close(operator.diagonal()[places], expected)


def test_parameters_that_are_not_used_have_zeros() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    objective = rp.Objective(Partly().double(), rp.Gaussian(), (randn(4, 3), randn(4, 2)))
    operator = rp.kfac(objective)
    assert operator.shape == (16, 16)
    assert not operator.to_dense()[8:].any()
    torch.testing.assert_close(operator.to_dense(), within_blocks(operator, gauss_newton(objective)))


def test_batches_through_other_layers_are_refused() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + (self.b(x) if bool(x.max() > 50) else 0)

    batches = [(randn(2, 3), randn(2, 2)), (randn(2, 3) + 100, randn(2, 2))]
    objective = rp.Objective(Depends().double(), rp.Gaussian(), batches)
    with pytest.raises(rp.InputError, match="Batch 1 goes through other layers than batch 0"):
        rp.kfac(objective)


def test_many_outputs_need_no_array_of_examples_times_outputs_squared() -> None:
    n, c = 40, 1000
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, c))
    objective = rp.Objective(module, rp.Categorical(), (randn(n, 20).float(), integers(c, n)))
    with Largest() as largest:
        rp.kfac(objective)
    assert c * c <= largest.size < 3 * 2**20  # the factor of the last layer, and chunks of columns
    assert largest.size < n * c * c / 10


@pytest.mark.parametrize("kind", ["class weights", "ignored"])
def test_case_14_weighted_cross_entropy(kind: str) -> None:
    """Class weights and ignored targets, against the Hessian of torch's own loss."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    y = integers(3, 6)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64), reduction="sum")
    if kind == "ignored":
        y[:2], loss = -100, nn.CrossEntropyLoss()
    objective = rp.Objective(module, loss, (randn(6, 4), y))

    def value(theta: Tensor) -> Tensor:
        return loss(torch.func.functional_call(module, objective.space.unflatten(theta), (objective_x,)), y)

    objective_x = randn(6, 4)
    # for the last layer the Gauss-Newton matrix is the Hessian
    hessian = torch.func.hessian(value)(objective.space.vector())[25:, 25:]
    torch.testing.assert_close(layer_diagonal(objective)[25:], hessian.diagonal(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rp.ekfac(objective).diagonal()[25:].sum(), hessian.diagonal().sum())
    single = rp.Objective(module, loss, (randn(6, 4)[3:4], y[3:4]))
    torch.testing.assert_close(
        rp.kfac(single).to_dense(), within_blocks(rp.kfac(single), gauss_newton(single)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_case_15_scale_with_positions_and_outputs(loss: nn.Module, reduction: str) -> None:
    """A sequence axis, several outputs, hidden width unlike the output's: the diagonal is that of torch's own loss."""
    loss = type(loss)(reduction=reduction)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = randn(4, 6, 4)
    cross = isinstance(loss, nn.CrossEntropyLoss)
    y = integers(3, 4, 6) if cross else integers(2, 4, 6, 3).double()
    objective = rp.Objective(module, loss, (x, y))

    def value(theta: Tensor) -> Tensor:
        f = torch.func.functional_call(module, objective.space.unflatten(theta), (x,))
        return loss(f.movedim(-1, 1) if cross else f, y)

    hessian = torch.func.hessian(value)(objective.space.vector())[25:, 25:]
    torch.testing.assert_close(layer_diagonal(objective)[25:], hessian.diagonal(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rp.ekfac(objective).diagonal()[25:].sum(), hessian.diagonal().sum())
    sampled = rp.kfac(objective, "mc", samples=600, generator=torch.Generator().manual_seed(0))
    assert relative(sampled.to_dense(), rp.kfac(objective).to_dense()) < 0.1
