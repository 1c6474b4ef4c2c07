"""Layer inputs and output gradients, against automatic differentiation of one example at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.network._module import Model
from raphson.network.layers._recorder import record_layers

from .kfac_models import Recurrent


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Attention(nn.Module):
    """A transformer block with a tied embedding, a position table and a bare scale."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=1)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embedding.weight
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        h = h if self.batch_first else h.transpose(0, 1)
        h = h + self.attention(self.norm(h), self.norm(h), h)[0] * self.scale
        return self.out(h if self.batch_first else h.transpose(0, 1))


class HandWritten(nn.Module):
    """Attention by scaled_dot_product_attention, with a packed projection and an RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.pack, self.norm, self.out = nn.Linear(4, 12), nn.RMSNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.pack(self.norm(x)).unflatten(-1, (3, 2, 2)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.out((x + mixed.transpose(1, 2).flatten(2)).mean(1))


class Residual(nn.Module):
    """Convolutions with eval BatchNorm, in-place activations and an in-place residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(4, 3)
        self.norm.running_mean = torch.randn(4)
        self.norm.running_var = torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)), inplace=True)
        g = self.second(h)
        g += h
        return self.head(g.relu_().mean((2, 3)))


def pooled(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(features, 2))


def images(*size: int) -> Tensor:
    return randn(3, *size, seed=3)


TOKENS = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))
SQUARE = torch.randint(0, 7, (5, 5), generator=torch.Generator().manual_seed(0))
MODELS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), randn(6, 4)),
    "sequence": lambda: (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)), randn(3, 6, 4)),
    "attention": lambda: (Attention(True), TOKENS),
    "attention, positions first": lambda: (Attention(False), TOKENS),
    "attention, as many positions as examples": lambda: (Attention(False), SQUARE),
    "scaled_dot_product_attention": lambda: (HandWritten(), randn(3, 5, 4)),
    "encoder layer": lambda: (nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), randn(3, 5, 4)),
    "residual": lambda: (Residual(), images(2, 5, 4)),
    "conv2d": lambda: (pooled(nn.Conv2d(4, 6, (3, 2), 2, (1, 0), (1, 2), 2), features=6), images(4, 7, 6)),
    "conv1d same": lambda: (pooled(nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2), features=6), images(4, 9)),
    "conv1d": lambda: (pooled(nn.Conv1d(4, 6, 3, stride=2), nn.GroupNorm(2, 6), features=6), images(4, 9)),
    "conv3d": lambda: (pooled(nn.Conv3d(2, 3, 2, padding=1), nn.BatchNorm3d(3), features=3), images(2, 3, 4, 3)),
    "transposed 1d": lambda: (pooled(nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, dilation=2), features=6), images(4, 5)),
    "transposed 2d": lambda: (pooled(nn.ConvTranspose2d(2, 3, (2, 3), 2, 1), features=3), images(2, 4, 3)),
    "instance norm": lambda: (pooled(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), features=3), images(2, 6)),
    "recurrent": lambda: (Recurrent(3), randn(3, 5, 4)),
}


