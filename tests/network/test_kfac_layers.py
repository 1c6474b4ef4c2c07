"""Layers of every kind: blocks, diagonals and per-example gradients against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import raphson as rp
from raphson.network.curvature._layer_diagonal import layer_diagonal, layer_gradient_norms
from raphson.network.curvature.factors._recorded_batches import recorded_batches
from raphson.network.layers._layer_record import LayerRecord

from .kfac_oracle import block_places, gauss_newton, relative, within_blocks


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(5))


class Transformer(nn.Module):
    """Embedding tied to the output, positions, packed attention, norms, and a bare token put in front."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=1)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.norm, self.scale = nn.LayerNorm(4), nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        h = torch.cat([self.start.expand(len(x), 1, 4), h], 1)
        h = h if self.batch_first else h.transpose(0, 1)
        h = h + self.attention(self.norm(h), self.norm(h), h)[0] * self.scale
        return self.out(h if self.batch_first else h.transpose(0, 1))[:, 1:]


class ClassToken(nn.Module):
    """Attention with a token put in front, the only one that is read: other positions of the last layer are unused."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.attention = nn.Parameter(torch.randn(1, 1, 4)), nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return self.out(self.attention(h, h, h)[0][:, 0])


class Heads(nn.Module):
    """A layer for each head, with heads folded into the axis of examples, and as many positions as examples."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.head, self.out = inside, nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 2)).movedim(2, 0 if self.inside else 1)
        mixed = self.head(heads.flatten(0, 1)).tanh().unflatten(0, heads.shape[:2])
        return self.out(mixed.movedim(0 if self.inside else 1, 2).flatten(2).mean(1))


class HandWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pack, self.norm, self.out = nn.Linear(4, 12), nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.pack(self.norm(x)).unflatten(-1, (3, 2, 2)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.out(x + mixed.transpose(1, 2).flatten(2))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.Linear(4, 3)
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)), inplace=True)
        return self.head((self.second(h) + h).relu().mean((2, 3)))


class Tied(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(F.linear(x, self.weight, self.bias)) @ self.weight
        return x


class Twice(nn.Module):
    """One layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Standardized(nn.Conv2d):
    """A convolution with a weight that is made of its parameter, which no layer then has."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias, padding=1)


def upsampling() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(4, 6, 3, padding="same", groups=2), nn.GELU(), nn.GroupNorm(2, 6)),
        *(nn.ConvTranspose1d(6, 4, 3, 2, 1, 1, 2, dilation=2), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, 2)),
    )


MODELS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2)),
        randn(4, 4),
        rp.Gaussian(),
        randn(4, 2),
    ),
    "sequence": lambda: (
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), Twice(), nn.Linear(4, 3)),
        *(randn(3, 6, 4), rp.Categorical(torch.tensor([1.0, 2.0, 0.5]), ignore_index=1), integers(3, 3, 6)),
    ),
    "transformer": lambda: (Transformer(), integers(7, 3, 5), rp.Categorical(ignore_index=2), integers(7, 3, 5)),
    "positions first": lambda: (Transformer(False), integers(7, 5, 5), rp.Categorical(), integers(7, 5, 5)),
    "class token": lambda: (ClassToken(), randn(4, 4, 4), rp.Categorical(), integers(3, 4)),
    "class token, as many as examples": lambda: (ClassToken(), randn(5, 4, 4), rp.Categorical(), integers(3, 5)),
    "heads": lambda: (Heads(False), randn(3, 3, 4), rp.Categorical(), integers(3, 3)),
    "heads first": lambda: (Heads(True), randn(3, 3, 4), rp.Categorical(), integers(3, 3)),
    "causal": lambda: (HandWritten(), randn(3, 4, 4), rp.Categorical(torch.tensor([1.0, 2.0, 0.5])), integers(3, 3, 4)),
    "resnet": lambda: (ResNet(), randn(3, 2, 5, 4), rp.Bernoulli(torch.tensor(2.0)), integers(2, 3, 3).double()),
    "weight of its own": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), Standardized(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        *(randn(3, 2, 5, 4), rp.Categorical(), integers(3, 3)),
    ),
    "upsampling": lambda: (upsampling(), randn(3, 4, 10), rp.Gaussian(), randn(3, 2)),
    "tied": lambda: (Tied(), randn(4, 4), rp.Gaussian(), randn(4, 4)),
    "recurrent": lambda: (Recurrent(), randn(3, 5, 4), rp.Gaussian(), randn(3, 2)),
    "images": lambda: (
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(12, 3), nn.ELU(), nn.Linear(3, 2, bias=False)),
        ),
        *(randn(5, 2, 8, 8), rp.Gaussian(), randn(5, 2)),
    ),
    "bag of words": lambda: (
        nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        *(integers(6, 5, 3), rp.Gaussian(), randn(5, 2)),
    ),
}


