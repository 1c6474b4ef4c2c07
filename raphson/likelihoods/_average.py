r"""The average of output Hessians over a sample, which has the size of one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Likelihood
from raphson.linalg import Dense, Diagonal, EqualBlocks, Scaled, SymmetricOperator

_CHUNK_ELEMENTS = 2**21
"""Rows of a chunk times the square of the number of outputs: 16 MB in float64 if the Hessians are dense."""


def average_hessian(
    likelihood: Likelihood,
    f: Tensor,
    y: Tensor,
    kind: str = "observed",
    weights: Tensor | None = None,
) -> EqualBlocks | Diagonal | Dense:
    r"""Return the average over a sample of the Hessian in the outputs.

    .. math:: \bar H = \frac1W \sum_n w_n \frac{\partial^2 \ell(f_n, y_n)}{\partial f\, \partial f^T},
        \qquad W = \sum_n w_n

    A Hessian has two axes, one entry per pair of *outputs*. Examples are no third or fourth axis: each has a
    Hessian of its own, and a loss that sums or averages over examples sums or averages these. With ``M`` independent
    responses of ``k`` parameters each, that average is ``M`` blocks of ``k x k``, whatever the number of examples.
    Where all examples share their outputs (a model of intercepts only), ``n`` times the average is the information
    about them.

    Rows are taken in chunks: beyond ``f`` and ``y`` the memory needed does not grow with the number of examples.
    Where the likelihood weights targets (``class_weight``, ``ignore_index``), ``W`` counts these weights too.

    Args:
        likelihood: Any likelihood.
        f: Outputs ``(..., C)``, one row per example.
        y: Targets.
        kind: ``"observed"``, the Hessian at the targets, or ``"expected"``, its mean under the model (the
            Fisher information).
        weights: Example weights that broadcast to ``(...,)`` from the left (one per example); None means 1 each.

    Returns:
        ``EqualBlocks`` with blocks ``(M, k, k)``, ``Diagonal`` if the Hessians are diagonal, ``Dense`` ``(C, C)``
        if they have neither structure; labeled with the names of the outputs.

    Raises:
        InputError: ``kind`` is neither, a weight is negative or not finite, there is no example of positive
            weight, or an output lies outside its domain.

    References:
        B. Efron and D. V. Hinkley (1978), Assessing the accuracy of the maximum likelihood estimator: observed
        versus expected Fisher information, Biometrika 65.

    Examples:
        Three observations of one Gaussian at its maximum likelihood estimate: the information about mean and scale
        is ``diag(n / s^2, 2 n / s^2)``.

        >>> import torch
        >>> from raphson.likelihoods import HeteroscedasticGaussian, average_hessian
        >>> y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> f = torch.stack([y.mean(), y.std(correction=0)]).expand(3, 2)
        >>> 3 * average_hessian(HeteroscedasticGaussian("mean_scale"), f, y).to_dense() * y.var(correction=0)
        tensor([[3.0000, 0.0000],
                [0.0000, 6.0000]], dtype=torch.float64)
    """
    total: Tensor | None = None
    denominator = 0.0
    structure: type[EqualBlocks | Diagonal | Dense] = Dense
    for rows_f, rows_y, w in rows_in_chunks(f, y, weights):
        structure, entries = compact(output_hessian(likelihood, rows_f, rows_y, kind))
        part = entries.sum(0) if w is None else torch.tensordot(w.to(entries), entries, 1)
        total = part if total is None else total + part
        own = likelihood.weight(rows_y)
        each = w if own is None else own if w is None else own * w
        denominator += len(rows_f) if each is None else float(each.sum())
    if total is None or not denominator > 0:
        raise InputError("There is no example of positive weight to average over: give at least one.")
    if not bool(torch.isfinite(total).all()):
        likelihood.check_outputs(f)
    return structure(total / denominator, labels=likelihood.output_names(f.shape[-1]))


def output_hessian(likelihood: Likelihood, f: Tensor, y: Tensor, kind: str) -> SymmetricOperator:
    """Return the observed or the expected output Hessian; another kind is an ``InputError``."""
    if kind not in {"observed", "expected"}:
        raise InputError(f"kind is {kind!r}, but an output Hessian is 'observed' or 'expected'.")
    return likelihood.hessian(f, y) if kind == "observed" else likelihood.fisher(f, y)


def rows_in_chunks(
    f: Tensor, y: Tensor, weights: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield outputs ``(n, C)``, targets ``(n, ...)`` and weights ``(n,)``, leading dimensions flattened.

    The rows are few enough that dense output Hessians of them fit in memory.

    Raises:
        InputError: The leading dimensions disagree, or a weight is negative or not finite.
    """
    leading = f.shape[:-1]
    n = math.prod(leading)
    if y.shape[: len(leading)] != leading:
        raise InputError(
            f"The targets have shape {tuple(y.shape)} but the outputs have shape {tuple(f.shape)}: give one target "
            "per row of outputs; outputs that all examples share are f.expand(n, -1)."
        )
    flat_f, flat_y = f.detach().reshape(n, f.shape[-1]), y.reshape(n, *y.shape[len(leading) :])
    flat_w = None if weights is None else _per_row(weights, leading)
    size = max(1, _CHUNK_ELEMENTS // f.shape[-1] ** 2)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        yield flat_f[rows], flat_y[rows], None if flat_w is None else flat_w[rows]


def compact(operator: SymmetricOperator) -> tuple[type[EqualBlocks | Diagonal | Dense], Tensor]:
    """Return the structure of a batched operator ``(n, C, C)`` and its entries, whose averages are its average's.

    ``EqualBlocks`` and the blocks ``(n, M, k, k)``, ``Diagonal`` and the values ``(n, C)``, or ``Dense``.
    """
    if isinstance(operator, Scaled):
        structure, entries = compact(operator.operator)
        multiplier = torch.as_tensor(operator.multiplier, dtype=entries.dtype, device=entries.device)
        return structure, entries * multiplier.reshape(*multiplier.shape, *[1] * (entries.ndim - multiplier.ndim))
    if isinstance(operator, EqualBlocks):
        return EqualBlocks, operator.blocks
    if isinstance(operator, Diagonal):
        return Diagonal, operator.values
    return Dense, operator.to_dense()


def _per_row(weights: Tensor, leading: tuple[int, ...]) -> Tensor:
    if weights.shape != leading[: weights.ndim]:
        raise InputError(
            f"The weights have shape {tuple(weights.shape)} but the examples have shape {tuple(leading)}: "
            "give one weight per example."
        )
    bad = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(bad.any()):
        place = torch.nonzero(bad)[0].tolist()
        raise InputError(
            f"The weight in {f'row {place[0]}' if place else 'the only row'} is {weights[tuple(place)].item():g}, but "
            "a weight must be a finite number, 0 or more. Correct it or drop the row."
        )
    return weights.reshape(*weights.shape, *[1] * (len(leading) - weights.ndim)).expand(leading).reshape(-1)
