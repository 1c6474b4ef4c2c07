"""Ordinary parts of networks: attention, recurrence, normalization, tied weights, embeddings, large vocabularies."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import raphson as rp
from raphson.network.curvature.factors import _output_curvature

from .network_cases import BY_NAME, DTYPE, C, D, N, T, by_definition, draw, network

LOSS = BY_NAME["categorical"]


def close(actual, expected, rtol=1e-9):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def check(model, plain, x, y, note=None, rtol=1e-9):
    """Every matrix in every structure; ``plain`` is the same function of the same parameters in plain operations."""
    dense = by_definition(plain, LOSS, x, y, None, "mean", 0.0)
    if note is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            o = rp.Objective(model, rp.Categorical(), (x, y))
        assert o.notes == ()
    else:
        with pytest.warns(rp.RaphsonWarning, match=note):
            o = rp.Objective(model, rp.Categorical(), (x, y))
        assert len(o.notes) == 1
    close(o.gradient(), dense.gradient, rtol)
    v = torch.randn(o.n_parameters, 2, dtype=x.dtype if x.is_floating_point() else DTYPE)
    for expected, op in (
        (dense.hessian, rp.hessian(o)),
        (dense.ggn, rp.ggn(o)),
        (dense.empirical, rp.fisher(o, "empirical")),
    ):
        expected = expected.to(v.dtype)
        close(op.mm(v), expected @ v, rtol)
    close(rp.ggn(o, "dense").to_dense(), dense.ggn.to(v.dtype), rtol)
    close(rp.ggn(o, "diagonal").diagonal(), dense.ggn.diagonal().to(v.dtype), rtol)
    close(rp.jacobian(model, x).to_dense().reshape(dense.jacobian.shape), dense.jacobian.to(v.dtype), rtol)
    close(rp.example_gradients(o).mean(0) / (y.numel() / y.shape[0]), dense.gradient.to(v.dtype), rtol)
    return o, dense


class Attention(nn.Module):
    """Two heads of attention in a residual block with a norm; in torch's kernels or by their definitions."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.mix, self.out, self.norm = nn.Linear(4, 12), nn.Linear(4, C), nn.LayerNorm(4)
        self.embed = nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(-2, -3) for part in self.mix(h).chunk(3, -1))
        if self.fused:
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            t = q.shape[-2]
            scores = (q @ k.mT / math.sqrt(2)).masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
            a = scores.softmax(-1) @ v
        h = h + a.transpose(-2, -3).flatten(-2)
        if self.fused:
            return self.out(self.norm(h))
        centered = h - h.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
        return self.out(scaled * self.norm.weight + self.norm.bias)


def test_case_18_attention_takes_a_differentiable_path_and_says_so():
    torch.manual_seed(0)
    fused, plain = Attention(True).to(DTYPE), Attention(False).to(DTYPE)
    plain.load_state_dict(fused.state_dict())
    x, y, _ = draw(LOSS)
    o, dense = check(fused, plain, x, y, "attention runs in a fused kernel")
    close(rp.hessian(o, "blocks", blocks="layer").blocks[0].to_dense(), dense.hessian[:60, :60])
    assert torch.backends.cuda.flash_sdp_enabled()
    check(plain, plain, x, y)


def test_case_18_the_attention_module():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True)
            self.out = nn.Linear(4, C)
            self.embed = nn.Embedding(6, 4)

        def forward(self, token: Tensor) -> Tensor:
            return self.out(self.block(self.embed(token)))

    torch.manual_seed(0)
    model = Net().to(DTYPE).eval()
    token = torch.randint(0, 6, (N, T))
    _, y, _ = draw(LOSS)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = by_definition(model, LOSS, token, y, None, "mean", 0.0)
    with pytest.warns(rp.RaphsonWarning, match="fused kernel"):
        o = rp.Objective(model, rp.Categorical(), (token, y))
    v = torch.randn(o.n_parameters, 2, dtype=DTYPE)
    close(rp.hessian(o).mm(v), dense.hessian @ v)
    close(rp.ggn(o).mm(v), dense.ggn @ v)
    close(rp.ggn(o, "dense").to_dense(), dense.ggn)


