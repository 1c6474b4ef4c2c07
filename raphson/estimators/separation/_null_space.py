"""The null space of standardized columns, and a basis of it that names few columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raphson.estimators.separation._standardize import EPS, SNAP, Standardized

Array = NDArray[Any]

RESIDUAL = 1e-9  # a column is dependent when its residual is below this share of its standard deviation
_NEAR = 1e-7  # squared residual below which a Gram matrix leaves a column fewer than nine digits
_PIVOT = 1e-10  # squared residual below which a Gram matrix cannot tell near from exact dependence


def null_vectors(std: Standardized, live: Array) -> tuple[Array, bool]:
    """Return a basis ``(len(live), q)`` of the null space of the standardized columns, and whether others come near it.

    Each round factorizes the Gram matrix of combinations ``Z C`` of the columns. What it cannot tell from
    dependent is orthogonalized against the rest (twice, for full accuracy): a residual at rounding level is a
    null vector, a larger one goes into the next round at unit size.
    """
    from scipy.linalg import solve_triangular
    from scipy.linalg.lapack import dpstrf

    combos: Array | None = None
    noise = 8 * EPS * std.size[live] / std.scale[live] if len(live) else np.zeros(0)
    found, is_near = [np.zeros((len(live), 0))], False
    while combos is None or combos.shape[1]:
        gram = std.gram(live) if combos is None else _product(std, live, combos, combos)
        if not len(gram):
            break
        factor, pivots, rank, _ = dpstrf(gram, tol=_PIVOT, lower=1)
        is_near |= bool(factor.diagonal()[:rank].min() ** 2 < _NEAR)
        if rank == len(gram):
            break
        basis = np.eye(len(live)) if combos is None else combos
        kept, rest = basis[:, pivots[:rank] - 1], basis[:, pivots[rank:] - 1]
        lower = factor[:rank, :rank]
        rest = rest - kept @ solve_triangular(lower, factor[rank:, :rank].T, lower=True, trans="T")
        again = solve_triangular(lower, _product(std, live, kept, rest), lower=True)
        rest = rest - kept @ solve_triangular(lower, again, lower=True, trans="T")
        left = np.sqrt(_squares(std, live, rest))
        null = left <= RESIDUAL * np.abs(rest).max(0) + noise @ np.abs(rest)
        found.append(rest[:, null])
        combos = rest[:, ~null] / left[~null]
        is_near |= bool(combos.size)
    return np.hstack(found), is_near


def _product(std: Standardized, live: Array, a: Array, b: Array) -> Array:
    """Return ``(Z a)^T (Z b) / N``."""
    return std.average(live, lambda z: (z @ a).T @ (z @ b))


def _squares(std: Standardized, live: Array, a: Array) -> Array:
    """Return the mean squares of the columns of ``Z a``."""
    return std.average(live, lambda z: ((z @ a) ** 2).sum(0))


def readable(vectors: Array) -> Array:
    """Return a null basis in which each vector expresses one column by few earlier ones, rounding set to zero.

    Column echelon form from the bottom gives every dependent column in terms of earlier independent ones;
    then a vector is replaced by its difference with a multiple of another wherever that leaves fewer columns.
    """
    v = vectors / np.abs(vectors).max(0, keepdims=True) if vectors.size else vectors.copy()
    free = list(range(v.shape[1]))
    for row in range(v.shape[0] - 1, -1, -1):
        if not free:
            break
        q = max(free, key=lambda c: abs(v[row, c]))
        if abs(v[row, q]) <= SNAP * np.abs(v[:, q]).max():
            continue
        free.remove(q)
        v[:, q] /= v[row, q]
        others = np.arange(v.shape[1]) != q
        v[:, others] -= np.outer(v[:, q], v[row, others])
        v[row, others] = 0.0
    v[np.abs(v) <= SNAP * np.abs(v).max(0, initial=0.0)] = 0.0
    # relations of late columns first: they are the ones to shorten
    v = v[:, np.argsort([-np.flatnonzero(column)[-1] for column in v.T])] if v.size else v
    improved = True
    while improved:
        improved = False
        for p in range(v.shape[1]):
            for q in range(v.shape[1]):
                if p == q:
                    continue
                for shared in np.flatnonzero((v[:, p] != 0) & (v[:, q] != 0)):
                    trial = v[:, p] - v[shared, p] / v[shared, q] * v[:, q]
                    trial[np.abs(trial) <= SNAP * np.abs(v[:, p]).max()] = 0.0
                    if np.count_nonzero(trial) < np.count_nonzero(v[:, p]):
                        v[:, p] = trial
                        improved = True
                        break
    return v


def row_space(std: Standardized, live: Array) -> tuple[Array, Array, Array]:
    """Return what every column that varies is in a few of them, for designs with fewer rows than columns.

    Returns:
        The few, positions ``(r,)`` where r is the rank; the others ``(q,)``; and their shares in the few ``(r, q)``, in
        standardized columns.
    """
    from scipy.linalg import qr, solve_triangular

    z = np.concatenate([block for _, block in std.blocks(live)])
    upper, pivots = qr(z, mode="r", pivoting=True, overwrite_a=True)[-2:]
    size = np.abs(np.diagonal(upper))
    rank = int((size > RESIDUAL * np.sqrt(len(z))).sum())
    shares = solve_triangular(upper[:rank, :rank], upper[:rank, rank:])
    shares[np.abs(shares) <= SNAP * np.maximum(np.abs(shares).max(0, initial=0.0), 1.0)] = 0.0
    return live[pivots[:rank]], live[pivots[rank:]], shares
