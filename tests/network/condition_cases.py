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
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from .condition_changes import (
    add_hook,
    assign_state,
    buffers,
    copy_state,
    freeze,
    no_bias,
    other_forward,
    replace_activation,
    replace_layer,
    replace_parameter,
    same_number,
    set_rate,
    set_scale,
    set_slope,
    set_temperature,
    step,
    there_and_back,
    tie,
    transpose,
    untie,
    vector_step,
    write_scale,
)
from .condition_models import (
    WORDS,
    Adapted,
    C,
    Calls,
    Counts,
    D,
    DetachedTanh,
    Draws,
    DropPath,
    Functional,
    Generated,
    OnceTanh,
    Phase,
    Positions,
    Routed,
    Scaled,
    SilentTanh,
    Slope,
    Spectral,
    Tanh,
    Tempered,
    TwiceTanh,
    Words,
    attention,
    body,
    convolution,
    distances,
    doubled_back,
    first_frozen,
    hooked_back,
    images,
    indices,
    noisy,
    norm_model,
    normed_as_before,
    reals,
    tied_layers,
)
from .network_cases import BY_NAME

LOSS = BY_NAME["categorical"]
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
