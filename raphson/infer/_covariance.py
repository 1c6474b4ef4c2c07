"""From curvature at the estimate to the covariance of the estimate: inverse information and sandwich."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError, NotEstimableError
from raphson.linalg import DiagonalPlusLowRank, SymmetricOperator

_FACTORS = ("HC0", "HC1", "CR0", "CR1", "stata")

_SINGULAR = 10
"""Pivots of a matrix of unit diagonal below this many times P eps are rounding, not information."""

_INFLATION = 1e10
"""Share of a parameter's information that the others explain, as 1 / (1 - share), above which none is given: the
information is summed to about 1e-16, and standard errors had 6 digits at 1e10, 3 at 1e12 and none at 1e14."""


def inverse_information(information: SymmetricOperator) -> DiagonalPlusLowRank:
    r"""Return the covariance :math:`V = I^{-1}` of maximum likelihood estimates.

    ``information`` is on the scale of the whole sample (the sum of the curvature over the rows, weights
    included), not that of a mean. The inverse is taken by Cholesky factorization after every parameter is
    scaled to unit information, so that columns in very large or very small units cost no accuracy. What is returned is
    :math:`R R^T` with :math:`R = L^{-T}` of the factor L: where parameters nearly depend on each other V has large
    entries, in which the variance of a sum that is well determined would drown; products by R keep it.

    Args:
        information: Observed or expected information, shape ``(P, P)``.

    Returns:
        The covariance, an operator of shape ``(P, P)`` that holds its root R.

    Raises:
        NotEstimableError: The information is singular, or so nearly that its inverse would have too few digits: the
            data do not determine every parameter.
        IndefiniteError: The information has a direction of negative curvature: the estimates are no maximum.

    Examples:
        >>> from raphson.linalg import Dense
        >>> inverse_information(Dense(torch.tensor([[2.0, 1.0], [1.0, 1.0]]).double())).diagonal()
        tensor([1.0000, 2.0000], dtype=torch.float64)
    """
    matrix = information.to_dense()
    if not bool(torch.isfinite(matrix).all()):
        raise NotEstimableError(
            "The information matrix contains nan or infinite entries, usually because the fit diverged. "
            "Check that the fit converged before asking for standard errors."
        )
    diagonal = matrix.diagonal()
    if bool((diagonal == 0).any()):
        raise NotEstimableError(
            f"The data carry no information about {_name(information, int((diagonal == 0).int().argmax()))}: "
            "its column may be all zeros, or its class separated. Remove the column, or fit with penalty='jeffreys'."
        )
    scale = diagonal.abs().rsqrt()
    scaled = matrix * scale * scale.unsqueeze(-1)
    tolerance = _SINGULAR * len(scale) * torch.finfo(scale.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if int(failed) and float(torch.linalg.eigvalsh(scaled)[0]) < -tolerance:
        raise IndefiniteError(
            f"The information matrix has negative curvature (met at {_name(information, int(failed) - 1)}), "
            "so the estimates are not at a maximum. Fit until convergence, or use the expected information."
        )
    # A squared pivot is the share of a parameter's information that the parameters before it do not explain.
    pivots = factor.diagonal().square()
    if int(failed) or bool((pivots < tolerance).any()):
        index = int(failed) - 1 if int(failed) else int(pivots.argmin())
        raise NotEstimableError(
            f"The information matrix is singular: {_name(information, index)} is determined by the "
            "parameters before it, usually through collinear columns or a separated class. Remove the "
            "column; for a separated class, fit with penalty='jeffreys'."
        )
    root = torch.linalg.solve_triangular(factor, torch.eye(len(scale), dtype=scale.dtype), upper=False).mT
    inflation = root.square().sum(1)
    if bool((inflation > _INFLATION).any()):
        worst = [i for i in inflation.argsort(descending=True).tolist() if inflation[i] > 1e-2 * inflation.max()]
        names = " and ".join(_name(information, i) for i in sorted(worst[:2]))
        raise NotEstimableError(
            f"The information about {names} is explained by other parameters but for {1 / float(inflation.max()):.0e} "
            "of it: standard errors would have too few digits. Columns that are nearly equal, or nearly combinations "
            "of others, do this: drop one of them, or replace it by its difference from the other."
        )
    return of_root(scale.unsqueeze(-1) * root, information.labels)


def of_root(root: Tensor, labels: tuple[str, ...] | None = None) -> DiagonalPlusLowRank:
    """Return the covariance ``R R^T`` of its root ``(P, r)``."""
    return DiagonalPlusLowRank(root.new_zeros(root.shape[0]), root, labels=labels)


def sandwich(bread: SymmetricOperator, meat: SymmetricOperator, factor: float = 1.0) -> DiagonalPlusLowRank:
    r"""Return the robust covariance :math:`c\, B M B`.

    With :math:`B = I^{-1}` and :math:`M = \sum_n s_n s_n^T` (scores of rows, or their sums over clusters), the
    estimator is consistent when the likelihood is misspecified, when weights are sampling weights, and, with
    clusters, when rows of a cluster are dependent.

    Source: Huber (1967), Proc. 5th Berkeley Symposium 1, 221-233; White (1982), Econometrica 50, 1-25.

    Both operators are ``(P, P)``; the covariance holds its root. The factor c is ``small_sample_factor``'s.

    Examples:
        Where the scores' products are the information, what is left is its inverse.

        >>> from raphson.linalg import Diagonal
        >>> information = Diagonal(torch.tensor([4.0, 0.5]).double())
        >>> sandwich(inverse_information(information), information).diagonal()
        tensor([0.2500, 2.0000], dtype=torch.float64)
    """
    return of_root(factor**0.5 * bread.mm(_root(meat.to_dense())), bread.labels)


def covariance_root(covariance: SymmetricOperator) -> Tensor:
    """Return R ``(P, r)`` with ``R R^T`` the covariance: what it holds, or else from its eigenvalues."""
    if isinstance(covariance, DiagonalPlusLowRank) and covariance.sign > 0 and not bool(covariance.diag.any()):
        return covariance.low_rank
    return _root(covariance.to_dense())


def _root(matrix: Tensor) -> Tensor:
    """Return R with ``R R^T`` the positive semi-definite matrix, each parameter in units of its own."""
    scale = matrix.diagonal().clamp(min=0.0).sqrt()
    unit = torch.where(scale > 0, scale, 1.0).reciprocal()
    values, vectors = torch.linalg.eigh(symmetric_part(matrix) * unit * unit.unsqueeze(-1))
    root: Tensor = scale.unsqueeze(-1) * vectors * values.clamp(min=0.0).sqrt()
    return root


def small_sample_factor(kind: str, n: float, p: int, n_groups: int | None = None) -> float:
    r"""Return the factor that a named convention puts on a sandwich covariance.

    * ``HC0``: 1. White (1980), Econometrica 48, 817-838.
    * ``HC1``: :math:`n/(n-p)`. MacKinnon and White (1985), J. Econometrics 29, 305-325.
    * ``CR0``: 1. Liang and Zeger (1986), Biometrika 73, 13-22.
    * ``CR1``: :math:`G/(G-1) \cdot (n-1)/(n-p)`. Stata's ``regress``; statsmodels' ``cov_type="cluster"``.
    * ``stata``: :math:`n/(n-1)`, with groups :math:`G/(G-1)`. Stata's maximum likelihood commands,
      Stata Programming Manual, ``_robust``.

    Args:
        kind: One of the names above.
        n: Number of rows, the sum of the weights when weights are counts.
        p: Number of estimated parameters.
        n_groups: Number of clusters G; needed by ``CR1``.

    Returns:
        The factor, at least 1.

    Raises:
        InputError: Unknown name, or too few rows or clusters for the factor to exist.

    Examples:
        >>> small_sample_factor("HC1", 30, 6), small_sample_factor("stata", 30, 6, n_groups=5)
        (1.25, 1.25)
    """
    if kind not in _FACTORS:
        raise InputError(f"Unknown small-sample factor {kind!r}; choose one of {', '.join(_FACTORS)}.")
    if kind in {"HC1", "CR1"} and n <= p:
        raise InputError(f"The factor {kind} needs more rows than parameters; there are {n:g} rows and {p} parameters.")
    if kind in {"CR1", "stata"} and n_groups is not None and n_groups < 2:
        raise InputError(f"A cluster-robust covariance needs at least 2 clusters; there is {n_groups}.")
    if kind == "HC1":
        return n / (n - p)
    if kind == "CR1" and n_groups is not None:
        return n_groups / (n_groups - 1) * (n - 1) / (n - p)
    if kind == "stata":
        return n / (n - 1) if n_groups is None else n_groups / (n_groups - 1)
    return 1.0


def symmetric_part(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a matrix that is symmetric up to rounding."""
    return (matrix + matrix.mT) / 2


def _name(operator: SymmetricOperator, index: int) -> str:
    return f"parameter {operator.labels[index]!r}" if operator.labels else f"parameter {index}"
