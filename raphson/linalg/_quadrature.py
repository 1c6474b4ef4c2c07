r"""Log-determinant and spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

For a random unit vector :math:`v` the mean of :math:`v^\top f(A) v` is :math:`\operatorname{tr} f(A) / n`, and the
Lanczos process from v gives a Gauss quadrature for it: nodes are the eigenvalues of the tridiagonal matrix, weights the
squared first entries of its eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError
from raphson.linalg._estimate import Estimate, averaged, check_samples, exact, random_columns, student_quantile
from raphson.linalg._krylov import lanczos
from raphson.linalg._operator import SymmetricOperator

_RESOLUTION = 2.0
"""Width of a density's kernel in units of spectrum over steps: the quadrature error is then below 1e-10 of the peak."""

_GRID = 256
_TAILS = 5.0
"""Kernel widths by which the grid of a density extends beyond the extreme eigenvalues."""


class _Quadrature(NamedTuple):
    """A start vector's tridiagonal matrix, float64, and how far its extreme eigenvalues may be from the operator's."""

    matrix: Tensor
    residual: float

    def rule(self, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Return nodes and weights after some of the steps, ``(steps,)`` each."""
        nodes, vectors = torch.linalg.eigh(self.matrix[:steps, :steps])
        return nodes, vectors[0].square()


def _quadratures(
    operator: SymmetricOperator, samples: int, steps: int, generator: torch.Generator | None
) -> Iterator[_Quadrature]:
    starts = random_columns(operator, samples, generator, "normal").to(operator.dtype)
    for start in starts.unbind(1):
        run = lanczos(operator, start.contiguous(), steps)
        yield _Quadrature(run.tridiagonal().cpu().double(), float(run.residual))


def _check(operator: SymmetricOperator, samples: int, steps: int, name: str) -> None:
    check_samples(operator, samples, 2, name)
    if steps < 2:
        raise InputError(f"steps is {steps}, but a Lanczos quadrature takes at least 2.")


def logdet(
    operator: SymmetricOperator, *, samples: int = 10, steps: int = 50, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimate :math:`\log\det A` of a positive definite operator by stochastic Lanczos quadrature.

    Gauss quadrature of the logarithm lies above its value and falls to it with the steps. What remains is estimated
    from its geometric decrease and is part of the standard error, beside the spread between start vectors. Where the
    products allowed are at least ``n``, the result is that of ``operator.slogdet()``.

    Args:
        operator: Positive definite, ``(n, n)``.
        samples: Number of random start vectors.
        steps: Products for each of them.
        generator: Source of randomness; None for a fixed one, which gives the same estimate each time.

    Returns:
        The estimate; ``InputError`` if an argument cannot be used.

    Raises:
        IndefiniteError: A Ritz value, or the determinant, is not positive.

    References:
        S. Ubaru, J. Chen and Y. Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J.
        Matrix Anal. Appl. 38, 1075-1099.

    Examples:
        >>> from raphson.linalg import Diagonal, logdet
        >>> values = torch.linspace(1.0, 2.0, 2000, dtype=torch.float64)
        >>> found = logdet(Diagonal(values))
        >>> bool((found.value - values.log().sum()).abs() < 4 * found.standard_error)
        True
    """
    _check(operator, samples, steps, "logdet")
    n = operator.shape[-1]
    if samples * steps >= n:
        sign, value = operator.slogdet()
        if not bool(sign > 0):
            raise IndefiniteError(f"The determinant of the operator is not positive (sign {float(sign):g}). {_SHIFT}")
        return exact(value, n)
    values, rests = [], []
    for run in _quadratures(operator, samples, steps, generator):
        m = len(run.matrix)
        gap = max(1, m // 4)
        now, before, first = (_log_integral(*run.rule(max(1, m - i * gap))) for i in range(3))
        fall, earlier = max(before - now, 0.0), max(first - before, 0.0)
        ratio = min(fall / earlier, 0.99) if earlier > 0 else 0.0
        values.append(now)
        rests.append(0.0 if run.residual == 0 else fall * ratio / (1 - ratio))
    spread = averaged(n * torch.tensor(values, dtype=torch.float64), "stochastic Lanczos quadrature", samples * steps)
    rest = n * sum(rests) / samples
    error = (spread.standard_error.square() + rest**2).sqrt()
    return Estimate(spread.value, error, spread.method, spread.products, spread.df)


_SHIFT = "Shift it by a positive constant, or use a Gauss-Newton or expected Fisher matrix."


def _log_integral(nodes: Tensor, weights: Tensor) -> float:
    if not bool(nodes[0] > 0):
        raise IndefiniteError(
            f"The operator is not positive definite: it has the Ritz value {float(nodes[0]):.3e}. {_SHIFT}"
        )
    return float(weights @ nodes.log())


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    r"""Density of the eigenvalues of an operator, smoothed by a Gaussian kernel.

    Attributes:
        grid: Points, ``(g,)``.
        density: :math:`\frac1n \sum_i \phi_w(t - \lambda_i)` at them, ``(g,)``, with the normal density of standard
            deviation ``w``.
        error: Bound on the error of ``density`` at every point of the grid at once, with probability ``level``.
        width: ``w``.
        level: Probability of the bound.
        products: Number of products with the operator.

    Examples:
        >>> from raphson.linalg import Diagonal, spectral_density
        >>> found = spectral_density(Diagonal(torch.arange(4.0).double()))
        >>> round(float(torch.trapezoid(found.density, found.grid)), 2)
        1.0
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    width: float
    level: float
    products: int

    def __repr__(self) -> str:
        return (
            f"<SpectralDensity from {float(self.grid[0]):.4g} to {float(self.grid[-1]):.4g}, error at most "
            f"{float(self.error.max()):.2g} with probability {self.level:g}, {self.products} products>"
        )


def spectral_density(
    operator: SymmetricOperator,
    *,
    samples: int = 10,
    steps: int = 100,
    width: float | None = None,
    grid: Tensor | None = None,
    level: float = 0.99,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues by stochastic Lanczos quadrature, with its error.

    The error has two parts: that between start vectors, by Student's t for as many independent points as the spectrum
    has kernel widths; and that of m-point Gauss quadrature of the kernel :math:`\phi`, at most
    :math:`4 M_\rho\, \rho^{1 - 2m} / (\rho - 1)` where :math:`|\phi| \le M_\rho` on the ellipse of Bernstein around the
    spectrum, for the best :math:`\rho`. Where the products allowed are at least ``n``, the eigenvalues are computed.

    Args:
        operator: Symmetric ``(n, n)``, definite or not.
        samples: Number of random start vectors.
        steps: Products for each of them.
        width: Standard deviation of the kernel; None for twice the spectrum over ``steps``, which is as fine as so many
            steps can resolve.
        grid: Where to evaluate, ``(g,)``; None for 256 points around the spectrum.
        level: Probability with which the error holds.
        generator: Source of randomness; None for a fixed one, which gives the same estimate each time.

    Returns:
        The density on the grid.

    Raises:
        InputError: An argument cannot be used.

    References:
        L. Lin, Y. Saad and C. Yang (2016), Approximating spectral densities of large matrices, SIAM Review 58, 34-65;
        and that of ``logdet``.

    Examples:
        A third of the eigenvalues is at 1, the others are at 0.

        >>> from raphson.linalg import Diagonal, spectral_density
        >>> values = torch.zeros(3000, dtype=torch.float64)
        >>> values[:1000] = 1.0
        >>> found = spectral_density(Diagonal(values), steps=50)
        >>> right = found.grid > 0.5
        >>> share = torch.trapezoid(found.density[right], found.grid[right])
        >>> bool((share - 1 / 3).abs() < torch.trapezoid(found.error[right], found.grid[right]))
        True
    """
    _check(operator, samples, steps, "spectral_density")
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}, but a probability lies between 0 and 1, such as 0.99.")
    if width is not None and not 0 < width < math.inf:
        raise InputError(f"width is {width:g}, but the width of the kernel is a positive number.")
    n = operator.shape[-1]
    if samples * steps >= n:
        nodes = operator.eigh().eigenvalues.cpu().double().reshape(-1)
        rules, margin, products = [(nodes, torch.full_like(nodes, 1 / n))], 0.0, n
    else:
        runs = list(_quadratures(operator, samples, steps, generator))
        rules = [run.rule() for run in runs]
        margin, products = max(run.residual for run in runs), sum(len(run.matrix) for run in runs)
    low, high = min(float(r[0].min()) for r in rules), max(float(r[0].max()) for r in rules)
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError("Products with the operator are not finite: it holds nan or infinity, and has no spectrum.")
    size = max(abs(low), abs(high)) or 1.0
    # a residual bounds the distance to some eigenvalue: after many steps the extreme ones lie inside
    spread = min(margin, high - low) + high - low
    w = width or max(_RESOLUTION * spread / steps, 1e-3 * size)
    if grid is None:
        grid = torch.linspace(low - _TAILS * w, high + _TAILS * w, _GRID, dtype=torch.float64)
    points = grid.cpu().double()
    samples_at = torch.stack([_normal((points[:, None] - nodes) / w) @ weights / w for nodes, weights in rules], 1)
    if len(rules) == 1:
        # eigenvalues are known to a few rounding errors of the largest; the kernel's slope is below 1 / (4 w^2)
        error = torch.full_like(points, n**0.5 * torch.finfo(operator.dtype).eps * (size / w) / w + 1e-15 / w)
        return SpectralDensity(grid, samples_at[:, 0], error, w, level, products)
    mean = averaged(samples_at, "", products)
    independent = max(1.0, spread / w)
    factor = student_quantile(1 - (1 - level) / independent, mean.df)
    error = factor * mean.standard_error + _quadrature_error(spread, w, min(len(r[0]) for r in rules), margin)
    return SpectralDensity(grid, mean.value, error, w, level, products)


def _normal(t: Tensor) -> Tensor:
    return torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)


def _quadrature_error(spread: float, width: float, steps: int, residual: float) -> float:
    """Return the bound on the error of Gauss quadrature of the kernel; exhausted Krylov spaces have none."""
    if residual == 0 or spread == 0:
        return 1e-15 / width
    rho = np.exp(np.linspace(1e-3, 3.0, 600))
    half_axis = spread / 4 * (rho - 1 / rho)
    with np.errstate(over="ignore"):
        logs = half_axis**2 / (2 * width**2) - (2 * steps - 1) * np.log(rho) - np.log(rho - 1)
    return 4 / (width * math.sqrt(2 * math.pi)) * float(np.exp(min(logs.min(), 50.0))) + 1e-15 / width
