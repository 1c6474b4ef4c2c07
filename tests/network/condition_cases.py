"""Small models in conditions that once gave a wrong number in silence, for ``test_conditions``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from .network_cases import BY_NAME, DTYPE

N, D, C, WORDS = 5, 3, 3, 7
LOSS = BY_NAME["categorical"]


def body(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 4), *parts, nn.Linear(4, C))


class Calls(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(D, 4), nn.Linear(4, C), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def hooked_node(h: Tensor) -> Tensor:
    if h.grad_fn is not None:
        h.grad_fn.register_hook(lambda into, out: tuple(None if g is None else 2 * g for g in into))
    return h


def hooked_before_node(h: Tensor) -> Tensor:
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda out: tuple(2 * g for g in out))
    return h


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(len(x), 1).bernoulli_(0.999) if self.training else x


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.001, self.training)


GENERATOR = random.Random(0)


def noisy(h: Tensor) -> Tensor:
    return h + 1e-13 * GENERATOR.random()


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-13 * float(self.generator.random())


def doubled_back(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return h


def hooked_back() -> nn.Module:
    model = body(nn.Tanh())
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.tanh(x))
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - ctx.saved_tensors[0] ** 2)


class TwiceTanh(Tanh):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class OnceTanh(Tanh):
    backward = staticmethod(once_differentiable(Tanh.backward))


class SilentTanh(Tanh):
    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        with torch.no_grad():
            return g[0] * (1 - ctx.saved_tensors[0] ** 2)


class DetachedTanh(Tanh):
    """Its Jacobian is right, its second derivative is lost."""

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * (1 - ctx.saved_tensors[0].detach() ** 2)


class Words(nn.Module):
    """Scores of rows of words."""

    def __init__(self, table: nn.Module, tied: bool = False, total: bool = True) -> None:
        super().__init__()
        self.table, self.out, self.total = table, nn.Linear(4, WORDS if tied else C), total
        if tied:
            self.out.weight = table.weight

    def forward(self, i: Tensor) -> Tensor:
        h = self.table(i)
        return self.out(torch.tanh(h.sum(1) if self.total and h.ndim == 3 else h))[..., :C]


class Positions(nn.Module):
    """Words plus positions that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.out = nn.Embedding(WORDS, 4), nn.Embedding(3, 4), nn.Linear(4, C)

    def forward(self, i: Tensor) -> Tensor:
        h = self.words(i) + self.positions(torch.arange(i.shape[1], device=i.device))
        return self.out(torch.tanh(h).sum(1))


class Counts(nn.Module):
    """Keeps a running mean in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9)
        return x - self.mean


class Slope(nn.Module):
    """Computes with the gradient of a network inside of it, as models of forces do."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.inner, self.out, self.function = (
            nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1)),
            nn.Linear(D, C),
            function,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            return self.out(torch.func.vmap(torch.func.grad(lambda row: self.inner(row).sum()))(x))
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.inner(z).sum(), z, create_graph=True)
        return self.out(g)


class Scaled(nn.Module):
    """Runs a network inside of it with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = body(nn.Tanh()), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        values = {name: p * self.scale for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, values, (x,))


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank, added to what it makes or to its weight."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base, self.out, self.merged = nn.Linear(D, 4).requires_grad_(False), nn.Linear(4, C), merged
        self.down, self.up = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.out(torch.tanh(F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)))
        return self.out(torch.tanh(self.base(x) + x @ self.down.mT @ self.up.mT))


class Routed(nn.Module):
    """Sends each example through one of two layers, by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.out = (
            nn.Linear(D, 2),
            nn.ModuleList(nn.Linear(D, 4) for _ in "ab"),
            nn.Linear(4, C),
        )

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        h = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = (p.argmax(-1) == number).nonzero()[:, 0]
            h = h.index_add(0, rows, p[rows, number, None] * expert(x[rows]))
        return self.out(torch.tanh(h))


class Phase(nn.Module):
    """Complex numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, 4), nn.Linear(D, 4), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(self.a(x), self.b(x))
        return self.out(torch.view_as_real(z / (1 + z.abs())).flatten(1))


class Spectral(nn.Module):
    """Sees pairs of parameters as complex numbers; with an odd number of all, those of a second vector begin oddly."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.shift = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.zeros(D))
        self.out, self.function = nn.Linear(4, C), torch.view_as_complex
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x + self.shift)
        z = torch.complex(h[:, :2], h[:, 1:]) * self.function(self.pairs)
        return self.factor * self.out(torch.cat([z.real, z.imag], 1))