def check(model: Model, x: Tensor, unrecognized: set[str]) -> None:
    """Per-example gradients, put together from the layer calls, equal those of autograd."""
    space = model.space
    expected_output = model.call(None, x)
    record = record_layers(model.call, space.tensors, x)
    torch.testing.assert_close(record.output, expected_output)
    assert set(record.unrecognized) == unrecognized
    n, k = x.shape[0], 2
    u = randn(k, *record.output.shape, seed=7)
    found = {name: torch.zeros(k, n, t.numel(), dtype=t.dtype) for name, t in space.tensors.items()}
    for call, g, layout in zip(record.calls, record.gradients(u), record.layouts(), strict=True):
        for view, values in call.example_gradients(g, layout):
            index = view.index(space.tensors[view.name]).reshape(-1)
            found[view.name].index_add_(2, index, values.flatten(2))
    leaves = model.leaves()
    output = model.call(leaves, x)
    for i in range(k):
        for row in range(n):
            expected = torch.autograd.grad(
                output[row], list(leaves.values()), u[i, row], retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(leaves, expected, strict=True):
                if name not in unrecognized:
                    torch.testing.assert_close(found[name][i, row], gradient.flatten(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_layer_calls_reproduce_per_example_gradients(name: str) -> None:
    torch.manual_seed(0)
    module, x = MODELS[name]()
    unrecognized = {n for n, _ in module.named_parameters() if n.startswith("cell.")}
    check(Model(module.double().eval()), x, unrecognized)


def test_functions_of_parameters() -> None:
    def function(p: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ p["w"] + p["b"])
        return hidden @ p["w"].t() * p["scale"] + torch.addmm(p["c"], x, p["v"]) + x.mm(p["v"][:, :4].mT)

    p = {"w": randn(4, 3), "b": randn(3), "scale": randn(4), "c": randn(4), "v": randn(4, 4, seed=2)}
    check(Model(function, p), randn(6, 4, seed=1), set())


def test_what_is_not_recognized_is_named() -> None:
    def function(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.einsum("ni,oi->no", x, p["w"]) + F.linear(x, p["v"]) + x[:, :2] * (p["scale"] ** 2)

    p = {"w": randn(2, 4), "v": randn(2, 4), "scale": randn(2)}
    check(Model(function, p), randn(3, 4), {"w", "scale"})


def test_unused_and_detached_parameters_are_no_layer_call() -> None:
    def function(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, p["w"]) + F.linear(x, p["v"]).detach()

    record = record_layers(
        Model(function, {"w": randn(2, 4), "v": randn(2, 4)}).call, {"w": randn(2, 4), "v": randn(2, 4)}, randn(3, 4)
    )
    assert [call.name for call in record.calls] == ["w"]
    assert not record.unrecognized


def test_a_parameter_in_other_strides_keeps_its_order() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    check(Model(module), randn(3, 2, 3, 3), set())


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    module = Attention(True).double().eval()
    for p in list(module.parameters())[:2]:
        p.requires_grad_(False)
    before = {name: (p.requires_grad, id(p), set(vars(p))) for name, p in module.named_parameters()}
    state = torch.get_rng_state()
    model = Model(module, ["attention", "norm"])
    record_layers(model.call, model.space.tensors, TOKENS).gradients(randn(1, 3, 5, 7))
    assert torch.equal(state, torch.get_rng_state())
    assert before == {name: (p.requires_grad, id(p), set(vars(p))) for name, p in module.named_parameters()}
    assert all(p.grad is None for p in module.parameters())
    for part in module.modules():
        assert not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)


def test_an_input_changed_in_place_is_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 1.0
            out = self.head(self.layer(h))
            h.zero_()
            return out

    model = Model(Overwrites().double())
    record = record_layers(model.call, model.space.tensors, randn(3, 4))
    with pytest.raises(InputError, match="'layer.weight' is changed in place after"):
        record.calls[0].example_gradients(record.gradients(randn(1, 3, 2))[0], record.layouts()[0])


def test_no_weight_gradient_is_computed() -> None:
    """The backward pass has one product a layer, and none below the first."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func.__name__.startswith(("mm", "addmm", "bmm"))
            return func(*args, **(kwargs or {}))

    model = Model(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double())
    record = record_layers(model.call, model.space.tensors, randn(7, 4))
    with Count() as count:
        record.gradients(randn(1, 7, 3))
    assert count.products == 2


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2, "groups": 2},
        {"padding": "same", "dilation": 3},
        {"padding": "valid"},
        {"stride": (2,), "padding": (1,)},
    ],
)
def test_patches_times_the_weight_are_the_convolution(n: int, options: dict) -> None:
    torch.manual_seed(0)
    kernel = (3, 2, 1)[:n]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    x, w = randn(2, 4, *(7, 6, 5)[:n]), randn(6, 4 // options.get("groups", 1), *kernel, seed=1)
    record = record_layers(lambda params, x: convolve(x, params["w"], **options), {"w": w}, x)
    (call,) = record.calls
    a, (groups, o, i) = call.inputs(), call.weight_shape
    found = torch.einsum("goi,ngil->ngol", w.reshape(groups, o, i), a)
    expected = convolve(x, w, **options)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-12, atol=1e-13)


def test_an_activation_in_place_behind_a_layer_over_positions_hides_nothing() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    model, x = Model(module), randn(2, 3, 4)
    record = record_layers(model.call, model.space.tensors, x)
    assert [call.name for call in record.calls] == ["0.weight", "1.weight", "3.weight"] and not record.unrecognized
    (gradient,) = record.calls[1].example_gradients(
        record.gradients(torch.ones_like(record.output)[None])[1], record.layouts()[1]
    )[:1]
    module(x).sum().backward()
    torch.testing.assert_close(gradient[1].sum((0, 1)), module[1].weight.grad, rtol=1e-12, atol=1e-14)


def test_linear_layers_by_onednn_in_single_precision(longer_vectors):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(70, 90), nn.LayerNorm(90), nn.Linear(90, 80, bias=False), nn.ReLU(inplace=True))
    network = nn.Sequential(first, nn.Linear(80, 90), nn.GELU(), nn.Linear(90, 5)).eval()
    x, u = torch.randn(4, 250, 70), torch.randn(3, 4, 250, 5)
    records = []
    for dtype in (torch.float32, torch.float64):
        model = Model(network.to(dtype))
        records.append(record_layers(model.call, model.space.tensors, x.to(dtype)))
    found, expected = records
    assert len(longer_vectors) == 3  # forward; the last layer is small, and of the first nothing goes backward
    torch.testing.assert_close(found.output.double(), expected.output, rtol=1e-4, atol=1e-5)
    for vectors in (u[:1], u):
        longer_vectors.clear()
        for a, b in zip(found.gradients(vectors), expected.gradients(vectors.double()), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)
        assert len(longer_vectors) == 2
    # second derivatives are there, too: those of the sum of squares in the first layer's outputs
    edges = [record.calls[0].edge for record in records]
    seconds = []
    for record, edge in zip(records, edges, strict=True):
        (g,) = torch.autograd.grad(record.output.square().sum(), edge, create_graph=True)
        seconds.append(torch.autograd.grad(g.square().sum(), edge, retain_graph=True)[0])
    torch.testing.assert_close(seconds[0].double(), seconds[1], rtol=1e-2, atol=1e-2 * float(seconds[1].abs().max()))
