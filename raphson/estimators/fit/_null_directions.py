"""Combinations of columns or parameters that leave every output unchanged, and which of them to fit."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._errors import TooLargeError
from raphson.estimators.fit._wide import MANY, OwnColumns
from raphson.estimators.separation._collinear import Collinearity
from raphson.linear import OutputMap

_NULL = 1e-9
"""Singular values below this share of the largest mark combinations of parameters that leave every output unchanged."""

_SYSTEM_ELEMENTS = 10**7
"""A linear system of so many numbers is factorized in some seconds; a larger one is refused."""


def null_directions(collinearity: Collinearity, output_map: OutputMap, scale: Tensor) -> Tensor | OwnColumns:
    """Return what the data leave open: of columns ``(D', r)`` for a uniform map, of parameters ``(P, r)`` for others.

    Args:
        collinearity: What is dependent among the columns.
        output_map: How the parameters act on the outputs.
        scale: Standard deviations of the columns ``(D,)``.

    Returns:
        The directions, by their structure where they are many.

    Raises:
        TooLargeError: If there are many, outputs have columns of their own, and it would take a huge factorization.
    """  # noqa: DOC502
    structure = None
    if collinearity.nullity > MANY:
        structure = OwnColumns.of(collinearity.null, int(output_map.intercept))
        if structure is not None and not output_map.is_uniform:
            structure = structure.of_parameters(output_map)
    if structure is not None:
        return structure
    null = collinearity.null_basis.double()
    return null if output_map.is_uniform else _null_parameters(output_map, null, scale)


def _null_parameters(output_map: OutputMap, null: Tensor, scale: Tensor) -> Tensor:
    r"""Return the parameters ``(P, r)`` whose coefficients vanish on the data, for columns with a null space.

    The coefficients of every output, a row of :math:`B(\Theta)`, must lie in the null space of the design; that is one
    linear system in :math:`\Theta` and the weights of the null vectors. A huge one is a ``TooLargeError``.
    """  # noqa: DOC501
    if null.shape[1] == 0:
        return null.new_zeros(output_map.n_parameters, 0)
    c, p = output_map.n_outputs, output_map.n_parameters
    rows, columns = c * null.shape[0], p + c * null.shape[1]
    if rows * columns > _SYSTEM_ELEMENTS:
        raise TooLargeError(
            f"{null.shape[1]} columns depend linearly on others, and outputs have their own: an unpenalized fit "
            f"factorizes {rows} x {columns} numbers. Remedy: drop columns, or fit with l2=1e-3 for predictions."
        )
    size = torch.cat([scale.new_ones(int(output_map.intercept)), scale])
    # kron does not take a single column with the stride that qr gives it
    basis = torch.linalg.qr(null * size[:, None])[0].clone(memory_format=torch.contiguous_format)
    expanded = output_map.expand(torch.eye(p, dtype=torch.float64)).reshape(p, -1).mT
    system = torch.cat([expanded, torch.kron(torch.eye(c, dtype=torch.float64), basis)], 1)
    _, values, vectors = torch.linalg.svd(system, full_matrices=True)
    rank = int((values > _NULL * values[0]).sum())
    found = vectors[rank:, :p].mT / output_map.per_parameter(size)[:, None]
    return torch.where(found.abs() > 1e-10 * found.abs().amax(0), found, 0.0)


def independent(null: Tensor | OwnColumns, n_intercepts: int) -> Tensor:
    """Return which columns or parameters to fit, bool: the first ones, and of the others the early ones.

    The null space can be solved for those left out: a pivoted QR picks them, the late ones first.
    """
    from scipy.linalg import qr

    fitted = torch.ones(null.shape[0], dtype=torch.bool)
    if isinstance(null, OwnColumns):
        fitted[null.own] = False
        return fitted
    scaled = null / null.abs().amax(0)
    order = torch.arange(null.shape[0] - 1, n_intercepts - 1, -1)
    _, pivots = qr(scaled[order].mT.numpy(), mode="r", pivoting=True)
    fitted[order[torch.from_numpy(pivots[: null.shape[1]].copy()).long()]] = False
    return fitted