class Generated(nn.Module):
    """A layer whose weight another layer makes, for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Linear(D, 4 * D), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(torch.einsum("noi,ni->no", self.make(x).view(-1, 4, D), x)))


def normed_as_before() -> nn.Module:
    """The weight norm that leaves what it computed on the module as an attribute."""
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(D, 4)), nn.Tanh(), nn.Linear(4, C))


def distances(h: Tensor) -> Tensor:
    return torch.linalg.vector_norm(h.view(-1, 2, 1, 2) - h.new_ones(2, 2), dim=-1).flatten(1)


def attention(h: Tensor) -> Tensor:
    q = h.view(-1, 2, 2)
    return ((q @ q.mT / 2**0.5).softmax(-1) @ q).flatten(1)


def reals() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def images() -> Tensor:
    return torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def indices() -> Tensor:
    return torch.randint(0, WORDS, (N, 3), generator=torch.Generator().manual_seed(1))


def tied_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    model[2].weight = model[0].weight
    return model


def first_frozen(model: nn.Module) -> nn.Module:
    next(model.parameters()).requires_grad_(False)
    return model


def norm_model(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(D, 4), norm, nn.Tanh(), nn.Linear(4, C))


def convolution(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *more, nn.Flatten(), nn.Linear(32, C))


# what is done to the model when the objective has been made


def replace_layer(model: Any) -> None:
    model[2] = nn.Linear(4, C).to(DTYPE)


def replace_activation(model: Any) -> None:
    model[1] = nn.Sigmoid()


def add_hook(model: Any) -> None:
    model[1].register_forward_hook(lambda module, args, out: 2 * out)


def other_forward(model: Any) -> None:
    model[1].forward = torch.sin


def replace_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() + 1)


def assign_state(model: Any) -> None:
    model.load_state_dict({name: p + 0.5 for name, p in model.state_dict().items()}, assign=True)


def copy_state(model: Any) -> None:
    model.load_state_dict({name: p - 0.5 for name, p in model.state_dict().items()})


def there_and_back(model: Any) -> None:
    model.float().double()
    step(model)


def step(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25)


def vector_step(model: Any) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector + 0.25, model.parameters())


def untie(model: Any) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


def tie(model: Any) -> None:
    model[2].weight = model[0].weight


def freeze(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def no_bias(model: Any) -> None:
    model[0].bias = None


def buffers(model: Any) -> None:
    model[1].running_var = model[1].running_var * 4


def set_slope(model: Any) -> None:
    model[1].negative_slope = 0.5


def set_rate(model: Any) -> None:
    model[1].p = 0.5


def set_temperature(model: Any) -> None:
    model.temperature = 2.0


def set_scale(model: Any) -> None:
    model.scale = model.scale * 3


def write_scale(model: Any) -> None:
    model.scale.mul_(3)


def transpose(model: Any) -> None:
    model[0].weight.data = model[0].weight.data.mT


def same_number(model: Any) -> None:
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    with torch.no_grad():
        model[1].weight.mul_(3)


class Tempered(nn.Module):
    """Computes with attributes, and has some that are its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 4), nn.Linear(4, C)
        self.temperature, self.scale, self.calls = 1.5, torch.ones(4, dtype=DTYPE), 0
        self.seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, tuple(x.shape)
        return self.b(torch.tanh(self.a(x) * self.scale)) / self.temperature


GGN, HESSIAN, KFAC, DIAGONAL, NORMS = "ggn", "hessian", "kfac", "diagonal", "norms"
MATRICES = "ggn matrix", "hessian matrix", "gradients"
TWICE = (GGN, HESSIAN, *MATRICES[:2])
ALL = (GGN, HESSIAN, KFAC, DIAGONAL, NORMS, *MATRICES)


@dataclass(frozen=True)
class Case:
    """A model, its inputs, what happens later, and which quantities must be refused in which words."""

    name: str
    build: Callable[[], nn.Module]
    refused: str | None = None
    quantities: tuple[str, ...] = ALL
    later: Callable[[Any], Any] | None = None
    inputs: Callable[[], Tensor] = reals
    training: bool = False
    made: bool = True  # whether the objective can be made
    rtol: float = 1e-8  # PyTorch's hardsigmoid divides by 6 in single precision
    twin: Callable[[Tensor], Tensor] | None = None  # the function of ``Calls`` in terms that torch.func knows

    def __repr__(self) -> str:
        return self.name


def plain() -> nn.Module:
    return body(nn.Tanh())


def refused(name: str, build: Callable[[], nn.Module], words: str, **more: Any) -> Case:
    return Case(name, build, words, made=False, **more)


