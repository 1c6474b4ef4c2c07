"""Trace, diagonal and Frobenius norm of an operator that is only multiplied, with their errors."""

from __future__ import annotations

from typing import Literal

import torch

from raphson._errors import InputError
from raphson.linalg._estimate import (
    Estimate,
    averaged,
    check_samples,
    degrees_of_freedom,
    exact,
    multiply,
    random_columns,
)
from raphson.linalg._leave_one_out import LeaveOneOut, shared_error
from raphson.linalg._operator import LinearOperator


def trace(
    operator: LinearOperator,
    method: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace",
    *,
    samples: int = 30,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the trace of an operator from products, with a standard error.

    * ``"xtrace"`` (Epperly, Tropp and Webber 2024): exact on the range of ``samples / 2`` products, of which each in
      turn is left out and sampled. The error falls with the eigenvalues that a low-rank approximation misses.
    * ``"hutch++"`` (Meyer, Musco, Musco and Woodruff 2021): exact on the range of a third of the products, and
      Hutchinson's estimate of the rest.
    * ``"hutchinson"`` (1990): the mean of :math:`\omega^\top A \omega` over random signs, whose variance is
      :math:`2 \sum_{i \ne j} a_{ij}^2` over the number of products for a symmetric matrix.

    Where ``samples`` is at least ``n``, the trace is taken from ``n`` products and has no error but rounding.

    Args:
        operator: Square ``(n, n)``, symmetric or not.
        method: One of those above.
        samples: Number of products, those with the transpose included.
        generator: Source of randomness; None for a fixed one, which gives the same estimate each time.

    Returns:
        The estimate.

    Raises:
        InputError: An argument cannot be used.

    References:
        E. N. Epperly, J. A. Tropp and R. J. Webber (2024), XTrace: making the most of every sample in stochastic trace
        estimation, SIAM J. Matrix Anal. Appl. 45, 1-23. R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff (2021),
        Hutch++: optimal stochastic trace estimation, SOSA.

    Examples:
        Of a matrix of rank one XTrace makes no error.

        >>> from raphson.linalg import DiagonalPlusLowRank, trace
        >>> ones = torch.ones(1000, 1, dtype=torch.float64)
        >>> found = trace(DiagonalPlusLowRank(torch.zeros(1000, dtype=torch.float64), ones))
        >>> round(float(found), 6), float(found.standard_error) < 1e-9
        (1000.0, True)
    """
    least = {"xtrace": 4, "hutch++": 6, "hutchinson": 2}
    if method not in least:
        raise InputError(f"There is no method {method!r} of a trace; choose 'xtrace', 'hutch++' or 'hutchinson'.")
    check_samples(operator, samples, least[method], method)
    n = operator.shape[-1]
    if samples >= n:
        return exact(_identity_diagonal(operator).sum(), n)
    if method == "xtrace":
        k = samples // 2
        found = LeaveOneOut.of(operator, k, generator, "normal").traces()
        return Estimate(found.mean(), shared_error(found), method, 2 * k, degrees_of_freedom(k))
    k = samples // 3 if method == "hutch++" else samples
    drawn = random_columns(operator, 2 * k if method == "hutch++" else k, generator, "signs")
    if method == "hutchinson":
        return averaged((drawn * multiply(operator, drawn)).sum(0), method, k)
    sketch, rest = drawn[:, :k], drawn[:, k:]
    basis = torch.linalg.qr(multiply(operator, sketch))[0]
    known = (basis * multiply(operator, basis)).sum()
    rest = rest - basis @ (basis.mT @ rest)
    return averaged((rest * multiply(operator, rest)).sum(0), method, 3 * k, known)


def diagonal(
    operator: LinearOperator,
    method: Literal["xdiag", "hutchinson"] = "xdiag",
    *,
    samples: int = 30,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the diagonal of an operator from products, with a standard error for each entry.

    * ``"xdiag"`` (Epperly, Tropp and Webber 2024, section 2.4): exact on the range of ``samples / 2`` products, of
      which each in turn is left out and sampled.
    * ``"hutchinson"`` (Bekas, Kokiopoulou and Saad 2007): the mean of :math:`\omega \odot A \omega` over random signs.

    Args:
        operator: Square ``(n, n)``, symmetric or not.
        method: One of those above.
        samples: Number of products, those with the transpose included.
        generator: Source of randomness; None for a fixed one, which gives the same estimate each time.

    Returns:
        The estimate, ``(n,)``.

    Raises:
        InputError: An argument cannot be used.

    References:
        C. Bekas, E. Kokiopoulou and Y. Saad (2007), An estimator for the diagonal of a matrix, Appl. Numer. Math. 57,
        1214-1229; and that of XTrace.

    Examples:
        >>> from raphson.linalg import Diagonal, diagonal
        >>> found = diagonal(Diagonal(torch.arange(100.0)), "hutchinson")
        >>> torch.equal(found.value, torch.arange(100.0)), float(found.standard_error.max())
        (True, 0.0)
    """
    least = {"xdiag": 4, "hutchinson": 2}
    if method not in least:
        raise InputError(f"There is no method {method!r} of a diagonal; choose 'xdiag' or 'hutchinson'.")
    check_samples(operator, samples, least[method], method)
    n = operator.shape[-1]
    if samples >= n:
        return exact(_identity_diagonal(operator), n)
    if method == "xdiag":
        k = samples // 2
        value, error = LeaveOneOut.of(operator, k, generator, "signs").diagonals()
        return Estimate(value, error, method, 2 * k, degrees_of_freedom(k))
    drawn = random_columns(operator, samples, generator, "signs")
    return averaged(drawn * multiply(operator, drawn), method, samples)


def frobenius_norm(
    operator: LinearOperator, *, samples: int = 30, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimate the Frobenius norm :math:`(\sum_{ij} a_{ij}^2)^{1/2}` of an operator from products.

    Its square is :math:`\|Q^\top A\|_F^2 + \|(I - Q Q^\top) A\|_F^2` with a basis Q of the range of a third of the
    products; the second term is the mean of :math:`\|(I - Q Q^\top) A \omega\|^2` over other vectors, as in Hutch++.

    Args:
        operator: Square ``(n, n)``, symmetric or not.
        samples: Number of products, those with the transpose included.
        generator: Source of randomness; None for a fixed one, which gives the same estimate each time.

    Returns:
        The estimate. ``InputError`` if an argument cannot be used.

    Examples:
        >>> from raphson.linalg import Diagonal, frobenius_norm
        >>> float(frobenius_norm(Diagonal(torch.tensor([3.0, 4.0]))))
        5.0
    """
    check_samples(operator, samples, 6, "frobenius_norm")
    n = operator.shape[-1]
    if samples >= n:
        eye = torch.eye(n, dtype=operator.dtype, device=operator.device)
        return exact(multiply(operator, eye).norm(), n)
    k = samples // 3
    products = multiply(operator, random_columns(operator, 2 * k, generator, "signs"))
    basis = torch.linalg.qr(products[:, :k])[0]
    rest = products[:, k:] - basis @ (basis.mT @ products[:, k:])
    known = multiply(operator, basis, transposed=True).square().sum()
    square = averaged(rest.square().sum(0), "hutch++", 3 * k, known)
    value = square.value.sqrt()
    error = square.standard_error / (2 * value.clamp_min(torch.finfo(value.dtype).tiny))
    return Estimate(value, error, square.method, square.products, square.df)


def _identity_diagonal(operator: LinearOperator) -> torch.Tensor:
    eye = torch.eye(operator.shape[-1], dtype=operator.dtype, device=operator.device)
    return multiply(operator, eye).diagonal()
