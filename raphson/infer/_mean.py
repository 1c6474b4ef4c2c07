"""The mean of a likelihood as a function of its outputs, with first and second derivatives, row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raphson._errors import NotEstimableError
from raphson.likelihoods import Likelihood

MeanFunction = Callable[[Tensor], Tensor]

CHUNK_ELEMENTS = 2**22
"""Numbers in the largest work array of a chunk of rows: 32 MB in double precision."""


def mean_function(likelihood: Likelihood) -> MeanFunction:
    """Return the map from outputs ``(..., C)`` to means ``(..., M)``, with M = 1 for a scalar mean."""

    def mean(f: Tensor) -> Tensor:
        value = likelihood.mean(f)
        return value.unsqueeze(-1) if value.ndim < f.ndim else value

    return mean


def require_mean(likelihood: Likelihood, f: Tensor) -> None:
    """Raise unless the targets have means at outputs ``(N, C)``.

    Raises:
        NotEstimableError: A location is finite, but the tails are so heavy that it is the median alone.
    """
    places = likelihood.locations(f.shape[-1])
    if places is None or not bool((torch.isfinite(f).all(-1) & ~torch.isfinite(likelihood.mean(f)).all(-1)).any()):
        return
    raise NotEstimableError(
        f"The target has no mean: {type(likelihood).__name__} was fitted with one degree of freedom or fewer in some "
        "row, so there are no effects on the mean. The coefficients of the location are effects on the median."
    )


def row_jacobian(function: MeanFunction, f: Tensor) -> Tensor:
    """Return the Jacobian ``(N, M, C)`` of a function that acts on each row of outputs ``(N, C)`` separately."""
    jacobian: Tensor = torch.func.vmap(torch.func.jacrev(function))(f)
    return jacobian


def row_curvature(function: MeanFunction, f: Tensor, entry: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients ``(N, C)`` and Hessian products ``(J, N, C)`` of one entry of the mean, for every row.

    Only the products are formed: the Hessians of all entries would be ``(N, M, C, C)``. ``directions`` are for every
    row, ``(J, C)``, or each for its own, ``(J, N, C)``.
    """

    # Rows do not mix, so that the gradient of the sum over rows holds the gradient of each.
    def total(outputs: Tensor) -> Tensor:
        return function(outputs)[:, entry].sum()

    gradient, vjp, *_ = torch.func.vjp(torch.func.grad(total), f)
    whole = directions if directions.ndim == 3 else directions.unsqueeze(1).expand(-1, *f.shape)
    (products,) = torch.func.vmap(vjp)(whole)
    return gradient, products


def chunk_rows(elements_per_row: int) -> int:
    """Return how many rows, at least one, to work on at once, given the size of the largest work array for a row."""
    return max(1, CHUNK_ELEMENTS // max(1, elements_per_row))


def with_intercept(x: Tensor) -> Tensor:
    """Return ``x`` with a leading column of ones, ``(N, D + 1)``."""
    return torch.cat([x.new_ones(x.shape[0], 1), x], 1)