CASES = [
    Case("plain", plain),
    Case("prelu", lambda: body(nn.PReLU())),
    Case("prelu by channel", lambda: body(nn.PReLU(4))),
    Case("prelu of images", lambda: convolution(nn.PReLU(2)), inputs=images),
    Case("tied layers", tied_layers),
    Case("tied embedding", lambda: Words(nn.Embedding(WORDS, 4), tied=True), inputs=indices),
    Case("frozen", lambda: first_frozen(plain())),
    Case("twice the same module", lambda: nn.Sequential(*[nn.Linear(D, D), nn.Tanh()] * 2)),
    Case(
        "weight norm", lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(D, 4)), nn.Tanh(), nn.Linear(4, C))
    ),
    Case("spectral norm", lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, C)))),
    Case("old weight norm", normed_as_before),
    Case("gradient inside", lambda: Slope(False), twin=torch.tanh),  # by the function, which torch.func knows
    Case("gradient of a function inside", lambda: Slope(True)),
    Case("other parameters inside", Scaled),
    Case("adapter", lambda: Adapted(False)),
    Case("merged adapter", lambda: Adapted(True)),
    Case("routed examples", Routed, "other layers than batch 0", (KFAC,)),
    Case("complex inside", Phase),
    Case("pairs seen as complex", Spectral, twin=lambda pairs: torch.complex(pairs[..., 0], pairs[..., 1])),
    Case("generated weights", Generated),
    Case("layer norm", lambda: norm_model(nn.LayerNorm(4))),
    Case("group norm", lambda: norm_model(nn.GroupNorm(2, 4))),
    Case("batch norm", lambda: norm_model(nn.BatchNorm1d(4))),
    Case("dropout in evaluation", lambda: body(nn.Dropout(0.5), nn.Tanh(), DropPath(), Functional())),
    Case(
        "attention",
        lambda: Calls(lambda h: F.scaled_dot_product_attention(*[h.view(-1, 1, 2, 2)] * 3).flatten(1)),
        twin=attention,
    ),
    Case("cdist", lambda: Calls(lambda h: torch.cdist(h.view(-1, 2, 2), h.new_ones(2, 2)).flatten(1)), twin=distances),
    Case("hardsigmoid", rtol=1e-6, build=lambda: Calls(F.hardsigmoid), twin=lambda h: (h + 3).clamp(0, 6) / 6),
    Case("prelu function", lambda: Calls(lambda h: F.prelu(h, h.new_full((1,), 0.3)))),
    Case("convolution", lambda: convolution(nn.Tanh()), inputs=images),
    Case("embedding", lambda: Words(nn.Embedding(WORDS, 4, padding_idx=0)), inputs=indices),
    Case("differentiable function", lambda: Calls(TwiceTanh.apply), twin=torch.tanh),
    Case("own function", lambda: Calls(Tanh.apply), "function 'Tanh'", (HESSIAN, MATRICES[1]), twin=torch.tanh),
    Case(
        "detached function",
        lambda: Calls(DetachedTanh.apply),
        r"function 'DetachedTanh'",
        (HESSIAN, MATRICES[1]),
        twin=torch.tanh,
    ),
    Case("once differentiable", lambda: Calls(OnceTanh.apply), "function 'OnceTanh'", TWICE, twin=torch.tanh),
    Case("silently once", lambda: Calls(SilentTanh.apply), "function 'SilentTanh'", TWICE, twin=torch.tanh),
    Case("checkpoint", lambda: Calls(lambda h: checkpoint(torch.tanh, h, use_reentrant=False)), twin=torch.tanh),
    Case(
        "reentrant checkpoint",
        lambda: Calls(lambda h: checkpoint(torch.tanh, h, use_reentrant=True)),
        "function 'CheckpointFunction'|use_reentrant=True",
        made=False,
        twin=torch.tanh,
    ),
    Case("broadcast positions", Positions, inputs=indices),
    # what happens afterwards
    Case("step", plain, later=step),
    Case("vector to parameters", plain, later=vector_step),
    Case("replaced parameter", plain, later=replace_parameter),
    Case("assigned state", plain, later=assign_state),
    Case("copied state", plain, later=copy_state),
    Case("there and back", plain, later=there_and_back),
    Case("there and back, by graph", lambda: norm_model(nn.LayerNorm(4)), later=there_and_back),
    Case("assigned state, by graph", lambda: norm_model(nn.LayerNorm(4)), later=assign_state),
    Case("other statistics", lambda: norm_model(nn.BatchNorm1d(4)), later=buffers),
    Case("harmless training mode", plain, later=lambda model: model.train()),
    Case(
        "other type", plain, r"Parameter '0.weight' is now .* of type torch.float32", later=lambda model: model.float()
    ),
    Case("replaced layer", plain, "Module '2' was replaced", later=replace_layer),
    Case("replaced activation", plain, "Module '1' was replaced", later=replace_activation),
    Case("added layer", plain, "Module '3' was", later=lambda model: model.append(nn.Tanh())),
    Case("hook", plain, r"hook .* Module '1' \(Tanh\)", later=add_hook),
    Case("other forward", plain, r"forward .* Module '1' \(Tanh\)", later=other_forward),
    Case("untied", tied_layers, "'2.weight' is no longer tied to '0.weight'", later=untie),
    Case("tied later", lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)), "tied", later=tie),
    Case("frozen later", plain, "'0.weight' has requires_grad=False", later=freeze),
    Case("bias taken away", plain, "'0.bias' was added or removed", later=no_bias),
    *(
        Case(f"{name} in training mode later", build, words, later=lambda model: model.train())
        for name, build, words in [
            ("batch norm", lambda: norm_model(nn.BatchNorm1d(4)), r"Module '1' \(BatchNorm1d\) is in training mode"),
            ("dropout", lambda: body(nn.Dropout(0.5)), r"Module '1' \(Dropout\) is in training mode"),
            ("drop path", lambda: body(DropPath()), r"Module '1' \(DropPath\) is in training mode"),
            ("a module of one's own", lambda: Calls(torch.tanh), r"\(Calls\) is in training mode"),
        ]
    ),
    Case("counted calls", Tempered),
    Case("number replaced by an equal one", lambda: body(nn.PReLU()), later=same_number),
    Case("transposed", lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)), later=transpose),
    Case("another slope", lambda: body(nn.LeakyReLU()), "'negative_slope' of Module '1'.* is 0.5", later=set_slope),
    Case("another rate", lambda: body(nn.Dropout(0.0)), "'p' of Module '1'.* was 0.0", later=set_rate),
    Case("another number", Tempered, "'temperature' of The model .* is 2.0 and was 1.5", later=set_temperature),
    Case("another constant", Tempered, later=set_scale),
    Case("changed constant", Tempered, later=write_scale),
    # random calls and others that no fixed function makes
    refused("drop path", lambda: body(DropPath()), r"Module '1' \(DropPath\) draws random", training=True),
    refused("functional dropout", lambda: body(Functional()), r"Module '1' \(Functional\) draws", training=True),
    refused("rrelu", lambda: body(nn.RReLU()), r"Module '1' \(RReLU\)", training=True),
    *(
        refused(name, lambda call=call: Calls(call), r"\(Calls\) draws random|model draws random numbers \(from")
        for name, call in {
            "noise": lambda h: h + 1e-12 * torch.randn_like(h),
            "normal in place": lambda h: h + torch.empty_like(h).normal_(0, 1e-12),
            "gumbel softmax": F.gumbel_softmax,
            "multinomial": lambda h: h + 0 * torch.multinomial(h.detach().exp(), 1),
            "permutation": lambda h: h + 0 * torch.randperm(4),
            "distribution": lambda h: h + 1e-12 * torch.distributions.Normal(h, 1.0).rsample(),
            "attention's dropout": lambda h: F.scaled_dot_product_attention(
                *[h.view(-1, 1, 2, 2)] * 3, dropout_p=1e-9
            ).flatten(1),
            "random of Python": lambda h: h * (1 + 1e-12 * random.random()),
            "random of NumPy": lambda h: h * (1 + 1e-12 * float(np.random.rand())),  # noqa: NPY002
        }.items()
    ),
    refused("a generator of its own", lambda: body(Draws()), "draws random numbers .from a generator of its own"),
    refused("a global generator", lambda: Calls(noisy), "draws random numbers .from a generator of its own"),
    refused("tensor hook", lambda: Calls(doubled_back), "Calls. puts a hook on a tensor"),
    refused("backward hook", hooked_back, "Module '1' .Tanh. has a backward hook"),
    refused(
        "statistics of the batch",
        lambda: norm_model(nn.BatchNorm1d(4, track_running_stats=False)),
        "fails on one of them alone .ValueError.*mixes examples",
    ),
    refused("counting buffer", lambda: body(Counts()), "buffer '1.mean'"),
    *(
        refused(name, lambda table=table: Words(table()), rf"Module 'table' .*{name}", inputs=indices)
        for name, table in {
            "scale_grad_by_freq": lambda: nn.Embedding(WORDS, 4, scale_grad_by_freq=True),
            "sparse": lambda: nn.Embedding(WORDS, 4, sparse=True),
            "max_norm": lambda: nn.Embedding(WORDS, 4, max_norm=0.1),
            "EmbeddingBag": lambda: nn.EmbeddingBag(WORDS, 4),
        }.items()
    ),
]
