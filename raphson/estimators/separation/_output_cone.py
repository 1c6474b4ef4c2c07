r"""Where a likelihood lets the outputs of a row run off: its recession cone, from the target alone.

Along a direction :math:`\delta` of a row's outputs the negative log-likelihood never rises if and only if
:math:`\delta` satisfies a few linear conditions, which depend on the target: a zero count asks for
:math:`\delta \le 0`, a positive one for :math:`\delta = 0`, a label for :math:`\delta_y \ge \delta_k`. Where an
inequality is strict the likelihood rises for ever; a direction against it costs without bound. Offsets are finite and
change nothing.

References:
    C. J. Geyer (2009), Likelihood inference in exponential families and directions of recession, EJS 3, 259-289.
    S. Correia, P. Guimaraes and T. Zylkin (2019), Verifying the existence of maximum likelihood estimates for
    generalized linear models, arXiv:1903.01633.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raphson.likelihoods import (
    Bernoulli,
    Binomial,
    Categorical,
    Likelihood,
    Linked,
    Multinomial,
    NegativeBinomial,
    Ordinal,
    Poisson,
    ScaledLikelihood,
)

Array = NDArray[Any]

ABSENT, GAIN, GUARD, EQUAL, HELD = range(5)
"""What a condition asks for.

Nothing; >= 0, and > 0 is a gain; >= 0 without gain (outputs in order); = 0; = 0 by choice (a second parameter).
"""

_FREE, _HELD = 2, 3
_KINDS = 2000  # with more different patterns of targets than this nothing is decided: each takes calls of its own
_DENSE = 32  # conditions on up to so many classes are dense: fewer calls, and no more work than the rows are


@dataclass(frozen=True, eq=False)
class OutputCone:
    """The conditions on a direction of the C outputs, by kind of target.

    Attributes:
        kinds: ``(N,)`` kind of each row's target.
        matrices: For each kind ``(m, C)``, one condition a row; sparse where there are many outputs.
        roles: ``(n_kinds, m)``: ABSENT, GAIN, GUARD, EQUAL or HELD.
        targets: ``(n_kinds, m)``: in words, the target that gains.
        is_ordered: Whether the outputs must increase.
        is_label: Whether each kind is one class, ``kinds`` being its code.
    """

    kinds: Array
    matrices: tuple[Any, ...]
    roles: Array
    targets: Array
    is_ordered: bool = False
    is_label: bool = False

    @property
    def n_outputs(self) -> int:
        """Number of outputs, C."""
        return int(self.matrices[0].shape[1])

    def has_role(self, *roles: int) -> Array:
        """Return which conditions ``(N, m)`` have one of the roles."""
        found: Array = np.isin(self.roles, roles)[self.kinds]
        return found

    def condition(self, kind: int, condition: int) -> Array:
        """Return one condition on the outputs, ``(C,)``."""
        matrix = self.matrices[kind]
        return np.asarray(matrix[condition] if isinstance(matrix, np.ndarray) else matrix[[condition]].toarray()[0])

    def limit(self, kind: int, strict: Array, far: float) -> Array:
        """Return the outputs ``(C,)``, far or zero, to which the strict gains ``(m,)`` of a kind of target drive a row.

        What the remaining outputs say is the likelihood of the limit. Ordered outputs keep their order.
        """
        rows = [self.condition(kind, m) for m in np.flatnonzero(strict & (self.roles[kind] == GAIN)).tolist()]
        c = np.arange(self.n_outputs)
        total = np.zeros(self.n_outputs)
        for row in rows:
            at = int(np.flatnonzero(row)[0])
            if self.is_ordered:
                total += np.where(c >= at, 1.0 + c, 0.0) if row[at] > 0 else np.where(c <= at, c - len(c), 0.0)
            else:
                total += row if np.count_nonzero(row) == 1 else np.minimum(row, 0.0)
        return far * total


@functools.singledispatch
def output_cone(likelihood: Likelihood, y: Tensor, n_outputs: int) -> OutputCone | None:
    """Return the recession cones of a likelihood at targets; None where they are unknown: no linear program decides.

    Only the mean's part counts: a second parameter (the dispersion of counts) is held.
    """
    return None


@output_cone.register
def _(likelihood: ScaledLikelihood, y: Tensor, n_outputs: int) -> OutputCone | None:
    return output_cone(likelihood.base, y, n_outputs)


@output_cone.register
def _(likelihood: Linked, y: Tensor, n_outputs: int) -> OutputCone | None:
    """Return those of the base where every link is the identity; others may be bounded."""
    identity = all(link.name == "identity" for link in likelihood.maps)
    return output_cone(likelihood.base, y, n_outputs) if identity else None


@output_cone.register(Poisson)
@output_cone.register(NegativeBinomial)
def _(likelihood: Likelihood, y: Tensor, n_outputs: int) -> OutputCone | None:
    if getattr(likelihood, "link", "log") != "log":
        return None
    k = len(likelihood.parameters)
    counts = _columns(y)
    signs = np.full((len(counts), n_outputs), _HELD, dtype=np.int8)
    signs[:, ::k] = np.where(counts == 0, -1, 0)
    return _signed(signs)


@output_cone.register
def _(likelihood: Bernoulli, y: Tensor, n_outputs: int) -> OutputCone | None:
    if any(w is not None and not bool((w > 0).all()) for w in (likelihood.pos_weight, likelihood.label_weight)):
        return None
    labels = _columns(y)
    signs = _within(likelihood.link, ((labels == 1).astype(np.int8) - (labels == 0)).astype(np.int8))
    cone = _signed(signs)
    return cone and replace(cone, is_label=n_outputs == 1 and likelihood.link != "log" and bool((signs != 0).all()))


@output_cone.register
def _(likelihood: Binomial, y: Tensor, n_outputs: int) -> OutputCone | None:
    values = _columns(y)
    if likelihood.trials is None:
        successes, failures = values[:, :1], values[:, 1:]
    else:
        successes, failures = values, likelihood.trials - values
    signs = (failures == 0).astype(np.int8) - (successes == 0).astype(np.int8)
    signs = _within(likelihood.link, signs)
    signs[(successes == 0) & (failures == 0)] = _FREE
    return _signed(signs, "without success", "without failure")


@output_cone.register
def _(likelihood: Multinomial, y: Tensor, n_outputs: int) -> OutputCone | None:
    return _softmax_of(_columns(y) > 0)


@output_cone.register
def _(likelihood: Categorical, y: Tensor, n_outputs: int) -> OutputCone | None:
    counted = np.ones(n_outputs, dtype=bool)
    if likelihood.class_weight is not None:
        counted = likelihood.class_weight.detach().cpu().numpy() > 0
    if likelihood.label_smoothing > 0:
        return _softmax(np.zeros(len(y), dtype=np.int64), counted[None])
    if y.is_floating_point():
        return _softmax_of((_columns(y) > 0) & counted)
    codes = _columns(y)[:, 0]
    nothing = np.zeros((1, n_outputs), dtype=bool)
    patterns = np.concatenate([np.eye(n_outputs, dtype=bool) & counted, nothing])
    ignored = codes == likelihood.ignore_index
    return _softmax(np.where(ignored, n_outputs, codes), patterns, bool(counted.all() and not ignored.any()))


@output_cone.register
def _(likelihood: Ordinal, y: Tensor, n_outputs: int) -> OutputCone | None:
    n, levels = n_outputs, n_outputs + 1
    order = np.eye(n)[1:] - np.eye(n)[:-1]
    matrices, roles = [], np.full((levels, n + 1), GUARD, dtype=np.int8)
    for level in range(levels):
        below, above = np.zeros((2, 1, n))
        if level < n:
            above[0, level] = 1.0
        if level > 0:
            below[0, level - 1] = -1.0
        roles[level, :2] = GAIN if level < n else ABSENT, GAIN if level > 0 else ABSENT
        matrices.append(np.concatenate([above, below, order]))
    targets = np.broadcast_to(np.arange(levels).astype(str)[:, None], roles.shape)
    return OutputCone(_columns(y)[:, 0].astype(np.int64), tuple(matrices), roles, targets, is_ordered=True)


def _within(link: str, signs: Array) -> Array:
    """Return in which directions outputs can run off by a link: the log of a probability only falls."""
    if link == "identity":
        return np.zeros_like(signs)
    return np.minimum(signs, 0) if link == "log" else signs


def _columns(y: Tensor) -> Array:
    values = y.detach().cpu().numpy()
    return values[:, None] if values.ndim == 1 else values


def _signed(signs: Array, low: str = "0", high: str = "1") -> OutputCone | None:
    """Return the cones of outputs each of which may only rise (1), only fall (-1), not move (0), or else."""
    patterns, kinds = np.unique(signs, axis=0, return_inverse=True)
    if len(patterns) > _KINDS:
        return None
    role_of = {-1: GAIN, 1: GAIN, 0: EQUAL, _FREE: ABSENT, _HELD: HELD}
    roles = np.vectorize(role_of.__getitem__, otypes=[np.int8])(patterns)
    matrices = tuple(np.diag(np.where(p == -1, -1.0, 1.0)) for p in patterns)
    return OutputCone(kinds.reshape(-1), matrices, roles, np.where(patterns == 1, high, low))


def _softmax_of(positive: Array) -> OutputCone | None:
    """Return the cones of logits for rows that say which classes have a positive count."""
    patterns, kinds = np.unique(positive, axis=0, return_inverse=True)
    return _softmax(kinds.reshape(-1), patterns) if len(patterns) <= _KINDS else None


def _softmax(kinds: Array, patterns: Array, is_label: bool = False) -> OutputCone:
    """Return the cones of logits: those of classes with a positive count move together, no other rises above them."""
    import scipy.sparse

    n_kinds, k = patterns.shape
    roles = np.full((n_kinds, k), ABSENT, dtype=np.int8)
    matrices: list[Any] = []
    for kind, pattern in enumerate(patterns):
        if not pattern.any():
            matrices.append(scipy.sparse.csr_array((k, k)))
            continue
        first = int(pattern.argmax())
        roles[kind] = np.where(pattern, EQUAL, GAIN)
        roles[kind, first] = ABSENT
        others = np.flatnonzero(np.arange(k) != first)
        rows, columns = np.repeat(others, 2), np.stack([np.full(k - 1, first), others], 1).ravel()
        matrices.append(scipy.sparse.csr_array((np.tile([1.0, -1.0], k - 1), (rows, columns)), shape=(k, k)))
    if k <= _DENSE:
        matrices = [matrix.toarray() for matrix in matrices]
    names = np.array([", ".join(map(str, np.flatnonzero(p))) for p in patterns], dtype=object)
    return OutputCone(kinds, tuple(matrices), roles, np.broadcast_to(names[:, None], roles.shape), is_label=is_label)
