r"""The output factor: vectors in output space whose outer products sum to the output curvature.

At an output :math:`f_i` (one for each example, or each position of it) the output Hessian, times weight and scale, is
written as :math:`\sum_c u_{ic} u_{ic}^T`. The Gauss-Newton matrix is then
:math:`\sum_{i,c} (J_i^T u_{ic})(J_i^T u_{ic})^T`: backward passes from the ``u``, and no matrix in output space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from raphson._errors import InputError, TooLargeError
from raphson.data import Batch
from raphson.likelihoods import HessianSum
from raphson.linalg import MAX_DENSE_ELEMENTS, LinearOperator, is_near
from raphson.network._chance import check_draws
from raphson.network._objective import Objective
from raphson.network._weighted_loss import WeightedLoss
from raphson.network.curvature.factors._output_curvature import even_parts
from raphson.network.curvature.factors._recorded_batches import RecordedBatch

Estimator = Literal["exact", "observed", "mc", "empirical"]

KINDS = {"exact": "expected", "observed": "observed"}
"""Which output Hessian an exact estimator takes the root of."""

_CHUNK_ELEMENTS = 2**21
"""Entries of the output gradients of a layer that are made at a time: more leave the cache (measured)."""


_MOST_WORK = 2**36
"""Entries of a whole output factor beyond which it is refused, before any is made: on one core of a processor 10^8 a
second go through a last layer with 64 inputs to a diagonal, and a quarter of that to a dense factor (measured, 2,000
outputs), so that this is a quarter of an hour to one hour. The passes over the data have no end that one could see."""

_ELSEWHERE = 64
"""How many times as much other devices may do."""

_OUTER = 1024
"""Outputs of which the outer products in a dense factor cost as much as making and passing the vectors (measured)."""


OutputDraw = Callable[[Tensor, Batch, int], Tensor]
"""From outputs, a batch or the next part of one, and its number to an output factor, ``(N, ..., C, k)``."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which output factor to take.

    Attributes:
        estimator: ``"exact"``: a root of the expected output Hessian; ``"mc"``: random combinations of its vectors,
            with the outer product right in expectation; ``"empirical"``: the output gradient at the data;
            ``"observed"``: a root of the observed output Hessian, which must not be indefinite.
        samples: Number of random combinations.
        generator: Source of randomness.
    """

    estimator: Estimator
    samples: int = 1
    generator: torch.Generator | None = None

    @property
    def exact(self) -> bool:
        """Whether the outer product is a Hessian in the outputs, with as many vectors as outputs."""
        return self.estimator in KINDS

    @property
    def mixed(self) -> bool:
        """Whether random signs keep positions apart in expectation."""
        return self.estimator == "mc"

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise InputError(
                f"estimator is {self.estimator!r}, but it must be one of {', '.join(get_args(Estimator))}."
            )
        check_draws(self.samples, self.generator)


def sampling_of(
    objective: Objective, estimator: Estimator, samples: int, generator: torch.Generator | None
) -> Sampling:
    """Return which output factor to take, with a fixed source of randomness where none is given."""
    made = Sampling(estimator, samples, generator)
    if generator is None and made.mixed:
        return replace(made, generator=torch.Generator(objective.device).manual_seed(0))
    return made


def output_factors(
    objective: WeightedLoss, recorded: RecordedBatch, sampling: Sampling, outer: bool = True
) -> Iterator[Tensor]:
    """Yield the output factor of a batch, scale and weights included, some vectors at a time, ``(k, N, ..., C)``.

    Args:
        objective: The loss.
        recorded: The batch.
        sampling: Which output factor.
        outer: Whether outer products of the vectors themselves are formed, as in a layer that makes the outputs.

    Yields:
        The vectors; ``TooLargeError`` before the first one where all of them, over all data, are too many.
    """
    batch, record = recorded.batch, recorded.record
    f = record.output.detach()
    check_work(objective, recorded, sampling, outer)
    root = _root(objective, batch, f)
    # making vectors takes a few arrays of their size
    chunk = max(1, _CHUNK_ELEMENTS // max(4 * f.numel(), *(call.shape.numel() for call in record.calls), 1))
    lik = objective.likelihood
    factor = None if sampling.estimator == "empirical" else lik.fisher_factor(f, batch.y)
    if sampling.estimator == "observed":
        factor = lik.hessian(f, batch.y).factor()
    if sampling.estimator == "mc":
        assert factor is not None
        for start in range(0, sampling.samples, chunk):
            size = (*f.shape[:-1], factor.shape[-1])
            draws = [_signs(size, sampling.generator, f) for _ in range(min(chunk, sampling.samples - start))]
            yield torch.stack([factor.mv(z) for z in draws]) * (root / math.sqrt(sampling.samples))
        return
    for u in _whole(f, lik.gradient(f, batch.y) if factor is None else factor, chunk):
        yield from _apart(u * root, recorded)


def check_work(objective: WeightedLoss, recorded: RecordedBatch, sampling: Sampling, outer: bool) -> None:
    """Raise ``TooLargeError`` where all vectors of an exact output factor, for all examples, are too many."""
    if not sampling.exact:
        return
    record = recorded.record
    f = record.output
    n, c, positions = f.shape[0], f.shape[-1], f.shape[1:-1].numel()
    apart = 1 if positions == 1 or recorded.positionwise else positions
    entries = max(n, objective.n_examples) * positions * apart * c**2
    work = entries * (1 + c / _OUTER) if outer and c**2 <= MAX_DENSE_ELEMENTS else entries
    if work <= _MOST_WORK * (1 if is_near(f) else _ELSEWHERE):
        return
    passes = "each of which needs backward passes of its own, " if apart > 1 else ""
    at = f"at each of {positions} positions, {passes}" if positions > 1 else ""
    last = None if record.at_output is None else record.calls[record.at_output].name
    once = isinstance(last, str) and [call.name for call in record.calls].count(last) == 1
    alone = f"; or the layer of '{last}' alone (params=), which needs no vectors" if once else ""
    raise TooLargeError(
        f"The exact output curvature of {objective.n_examples} examples takes {c} vectors of {c} outputs {at}"
        f"{entries:.1e} numbers in all, which would take hours or more in the layers below the outputs. Use random "
        "combinations of them, kfac(objective, 'mc') or fisher(objective, 'mc', 'diagonal'), with samples= for more "
        f"of them; or fewer examples{alone}."
    )


def sampled_factors(objective: WeightedLoss, recorded: RecordedBatch, draw: OutputDraw) -> Iterator[Tensor]:
    """Yield the output factor that ``draw`` is for a batch, as ``output_factors`` does."""
    batch, record = recorded.batch, recorded.record
    f = record.output.detach()
    root = _root(objective, batch, f)
    columns = draw(f, batch, recorded.index).movedim(-1, 0)
    chunk = max(1, _CHUNK_ELEMENTS // max(f.numel(), *(call.shape.numel() for call in record.calls), 1))
    for start, stop in even_parts(len(columns), chunk):
        yield from _apart(columns[start:stop] * root, recorded)


def _apart(u: Tensor, recorded: RecordedBatch) -> Iterator[Tensor]:
    """Yield vectors ``(k, N, ..., C)``, each position by itself where positions of an example have layers in common."""
    if u.ndim == 3 or recorded.positionwise:
        yield u
        return
    flat = u.flatten(2, -2)
    for t in range(flat.shape[2]):
        alone = torch.zeros_like(flat)
        alone[:, :, t] = flat[:, :, t]
        yield alone.view_as(u)


def _whole(f: Tensor, source: Tensor | LinearOperator, chunk: int) -> Iterator[Tensor]:
    """Yield a gradient, or the vectors of a factor some at a time, as ``(k, N, ..., C)``."""
    if isinstance(source, Tensor):
        yield source.unsqueeze(0)
        return
    r = source.shape[-1]
    for start, stop in even_parts(r, chunk):
        unit = torch.zeros(r, stop - start, dtype=f.dtype, device=f.device)
        unit[start:stop].fill_diagonal_(1.0)
        yield source.mm(unit.expand(*f.shape[:-1], *unit.shape)).movedim(-1, 0)


def flat_rows(objective: WeightedLoss, batch: Batch, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs ``(M, C)``, targets and scale times weight ``(M,)`` of all positions of a batch."""
    weights = objective.position_weights(batch)
    rows, y = f.reshape(-1, f.shape[-1]), batch.y.reshape(-1, *batch.y.shape[f.ndim - 1 :])
    scale = torch.full_like(rows[:, 0], objective.scale)
    return rows, y, scale if weights is None else scale * weights.reshape(-1)


