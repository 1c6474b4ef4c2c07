"""The softmax in few passes: exponentials are computed once, in place, in the layout of the outputs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raphson.likelihoods._special._tracked import tracked
from raphson.linalg import DiagonalPlusLowRank


class Target(NamedTuple):
    """A target row ``t`` in a form that needs no one-hot array.

    ``t = own * onehot(label) + background`` for class labels, ``t = dense`` for probabilities.
    """

    scale: Tensor  # sum of t, (..., 1)
    label: Tensor | None = None  # (..., 1)
    own: Tensor | None = None  # (..., 1)
    background: Tensor | None = None  # (..., 1) or (..., K)
    dense: Tensor | None = None  # (..., K)


class Split(NamedTuple):
    """Exponentials of the outputs less their maximum, split into one class and the others.

    Keeping the two apart is what keeps digits where the one class has all the probability: ``1 - p`` is
    ``rest / total``, and ``-log p`` is ``log1p`` of a small number.
    """

    one: Tensor  # the one class, (..., 1)
    gap: Tensor  # f_one - max f, (..., 1)
    own: Tensor  # exp(gap), (..., 1)
    terms: Tensor  # exp(f - max f), zero at the one class, (..., K)
    rest: Tensor  # sum of terms, (..., 1)
    total: Tensor  # own + rest, (..., 1)


def reuse(x: Tensor, method: str, *args: Any) -> Tensor:
    """Return ``x.method(*args)``, in the memory of ``x`` unless a transformation forbids it."""
    in_place = not any(isinstance(a, Tensor) and tracked(a) for a in (x, *args))
    result: Tensor = getattr(x, method + "_" if in_place else method)(*args)
    return result


def shift(f: Tensor) -> Tensor:
    """Return the outputs less their maximum, in a new array with the strides of ``f``."""
    # Elementwise operations and reductions keep strides; torch.softmax would copy a transposed view.
    return f - f.detach().amax(-1, keepdim=True)


def split(shifted: Tensor, target: Target) -> Split:
    """Split at the label, or at the likeliest class of a probability row; overwrites ``shifted``."""
    one = shifted.argmax(-1, keepdim=True) if target.label is None else target.label
    gap = shifted.gather(-1, one)
    own = gap.exp()
    terms = reuse(reuse(shifted, "scatter", -1, one, -math.inf), "exp")
    rest = terms.sum(-1, keepdim=True)
    return Split(one, gap, own, terms, rest, own + rest)


def nll_and_split(shifted: Tensor, target: Target) -> tuple[Tensor, Split]:
    """Return the negative log-likelihood and the split; overwrites ``shifted``."""
    spread = target.dense if target.dense is not None else target.background
    linear = None
    if spread is not None:
        linear = (spread * shifted).sum(-1, keepdim=True)
    part = split(shifted, target)
    # Exact at own = 1, the case in which the value is small; otherwise the value exceeds log 2.
    nll = target.scale * torch.log1p(part.rest + (part.own - 1))
    if target.own is not None:
        nll = nll - target.own * part.gap
    if linear is not None:
        nll = nll - linear
    # An ignored row counts nothing even where its logits are infinite (0 * inf).
    return nll.masked_fill(target.scale == 0, 0.0).squeeze(-1), part


def residual(weighted: Tensor, target: Target, part: Split) -> Tensor:
    """Turn ``s exp(f - max) / total``, zero at the one class, into ``s p - t``; overwrites ``weighted``."""
    if target.own is None:
        own = target.scale * part.own / part.total
        return reuse(reuse(weighted, "scatter", -1, part.one, own), "sub", target.dense)
    own = -target.scale * part.rest / part.total
    if target.background is None:
        return reuse(weighted, "scatter", -1, part.one, own)
    # own + background is the whole of t at the label, and background is subtracted with the rest.
    own = own + target.scale - target.own
    return reuse(reuse(weighted, "scatter", -1, part.one, own), "sub", target.background)


def softmax(f: Tensor) -> Tensor:
    """Return the probabilities, in the strides of ``f``."""
    terms = reuse(shift(f), "exp")
    return reuse(terms, "mul", terms.sum(-1, keepdim=True).reciprocal())


def one_hot_variance(p: Tensor) -> Tensor:
    """Return ``p (1 - p)``, the complement as the sum of the other shares, which keeps its digits where ``p`` is 1."""
    nothing = torch.zeros_like(p[..., :1])
    before = torch.cat([nothing, p[..., :-1].cumsum(-1)], -1)
    after = torch.cat([p[..., 1:].flip(-1).cumsum(-1).flip(-1), nothing], -1)
    return p * (before + after)


def information(p: Tensor, scale: Tensor | None, *, unit: bool) -> DiagonalPlusLowRank:
    """Return ``s (diag p - p p^T)``; with ``unit`` every ``s`` is 0 or 1, and ``p`` may be overwritten."""
    if scale is None:
        return DiagonalPlusLowRank(p, p.unsqueeze(-1), sign=-1)
    if unit:
        weighted = reuse(p, "mul", scale)
        return DiagonalPlusLowRank(weighted, weighted.unsqueeze(-1), sign=-1)
    return DiagonalPlusLowRank(p * scale, (p * scale.sqrt()).unsqueeze(-1), sign=-1)
