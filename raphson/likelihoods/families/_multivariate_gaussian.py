r"""The multivariate Gaussian likelihood with the mean and the Cholesky factor of the precision as outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._closed_form import ClosedForm
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._target_distribution import JointNormal, TargetDistribution, to_array
from raphson.likelihoods._targets import check_columns, like_outputs, start_rows
from raphson.likelihoods._units import InUnits, add_exponent, times_power, unit_exponent
from raphson.linalg import Dense, Matrix

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


class _Parts(NamedTuple):
    # Per row: residual d = y - mu (M), factor L (M, M), and z = L^T d (M), standard normal under the model.
    f: Tensor  # all outputs
    residual: Tensor
    factor: Tensor
    z: Tensor


class _Layout(NamedTuple):
    """Where the M (M + 1) / 2 outputs after the means stand in the factor, on the device of the outputs.

    ``places``: where each entry of the factor finds its value in these outputs and a zero after them, ``(M M,)``.
    """

    rows: Tensor
    columns: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False)
class MultivariateGaussian(ClosedForm[_Parts]):
    r"""Correlated Gaussian responses: outputs are the mean and a Cholesky factor of the precision.

    .. math::
        \ell(f, y) = \tfrac12 \|z\|^2 - \sum_i \rho_i + \tfrac M2 \log 2\pi, \qquad z = L^T (y - \mu), \qquad
        \Sigma^{-1} = L L^T, \qquad L_{ii} = e^{\rho_i},

    with outputs :math:`\mu` (``mean``), :math:`\rho` (``log_diag``) and the entries of :math:`L` below the diagonal
    (``lower``, row by row), all of them any real numbers: ``C = M + M (M + 1) / 2``. For ``M = 1`` it is the
    heteroscedastic Gaussian in mean and *minus* log scale.

    Why a factor of the precision and not of the covariance: :math:`z` is linear in :math:`L` and in :math:`\mu`, so
    value, gradient and observed Hessian are polynomials in outputs and residuals, with no triangular solve, and for a
    known mean the loss is convex in the entries of :math:`L`. Column ``j`` of :math:`L` enters :math:`z_j` only: the
    observed Hessian couples no two columns, the expected one is moreover zero between means and factor, and it has a
    closed-form Cholesky factor. A factor of the covariance has the same zeros in its Fisher information, but a
    dense observed Hessian. With :math:`d = y - \mu`, :math:`w_{ij} = d_i` (times :math:`L_{ii}` if :math:`i = j`),

    .. math::
        \partial\ell/\partial\mu &= -Lz, \qquad \partial\ell/\partial L_{ij} = w_{ij} z_j - [i = j], \qquad
        \partial^2\ell/\partial\mu^2 = L L^T, \\
        \partial^2\ell/\partial\mu_a \partial L_{ij} &= -[a = i]\, z_j\, L_{ii}^{[i = j]} - L_{aj} w_{ij}, \\
        \partial^2\ell/\partial L_{ij} \partial L_{kl} &= [j = l]\, (w_{ij} w_{kj} + [i = j = k]\, w_{jj} z_j),

    where :math:`\partial L_{ii}` stands for :math:`\partial\rho_i`. The loss is not convex in all outputs together.

    Shapes: outputs ``(..., C)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``. An example is one response of
    ``M`` dimensions: Hessians are ``Dense``, ``(..., C, C)``.

    Args:
        n_responses: ``M``; None takes it from the number of outputs. Where it is given, other numbers of outputs
            are refused, and ``parameters`` names all outputs.

    Raises:
        InputError: ``n_responses`` is not a positive whole number.

    References:
        M. Pourahmadi (1999), Joint mean-covariance models with applications to longitudinal data, Biometrika 86.
        P. M. Williams (1996), Using neural networks to model conditional multivariate densities, Neural Computation
        8, which has this factor of the precision.

    Examples:
        Two independent standard normals: the mean's information is I, that of a log scale 2, of a covariance 1.

        >>> import torch
        >>> from raphson.likelihoods import MultivariateGaussian
        >>> lik = MultivariateGaussian()
        >>> lik.output_names(5)
        ('mean[0]', 'mean[1]', 'log_diag[0]', 'log_diag[1]', 'lower[1,0]')
        >>> lik.fisher(torch.zeros(5)).diagonal()
        tensor([1.0000, 1.0000, 2.0000, 2.0000, 1.0000])
    """

    n_responses: int | None = None

    has_units = True

    def __post_init__(self) -> None:
        if self.n_responses is not None and (self.n_responses < 1 or self.n_responses != int(self.n_responses)):
            raise InputError(f"n_responses is {self.n_responses}, but it must be a whole number, 1 or more.")

    def default_columns(self, n_outputs: int) -> tuple[Tensor, Tensor]:
        """Return columns that act on the means."""
        eye = torch.eye(n_outputs, dtype=torch.float64)
        return eye, eye[:, [name.startswith("mean") for name in self.output_names(n_outputs)]]

    @property
    def parameters(self) -> tuple[str, ...]:
        """All outputs, which belong to one response of ``M`` dimensions; ``("output",)`` if ``M`` is not given."""
        return ("output",) if self.n_responses is None else _names(self.n_responses)

    def locations(self, n_outputs: int) -> slice:
        """Return the means."""
        return slice(self._responses(n_outputs))

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood]:
        """Return the distribution of responses each of which has a greatest entry of the factor about one."""
        m = self._responses(f.shape[-1])
        mean, diagonal, lower = f[..., :m], f[..., m : 2 * m], f[..., 2 * m :]
        rows = _layout(m, f.device).rows[m:]
        greatest = diagonal.clone().scatter_reduce(-1, rows.expand(lower.shape), lower.abs().log(), "amax")
        exponent = unit_exponent(-greatest)
        of_lower = -exponent[..., rows]
        moved = times_power(mean, exponent), add_exponent(diagonal, -exponent), times_power(lower, of_lower)
        power = exponent, torch.zeros_like(exponent), of_lower
        return InUnits(self, torch.cat(moved, -1), exponent, torch.cat(power, -1))

    def n_outputs(self, y: Tensor) -> int:
        """Return ``M + M (M + 1) / 2`` for targets ``(N, M)``, or ``(N,)`` where ``M = 1``."""
        m = 1 if y.ndim < 2 else y.shape[-1]
        return m + m * (m + 1) // 2

    def output_names(self, n_outputs: int) -> tuple[str, ...]:
        """Return a name for each output."""
        return _names(self._responses(n_outputs))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Dense:
        r"""Return the expected Hessian, zero between means and factor and between columns of the factor.

        It is :math:`\Sigma^{-1}` for the means and :math:`[j = l]\,(\Sigma_{ik} + [i = j = k]\,L_{jj}^{-2})`, each
        index with ``i = j`` times :math:`L_{jj}`, for the factor.
        """
        root = self._root(f)
        return Dense(_sum(_product(root.unsqueeze(-2), root.unsqueeze(-3))))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> Matrix:
        r"""Return a triangular factor of ``fisher(f)``, in closed form.

        Column ``j`` of the factor has the information :math:`D \Sigma_{\ge j} D + e_1 e_1^T` with :math:`D` the
        derivatives of its entries and :math:`\Sigma = L^{-T} L^{-1}`. In the upper triangular :math:`D L^{-T}` only
        the first diagonal entry, which is 1, sees the second term: it becomes :math:`\sqrt 2`.
        """
        return Matrix(self._root(f))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw responses :math:`\mu + L^{-T} \varepsilon`, ``(..., M)``."""
        mean, factor = self._mean_and_factor(f.detach())
        noise = torch.empty_like(mean).normal_(generator=generator).unsqueeze(-1)
        residual: Tensor = torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        return mean + residual

    def mean(self, f: Tensor) -> Tensor:
        """Return the means, ``(..., M)``."""
        return self._mean_and_factor(f)[0]

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return the joint normal distribution of the responses."""
        mean, p = self._mean_and_factor(f)[0], self._parts(f, y)
        parts = (mean + p.residual, mean, self.variance(f), p.z, p.factor)
        return JointNormal(*(to_array(part) for part in parts))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the responses, ``(..., M)``, the diagonal of ``covariance``."""
        return self._covariance_factor(f).square().sum(-2)

    def covariance(self, f: Tensor) -> Tensor:
        r"""Return the covariances of the responses, :math:`\Sigma = L^{-T} L^{-1}`, ``(..., M, M)``."""
        inverse = self._covariance_factor(f)
        return inverse.mT @ inverse

    def _covariance_factor(self, f: Tensor) -> Tensor:
        factor = self._mean_and_factor(f)[1]
        unit, scale = _inverse(f, factor.shape[-1], factor)
        return _product(unit, scale.unsqueeze(-2))

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the outputs of the weighted mean and covariance, the best ones common to all rows.

        Where responses are constant or collinear, which has no optimum, the correlations are shrunk until they are not.
        """
        m = self._responses(n_outputs)
        rows = start_rows(y, m)
        w = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
        w = w / w.sum()
        mean = w @ rows
        scale = (w @ (rows - mean).square()).sqrt()
        scale = torch.where(scale > 1e-12 * mean.abs(), scale, torch.where(mean == 0, 1.0, mean.abs()))
        standardized = (rows - mean) / scale
        correlation = standardized.mT @ (w.unsqueeze(-1) * standardized)
        correlation.diagonal().fill_(1.0)
        values, vectors = torch.linalg.eigh(correlation)
        inverse = (vectors / values.clamp(min=1e-8)) @ vectors.mT
        factor = torch.linalg.cholesky(inverse) / scale.unsqueeze(-1)
        i, j = _layout(m, rows.device)[:2]
        return torch.cat([mean, factor.diagonal().log(), factor[i, j][m:]])

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first response that is not finite, or unless the outputs are those of M."""
        check_columns(y, self._responses(n_outputs), 1, self.support)

    def _responses(self, n_outputs: int) -> int:
        m = (math.isqrt(9 + 8 * n_outputs) - 3) // 2
        if m < 1 or m + m * (m + 1) // 2 != n_outputs or self.n_responses not in {None, m}:
            asked = "M" if self.n_responses is None else f"M = {self.n_responses}"
            wanted = "" if self.n_responses is None else f" = {self.n_outputs(torch.empty(1, self.n_responses))}"
            raise InputError(
                f"The model has {n_outputs} outputs, but a multivariate Gaussian of {asked} responses needs "
                f"M + M (M + 1) / 2{wanted}: M means, M logarithms of the factor's diagonal, and the factor's entries "
                "below it."
            )
        return m

    def _mean_and_factor(self, f: Tensor) -> tuple[Tensor, Tensor]:
        m = self._responses(f.shape[-1])
        diagonal = torch.exp(f[..., m : 2 * m])
        entries = torch.cat([diagonal, f[..., 2 * m :], torch.zeros_like(f[..., :1])], -1)
        return f[..., :m], entries.index_select(-1, _layout(m, f.device).places).view(*f.shape[:-1], m, m)

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        mean, factor = self._mean_and_factor(f)
        residual = like_outputs(mean, y) - mean
        return _Parts(f, residual, factor, _product(factor, residual.unsqueeze(-1)).sum(-2))

    def _value(self, p: _Parts) -> Tensor:
        m = p.z.shape[-1]
        value = (0.5 * p.z.square() - p.f[..., m : 2 * m]).sum(-1) + 0.5 * m * math.log(2 * math.pi)
        return torch.nan_to_num(value, nan=math.inf, posinf=math.inf, neginf=math.inf)

    def _gradient(self, p: _Parts) -> Tensor:
        m = p.z.shape[-1]
        of_factor = _product(_of_z(p), p.z[..., _layout(m, p.z.device).columns])
        of_mean = -_sum(_product(p.factor, p.z.unsqueeze(-2)))
        return torch.cat([of_mean, of_factor[..., :m] - 1, of_factor[..., m:]], -1)

    def _observed(self, p: _Parts) -> Dense:
        factor, z = p.factor, p.z
        m = z.shape[-1]
        rows, columns, _ = _layout(m, z.device)
        w = _of_z(p)
        of_means = _sum(_product(factor.unsqueeze(-2), factor.unsqueeze(-3)))
        selects = torch.eye(m, dtype=torch.bool, device=z.device)[:, rows]
        own = torch.where(selects, _product(_scales(factor), z[..., columns]).unsqueeze(-2), 0.0)
        cross = -_sum(torch.stack([own, _product(factor[..., columns], w.unsqueeze(-2))], -1))
        of_factor = torch.where(_same_column(m, z), _product(w.unsqueeze(-1), w.unsqueeze(-2)), 0.0)
        extra = torch.nn.functional.pad(_product(w[..., :m], z), (0, len(rows) - m))
        of_factor = _sum(torch.stack([of_factor, torch.diag_embed(extra)], -1))
        return Dense(_joined(of_means, cross, cross.mT, of_factor))

    def _expected(self, p: _Parts) -> Dense:
        return self.fisher(p.f)

    def definition(self) -> Definition:
        """Return the formulas of two responses."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, positive, real, sympy

        mu, rho, y, d, z = (real(f"{name}_0 {name}_1") for name in ("mu", "rho", "y", "d", "z"))
        c = real("c")
        a, b = positive("a b")
        pieces = (
            exponential(a, rho[0]),
            exponential(b, rho[1]),
            *(fm.Abbreviation(d[i], y[i] - mu[i], {mu[i]: sympy.Integer(-1)}) for i in range(2)),
            fm.Abbreviation(z[0], a * d[0] + c * d[1], {a: d[0], d[0]: a, c: d[1], d[1]: c}),
            fm.Abbreviation(z[1], b * d[1], {b: d[1], d[1]: b}),
        )
        standard = {x: sympy.Integer(0) for x in (*z, z[0] * z[1])} | {x**2: sympy.Integer(1) for x in z}
        residuals = {d[1]: z[1] / b, d[0]: (z[0] - c * z[1] / b) / a}
        return fm.Definition(
            likelihood=MultivariateGaussian(2),
            outputs=(*mu, *rho, c),
            targets=y,
            nll=(z[0] ** 2 + z[1] ** 2) / 2 - rho[0] - rho[1] + sympy.log(2 * sympy.pi),
            abbreviations=pieces,
            expect=lambda entry: fm.mean_by_moments(entry.subs(residuals), standard, set(z)),
            read=lambda row: row.tolist(),
            example=((0.3, -0.2, 0.1, -0.4, 0.5), [1.1, 0.4]),
            convexity=fm.Convexity(
                "Convex in the mean for a fixed L, but not in all outputs: with a direction of the mean that moves z₁ "
                "alone, ρ₁ has a block of negative determinant wherever z₁ is not zero. The Fisher information is "
                "positive definite everywhere.",
                sympy.false,
            ),
            source="M. Pourahmadi (1999), Biometrika 86, 677-690.",
            target_words="the two responses",
            joint=True,
            notes=(
                "Written out for M = 2, where the precision is L Lᵀ with L = [[a, 0], [c, b]]. In general, with "
                "d = y - μ and z = Lᵀd: gradient -L z in the mean, d_i z_j in the entry L_ij below the diagonal, and "
                "L_jj d_j z_j - 1 in its logarithm on the diagonal; Hessian L Lᵀ in the mean.",
            ),
        )

    def _root(self, f: Tensor) -> Tensor:
        factor = self._mean_and_factor(f)[1]
        m = factor.shape[-1]
        rows = _layout(m, f.device).rows
        # entry (q, p) of D L^-T is the derivative of q times L^-1 at (row of p, row of q): on the diagonal it cancels
        unit, scale = _inverse(f, m, factor)
        within = torch.nn.functional.pad(scale[..., rows[m:]], (m, 0), value=1.0)
        of_factor = _product(unit.mT[..., rows, :][..., rows], within.unsqueeze(-1))
        of_factor = torch.where(_same_column(m, f), of_factor, 0.0)
        first = torch.nn.functional.pad(f.new_full((m,), 2**0.5 - 1), (0, len(rows) - m))
        of_factor = of_factor + torch.diag(first)
        zero = torch.zeros_like(of_factor[..., :1, :]).expand(*f.shape[:-1], m, len(rows))
        return _joined(factor, zero, zero.mT, of_factor)


def _entries(m: int) -> list[tuple[int, int]]:
    """Return row and column of each output of the factor: the diagonal, and what is below it row by row."""
    return [*((i, i) for i in range(m)), *((i, j) for i in range(m) for j in range(i))]


@lru_cache
def _layout(m: int, device: torch.device) -> _Layout:
    entries = _entries(m)
    places = [len(entries)] * m**2
    for q, (i, j) in enumerate(entries):
        places[i * m + j] = q
    rows, columns = zip(*entries, strict=True)
    with torch.inference_mode(False):  # whoever asks first, others may differentiate
        return _Layout(*(torch.tensor(part, device=device) for part in (rows, columns, places)))


def _names(m: int) -> tuple[str, ...]:
    diagonal = [f"log_diag[{i}]" for i in range(m)]
    lower = [f"lower[{i},{j}]" for i, j in _entries(m)[m:]]
    return (*(f"mean[{i}]" for i in range(m)), *diagonal, *lower)


def _same_column(m: int, like: Tensor) -> Tensor:
    columns = _layout(m, like.device).columns
    return columns.unsqueeze(-1) == columns


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product, zero where either is, though the other be infinite."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def _sum(terms: Tensor) -> Tensor:
    """Return the sum over the last axis, infinite (and not nan) where two terms overflow in opposite directions."""
    value = terms.sum(-1)
    return torch.where(torch.isnan(value) & ~torch.isnan(terms).any(-1), math.inf, value)


def _scales(factor: Tensor) -> Tensor:
    """Return the derivatives of the factor's entries in their outputs: ``L_ii`` on the diagonal, 1 below."""
    m = factor.shape[-1]
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return torch.nn.functional.pad(diagonal, (0, m * (m - 1) // 2), value=1.0)


def _of_z(at: _Parts) -> Tensor:
    """Return ``w``: the derivative of ``z`` of its column in each output of the factor."""
    rows = _layout(at.z.shape[-1], at.z.device).rows
    return _product(_scales(at.factor), at.residual[..., rows])


def _inverse(f: Tensor, m: int, factor: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`V^{-1}` and the diagonal of :math:`D^{-1}` of :math:`L = D V`, whose diagonal is D."""
    scale = torch.exp(-f[..., m : 2 * m])
    identity = torch.eye(m, dtype=f.dtype, device=f.device)
    strict = torch.where(identity == 0, _product(factor, scale.unsqueeze(-1)), identity)
    inverse: Tensor = torch.linalg.solve_triangular(strict, identity.expand_as(factor), upper=False, unitriangular=True)
    if torch.func.debug_unwrap(inverse) is inverse and not bool(torch.isfinite(inverse).all()):
        raise InputError(
            "The factor of a precision is so nearly singular that its inverse overflows: the covariance of the "
            "responses is not a number. Rescale the responses, or give the model another start."
        )
    return inverse, scale


def _joined(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)