def output_hessians(objective: WeightedLoss, estimator: Estimator, f: Tensor, diagonal: bool = False) -> HessianSum:
    """Return an empty sum of the output Hessians whose roots an exact estimator takes, for outputs ``(..., C)``."""
    return HessianSum(objective.likelihood, f.shape[-1], f, KINDS[estimator], diagonal)


def add_output_hessians(total: HessianSum, objective: WeightedLoss, batch: Batch, f: Tensor) -> None:
    """Add the output Hessians of a batch, times weight and scale, of all its positions."""
    total.add(*flat_rows(objective, batch, f))


def _root(objective: WeightedLoss, batch: Batch, f: Tensor) -> Tensor:
    """Return the square root of scale times weight, broadcast against the outputs."""
    weights = objective.position_weights(batch)
    if weights is None:
        return torch.full((), objective.scale, dtype=f.dtype, device=f.device).sqrt()
    return (weights * objective.scale).sqrt().unsqueeze(-1)


def _signs(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Return random signs, eight from each number that is drawn: drawing is what costs."""
    device, n = like.device if generator is None else generator.device, math.prod(shape)
    draws = torch.randint(0, 256, (-(-n // 8),), generator=generator, device=device, dtype=torch.uint8)
    bits = draws.bitwise_and(2 ** torch.arange(8, dtype=torch.uint8, device=device)[:, None]).ne(0)
    return bits.reshape(-1)[:n].view(shape).to(dtype=like.dtype, device=like.device).mul_(2).sub_(1)