def objective_of(name: str, weighted: bool = True) -> rp.Objective:
    torch.manual_seed(0)
    module, x, likelihood, y = MODELS[name]()
    data = (x, y, torch.rand(len(x), dtype=torch.float64) + 0.1) if weighted else (x, y)
    return rp.Objective(module.double().eval(), likelihood, data)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_every_layer(name: str) -> None:
    """What is stored exactly is exact; a corrected block has the exact trace and is nearer."""
    objective = objective_of(name)
    exact = gauss_newton(objective)
    corrected, plain = rp.ekfac(objective), rp.kfac(objective)
    kinds = [row[2] for row in plain.report().rows]
    assert any("Kronecker" in kind or "blocks" in kind for kind in kinds)
    for rows, kind in zip(block_places(plain), kinds, strict=True):
        truth = exact[rows[:, None], rows]
        ours, better = (op.to_dense()[rows[:, None], rows] for op in (plain, corrected))
        if kind == "exact block":
            torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-12)
        elif ("Kronecker" in kind and " + " not in kind) or "blocks of" in kind:
            torch.testing.assert_close(better.diagonal().sum(), truth.diagonal().sum(), rtol=1e-8, atol=1e-12)
            assert (better - truth).norm() <= (ours - truth).norm() * (1 + 1e-9) + 1e-12 * truth.norm()
    v = randn(objective.n_parameters, seed=3)
    torch.testing.assert_close(plain @ v, plain.to_dense() @ v)


@pytest.mark.parametrize("name", MODELS)
def test_exact_diagonal(name: str) -> None:
    objective = objective_of(name)
    expected = gauss_newton(objective).diagonal()
    torch.testing.assert_close(layer_diagonal(objective), expected, rtol=1e-9, atol=1e-13)
    empirical = gauss_newton(objective, "empirical").diagonal()
    torch.testing.assert_close(layer_diagonal(objective, "empirical"), empirical, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(layer_diagonal(objective, "observed"), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_sampled_diagonal_is_that_of_the_other_structures(name: str) -> None:
    objective = objective_of(name)
    diagonal, dense = (rp.fisher(objective, "mc", structure, samples=2) for structure in ("diagonal", "dense"))
    torch.testing.assert_close(diagonal.diagonal(), dense.diagonal(), rtol=1e-9, atol=1e-13)


def test_sampled_diagonal_costs_as_many_backward_passes_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = []
    deliver = LayerRecord.deliver
    monkeypatch.setattr(LayerRecord, "deliver", lambda self, u, jobs: (vectors.append(len(u)), deliver(self, u, jobs)))
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 100)).double()
    objective = rp.Objective(module, rp.Categorical(), (randn(30, 4), integers(100, 30)))
    rp.fisher(objective, "mc", "diagonal", samples=3)
    assert sum(vectors) == 3


@pytest.mark.parametrize("name", MODELS)
def test_example_gradients_and_norms(name: str) -> None:
    objective = objective_of(name)
    recorded = next(recorded_batches(objective))
    leaves = objective.model.leaves()
    f = objective.model.call(leaves, recorded.batch.x)
    of_loss = objective.likelihood.gradient(f.detach(), recorded.batch.y)
    for u in (of_loss, randn(*f.shape, seed=9)):
        expected = []
        for n in range(len(u)):
            parts = torch.autograd.grad(f[n], list(leaves.values()), u[n], retain_graph=True, materialize_grads=True)
            expected.append(torch.cat([part.reshape(-1) for part in parts]))
        if u is of_loss:
            torch.testing.assert_close(rp.example_gradients(objective), torch.stack(expected), rtol=1e-9, atol=1e-12)
        norms = layer_gradient_norms(objective, recorded, u)
        torch.testing.assert_close(norms, torch.stack(expected).square().sum(1), rtol=1e-9, atol=1e-12)


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
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.size = max(self.size, out.numel())
            return out

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