class Recurrent(nn.Module):
    """A recurrent layer by torch, or step by step from the same parameters."""

    def __init__(self, kind: type[nn.RNNBase], fused: bool) -> None:
        super().__init__()
        self.layer, self.out, self.fused = kind(D, 3, batch_first=True), nn.Linear(3, C), fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.out(self.layer(x)[0])
        p, steps = self.layer, []
        h = c = x.new_zeros(x.shape[0], 3)
        for t in range(x.shape[1]):
            a, b = x[:, t] @ p.weight_ih_l0.mT + p.bias_ih_l0, h @ p.weight_hh_l0.mT + p.bias_hh_l0
            if isinstance(p, nn.LSTM):
                i, f, g, o = (a + b).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (r, z, n), (s, w, m) = a.chunk(3, 1), b.chunk(3, 1)
                r, z = (r + s).sigmoid(), (z + w).sigmoid()
                h = (1 - z) * (n + r * m).tanh() + z * h
            steps.append(h)
        return self.out(torch.stack(steps, 1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_case_18_recurrent_layers(kind):
    torch.manual_seed(0)
    fused, plain = Recurrent(kind, True), Recurrent(kind, False)
    plain.load_state_dict(fused.state_dict())
    x, y, _ = draw(LOSS)
    check(fused.to(DTYPE), plain.to(DTYPE), x, y)


def test_case_18_a_recurrent_kernel_without_second_derivatives_is_replaced():
    torch.manual_seed(0)
    fused, plain = Recurrent(nn.LSTM, True), Recurrent(nn.LSTM, False).to(DTYPE)
    plain.load_state_dict(fused.state_dict())
    x, y, _ = draw(LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)  # which kernel runs depends on the build of torch
        o = rp.Objective(fused, rp.Categorical(), (x.float(), y))
    dense = by_definition(plain, LOSS, x, y, None, "mean", 0.0)
    v = torch.randn(o.n_parameters, 2)
    for expected, op in ((dense.hessian, rp.hessian(o)), (dense.ggn, rp.ggn(o))):
        close(op.mm(v), expected.float() @ v, 1e-4)


class Residual(nn.Module):
    """Convolutions with frozen batch normalization, a residual sum, group normalization and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(1, 2)
        self.out = nn.Linear(2 * 4, C)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.first(x)), inplace=True)
        h = F.avg_pool2d(F.silu(self.norm(h + self.second(h))), 2)
        return self.temperature * self.out(h.flatten(1))


def test_case_19_convolutions_residuals_and_normalization():
    torch.manual_seed(0)
    model = Residual().to(DTYPE)
    x, y = torch.randn(N, 1, 4, 4, dtype=DTYPE), torch.tensor([0, 2, 1, 1, 0])
    model(x)
    model.eval()
    o, dense = check(model, model, x, y)
    tensors = rp.hessian(o, "blocks")
    assert [b.shape[0] for b in tensors.blocks] == [p.numel() for p in model.parameters()]
    assert len(rp.ggn(o, "blocks", blocks="layer").blocks) == 6
    close(rp.hessian(o, "diagonal").diagonal(), dense.hessian.diagonal())


def test_case_19_tied_weights_and_embeddings():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(C, 4)
            self.norm = nn.RMSNorm(4)
            self.out = nn.Linear(4, C, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, token: Tensor) -> Tensor:
            return self.out(self.norm(torch.tanh(self.embed(token).cumsum(1))))

    torch.manual_seed(0)
    model = Language().to(DTYPE)
    token = torch.randint(0, C, (N, T))
    _, y, _ = draw(LOSS)
    o, _ = check(model, model, token, y)
    assert o.space.names == ("embed.weight", "norm.weight")


def test_a_compiled_module_is_seen_through():
    model = network()
    x, y, _ = draw(LOSS)
    o = rp.Objective(torch.compile(model), rp.Categorical(), (x, y))
    assert o.space.names[0] == "0.weight"
    close(rp.hessian(o).to_dense(), rp.hessian(rp.Objective(model, rp.Categorical(), (x, y))).to_dense())


@pytest.mark.parametrize("kind", ["observed", "expected", "empirical", "mc"])
def test_many_outputs_in_chunks_of_positions_give_the_same(kind, monkeypatch):
    x, y, weight = draw(BY_NAME["smoothed"])
    o = rp.Objective(network(), BY_NAME["smoothed"].build(), (x, y, weight))
    make = lambda: rp.ggn(o) if kind == "observed" else rp.fisher(o, kind)  # noqa: E731
    v = torch.randn(o.n_parameters, 2, dtype=DTYPE)
    expected, curvature = make().mm(v), rp.hessian(o).mm(v)
    monkeypatch.setattr(_output_curvature, "_CACHED", 20)
    close(make().mm(v), expected)
    close(make().mv(v[:, 0].contiguous()), expected[:, 0])
    close(rp.hessian(o).mm(v), curvature)


def test_case_17_a_product_at_a_large_vocabulary_needs_a_few_arrays_of_logits():
    from torch.utils._python_dispatch import TorchDispatchMode

    positions, vocabulary = 96, 50_304

    class Peak(TorchDispatchMode):
        """Bytes of the storages that are alive at the same time, of those made inside."""

        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, int] = {}
            self.now = self.peak = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.see(tensor.untyped_storage())
            return out

        def see(self, storage) -> None:
            import weakref

            key = storage._cdata
            if key in self.alive:
                return
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key)

        def gone(self, key: int) -> None:
            self.now -= self.alive.pop(key)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(vocabulary, 8), nn.Linear(8, vocabulary, bias=False))
    token = torch.randint(0, vocabulary, (2, positions // 2))
    o = rp.Objective(model, rp.Categorical(), (token, token.flip(1)), params=["1"])
    v = torch.randn(o.n_parameters)
    makers = {
        "ggn": rp.ggn,
        "hessian": rp.hessian,
        "empirical": lambda o: rp.fisher(o, "empirical"),
        "mc": lambda o: rp.fisher(o, "mc"),
    }
    logits = 4 * positions * vocabulary
    for name, make in makers.items():
        with Peak() as peak:
            make(o).mv(v)
        assert 2 * logits <= peak.peak <= 5 * logits, (name, peak.peak / logits)
