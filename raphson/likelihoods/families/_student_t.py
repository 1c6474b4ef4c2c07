r"""Student's t likelihood: location, scale and, fixed or learned, the degrees of freedom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._closed_form import ClosedForm
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._links import softplus
from raphson.likelihoods._parameters import block_entries, check_number, constant, interleaved, product, total
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, log_remainder
from raphson.likelihoods._special._half_step import FROM, half_step, half_step_derivatives, half_step_excess
from raphson.likelihoods._special._sampling import log_gamma_variate
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import like_outputs, start_rows, weighted_mean
from raphson.likelihoods._units import InUnits, add_exponent, times_power, unit_exponent
from raphson.linalg import Diagonal, EqualBlocks, EqualBlocksMatrix, LinearOperator, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition, Expr


class _Model(NamedTuple):
    location: Tensor
    log_scale: Tensor
    log_df: Tensor | float  # (..., M), or a number where it is fixed
    df: Tensor | float


@dataclass(eq=False)
class _Parts:
    """The residual ``d`` and how its weight ``1 / (1 + t)``, ``t = (d / scale)^2 / df``, splits 1.

    All come from the logarithm of ``t``, and divisions by a scale are by its roots one after another: residuals and
    scales of any size overflow only where a result does.
    """

    f: Tensor
    model: _Model
    d: Tensor
    log_t: Tensor
    inside: Tensor  # whether t < 1

    @cached_property
    def weight(self) -> Tensor:
        """Near 1 for a residual of the usual size."""
        return torch.sigmoid(-self.log_t)

    @cached_property
    def rest(self) -> Tensor:
        """``t / (1 + t)``, near 1 for an outlier."""
        return torch.sigmoid(self.log_t)

    @cached_property
    def log_spread(self) -> Tensor:
        """``log(1 + t)``."""
        return softplus(self.log_t)

    @cached_property
    def square(self) -> Tensor:
        """``(d / scale)^2``."""
        return _divided(self.d, -0.5 * self.model.log_scale, 2).square()

    @cached_property
    def part(self) -> Tensor:
        """``df * rest``."""
        return torch.where(self.inside, self.weight * self.square, self.rest * self.model.df)

    @cached_property
    def precision(self) -> Tensor:
        """``(1 + 1 / df) / scale^2``."""
        twice = -2.0 * self.model.log_scale
        return twice.exp() + (twice - self.model.log_df).exp()

    @cached_property
    def pull(self) -> Tensor:
        """``(1 + 1 / df) * weight * d / scale^2``."""
        near = self.weight * (_divided(self.d, -0.5 * self.model.log_scale, 4) + self.pull_by_df)
        return torch.where(self.inside, near, (self.rest + self.part) / self.d)

    @cached_property
    def pull_by_df(self) -> Tensor:
        """``d / scale^2 / df``."""
        return _divided(self.d, -0.5 * self.model.log_scale - 0.25 * self.model.log_df, 4)

    @cached_property
    def half_step(self) -> tuple[Tensor, Tensor]:
        """The derivatives of the normalizing constant in the log of the degrees of freedom."""
        assert isinstance(self.model.df, Tensor)
        return half_step_derivatives(_half(self.model.df))

    @cached_property
    def by_df(self) -> Tensor:
        """``df * (log(1 + t) - rest)``."""
        near = self.rest < 0.1
        rest = torch.where(near, self.rest, 0.0)
        inside = product(rest, torch.where(near, self.part, 0.0) * log_remainder(rest, 1 - rest))
        return torch.where(near, inside, (self.log_spread - self.rest) * self.model.df)


@dataclass(frozen=True, eq=False)
class StudentT(ClosedForm[_Parts]):
    r"""Independent Student t responses with location, log scale and, unless it is fixed, log degrees of freedom.

    With :math:`r = (y - \mu) / \sigma`, :math:`\sigma = e^\omega` and :math:`\nu` degrees of freedom,

    .. math::
        \ell = \omega + \frac{\nu + 1}{2} \log\left(1 + \frac{r^2}{\nu}\right)
        + \log\Gamma\left(\frac{\nu}{2}\right) - \log\Gamma\left(\frac{\nu + 1}{2}\right)
        + \tfrac12 \log(\nu\pi).

    An outlier counts by its weight :math:`1 / (1 + r^2 / \nu)`: the gradient in the location stays bounded,
    and the observed Hessian is negative there where :math:`r^2 > \nu`. Hence the loss is not convex. Scale and
    degrees of freedom are not the standard deviation, which is :math:`\sigma\sqrt{\nu / (\nu - 2)}` and needs
    :math:`\nu > 2`.

    The Fisher information per response in :math:`(\mu, \omega, \log\nu)` is

    .. math::
        \begin{pmatrix}
        \frac{\nu + 1}{(\nu + 3)\sigma^2} & 0 & 0 \\
        0 & \frac{2\nu}{\nu + 3} & \frac{-2\nu}{(\nu + 1)(\nu + 3)} \\
        0 & \frac{-2\nu}{(\nu + 1)(\nu + 3)} & \frac{\nu^2}{4} \left[\psi'\left(\frac{\nu}{2}\right)
        - \psi'\left(\frac{\nu + 1}{2}\right)\right] - \frac{\nu(\nu + 5)}{2(\nu + 1)(\nu + 3)}
        \end{pmatrix}.

    Its last element falls like :math:`7 / (2\nu^2)`: data say little about many degrees of freedom.

    Shapes: outputs ``(..., k M)`` with k = 3 parameters of a response side by side, or 2 with ``df`` fixed;
    targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        df: Degrees of freedom, a positive number, or None to have them as an output.

    Raises:
        InputError: ``df`` is not a positive finite number.

    References:
        K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989), Robust statistical modeling using the t
        distribution, J. Amer. Statist. Assoc. 84, 881-896, with the information matrix in appendix B.

    Examples:
        With one degree of freedom it is the Cauchy distribution, of density 1 / pi at its center.

        >>> import math, torch
        >>> from raphson.likelihoods import StudentT
        >>> f, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.0])
        >>> bool((StudentT(df=1.0).nll(f, y) - math.log(math.pi)).abs() < 1e-14)
        True
        >>> StudentT(df=1.0).fisher(f).to_dense()
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.5000]]], dtype=torch.float64)
    """

    df: float | None = None

    has_units = True
    commands = (Command("student-t"),)

    def __post_init__(self) -> None:
        check_number("df", self.df)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return learned and fixed degrees of freedom."""
        return cls(), cls(4.0)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Location and log scale of each response, and the log of the degrees of freedom unless fixed."""
        return ("location", "log_scale", "log_df") if self.df is None else ("location", "log_scale")

    def locations(self, n_outputs: int) -> slice:
        """Return the locations."""
        return slice(0, None, len(self.parameters))

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood]:
        """Return the Student distribution of a scale, or of a residual that is greater, about one."""
        location, log_scale, *rest = f.view(*f.shape[:-1], -1, len(self.parameters)).unbind(-1)
        size = log_scale if y is None else torch.maximum(log_scale, (like_outputs(location, y) - location).abs().log())
        exponent = unit_exponent(size)
        moved = times_power(location, exponent), add_exponent(log_scale, exponent), *rest
        power = exponent, *(torch.zeros_like(exponent) for _ in moved[1:])
        return InUnits(self, interleaved(*moved), exponent, interleaved(*power))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the Fisher information: diagonal with ``df`` fixed, one 3 x 3 block per response otherwise."""
        return self._information(self._model(f))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the lower triangular factor of each block of the Fisher information."""
        model = self._model(f)
        location, scale = (x.sqrt() for x in _information(model))
        if self.df is not None:
            return Diagonal(interleaved(location, scale))
        _, log_df = _information_of_df(model)
        off = -scale / (model.df + 1)
        zero = torch.zeros_like(off)
        corner = (log_df - off.square()).clamp_min(0).sqrt()
        return EqualBlocksMatrix(block_entries(((location, zero, zero), (zero, scale, zero), (zero, off, corner))))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``, a normal variate over the root of a chi-square one: never infinite."""
        location, log_scale, _, df = self._model(f.detach())
        # far beyond any difference from the normal distribution, or from the widest variate that there is
        limit = torch.finfo(f.dtype).max ** 0.45
        df = df if isinstance(df, Tensor) else f.new_full((), df)
        half = (0.5 * df).clamp(1 / limit, limit).expand_as(location).contiguous()
        stretch = (0.5 * (half.log() - log_gamma_variate(half, generator)) + log_scale).exp()
        normal = torch.empty_like(half).normal_(generator=generator)
        return torch.nan_to_num(location + stretch * normal)

    def mean(self, f: Tensor) -> Tensor:
        """Return the location, ``(..., M)``; infinite up to one degree of freedom, where there is no mean."""
        model = self._model(f)
        if not isinstance(model.log_df, Tensor):
            return model.location if model.log_df > 0 else torch.full_like(model.location, torch.inf)
        return torch.where(model.log_df > 0, model.location, torch.inf)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return Student distributions, ``(..., M)``; the deviance keeps scale and degrees of freedom."""
        from scipy import stats

        location, log_scale, _, df = self._model(f)
        value, scale = to_array(like_outputs(location, y)), to_array(log_scale.exp())
        # beyond, the distribution is the normal one to ten digits, and SciPy's series for it may not be
        freedom = to_array(df.clamp(max=1e10)) if isinstance(df, Tensor) else min(df, 1e10)
        return Univariate(stats.t(freedom, to_array(location), scale), value, stats.t(freedom, value, scale))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance, ``(..., M)``: infinite up to df = 2, nan up to df = 1, where there is no mean."""
        _, log_scale, number, df = self._model(f)
        log_df = number if isinstance(number, Tensor) else f.new_full((), number)
        finite = (2 * log_scale).exp() / (1 - 2 / df)
        return torch.where(log_df > math.log(2), finite, torch.where(log_df > 0, torch.inf, torch.nan).to(finite))

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the median, the log of the scaled median absolute deviation, and 4 to 30 degrees of freedom.

        Where more than half of the targets are equal the scale is that of all of them.
        """
        rows = start_rows(y, n_outputs, len(self.parameters))
        location = _weighted_median(rows, weights)
        deviation = rows - location
        variance = weighted_mean(deviation.square(), weights)
        # of a normal distribution, the median absolute deviation is 0.6745 standard deviations
        scale = _weighted_median(deviation.abs(), weights) / 0.6745
        scale = torch.where(scale > 0, scale, variance.sqrt())
        scale = torch.where(scale > 0, scale, 1e-3 * location.abs().clamp_min(1.0))
        if self.df is not None:
            return interleaved(location, scale.log())
        # the excess kurtosis of t is 6 / (df - 4); fourth powers of deviations in their own unit overflow
        standard = deviation / torch.where(variance > 0, variance.sqrt(), 1.0)
        kurtosis = weighted_mean(standard.pow(4), weights) - 3
        df = (4 + 6 / kurtosis.clamp_min(0.2)).clamp(max=30.0)
        return interleaved(location, scale.log(), df.log())

    def _model(self, f: Tensor) -> _Model:
        k = len(self.parameters)
        if f.shape[-1] % k:
            raise InputError(f"The model has {f.shape[-1]} outputs, but {k} are needed per response.")
        location, log_scale, *log_df = f.view(*f.shape[:-1], f.shape[-1] // k, k).unbind(-1)
        if self.df is not None:
            return _Model(location, log_scale, math.log(self.df), float(self.df))
        return _Model(location, log_scale, log_df[0], log_df[0].exp())

    @cached_property
    def _constant(self) -> float:
        """The part of the value that the fixed degrees of freedom alone decide."""
        assert self.df is not None
        log_df = torch.tensor(math.log(self.df), dtype=torch.float64, device="cpu")
        return float(_constant(log_df, log_df.exp()))

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        model = self._model(f)
        if once and isinstance(model.log_df, Tensor):
            log_df = constant(model.log_df)
            model = model._replace(log_df=log_df, df=log_df.exp())
        d = like_outputs(model.location, y) - model.location
        log_t = 2.0 * (d.abs().log() - model.log_scale) - model.log_df
        return _Parts(f, model, d, log_t, log_t < 0)

    def _value(self, p: _Parts) -> Tensor:
        _, log_scale, log_df, df = p.model
        constant = _constant(log_df, df) if isinstance(log_df, Tensor) and isinstance(df, Tensor) else self._constant
        # log(1 + t) / t is 1 where t underflows
        t = p.log_t.exp()
        share = torch.where(t == 0, 1.0, p.log_spread / torch.where(t == 0, 1.0, t))
        tail = torch.where(p.inside, p.square * share, p.log_spread * df)
        return total(0.5 * (tail + p.log_spread) + log_scale + constant, p.f)

    def _gradient(self, p: _Parts) -> Tensor:
        scale = p.weight - p.part
        if self.df is not None:
            return interleaved(-p.pull, scale)
        return interleaved(-p.pull, scale, 0.5 * (p.by_df - p.rest) - p.half_step[0])

    def _observed(self, p: _Parts) -> EqualBlocks:
        near = p.weight * p.precision
        a = product(p.weight - p.rest, torch.where(p.inside, near, p.pull / p.d))
        b, c = p.weight * p.pull * 2, p.weight * (p.rest + p.part) * 2
        if self.df is not None:
            return EqualBlocks(block_entries(((a, b), (b, c))))
        # with infinitely many degrees of freedom the other factor of b and c may be infinite, and of g both terms
        b, c = (torch.where(p.weight == 0, 0.0, entry) for entry in (b, c))
        df, few = p.model.df, p.weight - p.part
        # inside by what is left of the pull, which may overflow, after the division by the degrees of freedom
        near = product(p.weight.square() * p.pull_by_df, 1 - p.square)
        d = torch.where(p.inside, near, p.rest / p.d * few)
        e = product(p.rest, few)
        far = (p.log_spread - p.rest * (1 + p.rest)) * df + p.rest * p.weight
        g = 0.5 * torch.where(p.rest < 0.1, p.by_df + e, far) - p.half_step[1]
        return EqualBlocks(block_entries(((a, b, d), (b, c, e), (d, e, g))))

    def _expected(self, p: _Parts) -> SymmetricOperator:
        return self._information(p.model)

    def _information(self, model: _Model) -> SymmetricOperator:
        location, scale = _information(model)
        if self.df is not None:
            return Diagonal(interleaved(location, scale))
        cross, log_df = (entry.expand_as(scale) for entry in _information_of_df(model))
        zero = torch.zeros_like(cross)
        return EqualBlocks(block_entries(((location, zero, zero), (zero, scale, cross), (zero, cross, log_df))))

    def definition(self) -> Definition:
        """Return the formulas, with the degrees of freedom as an output or a constant."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, factored, positive, real, sympy

        mu, y, s, kappa, r = real("mu y s kappa r")
        sigma, nu = positive("sigma nu")
        known = self.df is not None
        residual = fm.Abbreviation(r, (y - mu) / sigma, {mu: -1 / sigma, sigma: -r / sigma})
        half = (nu + 1) / 2
        spread = sympy.log(1 + r**2 / nu)
        width = sympy.Dummy("W", positive=True)

        def arrange(entry: Expr) -> Expr:
            parts = sympy.collect(sympy.expand(entry), [spread], evaluate=False)
            gammas = (sympy.digamma, sympy.trigamma, sympy.polygamma)
            done = sympy.Integer(0)
            for key, part in parts.items():
                special = sympy.Add(*(t for t in sympy.Add.make_args(part) if t.has(*gammas)))
                done += key * factored(part - special) + factored(special)
            return done if not done.has(sympy.zoo) else entry

        def mean_power(above: int, below: int) -> Expr:
            # the mean of r^a / (nu + r^2)^b, since r^2 / (nu + r^2) is beta(1/2, nu/2)
            if above % 2:
                return sympy.Integer(0)
            i, rest = above // 2, below - above // 2
            risen = sympy.rf(sympy.S.Half, i) * sympy.rf(nu / 2, rest) / sympy.rf(half, i + rest)
            return sympy.expand_func(risen) / nu**rest

        def expect(entry: Expr) -> Expr:
            total = sympy.Integer(0)
            log_mean = sympy.digamma(half) - sympy.digamma(nu / 2)
            for term in sympy.Add.make_args(sympy.expand(entry.subs({spread: log_mean, nu + r**2: width}))):
                fixed, moving = term.as_independent(r, width, as_Add=False)
                powers = moving.as_powers_dict()
                total += fixed * mean_power(int(powers[r]), -int(powers[width]))
            return total

        return fm.Definition(
            likelihood=self,
            outputs=(mu, s) if known else (mu, s, kappa),
            targets=(y,),
            nll=s + half * spread + sympy.loggamma(nu / 2) - sympy.loggamma(half) + sympy.log(nu * sympy.pi) / 2,
            abbreviations=(exponential(sigma, s), *(() if known else (exponential(nu, kappa),)), residual),
            constants={} if self.df is None else {nu: self.df},
            example=((0.3, -0.2) if known else (0.3, -0.2, 1.3), 1.5),
            expect=expect,
            convexity=fm.Convexity(
                "Convex in the location where r² ≤ ν, and in s for a fixed location, but not in both: the determinant "
                "of that block is negative wherever y differs from the location. The Fisher information is positive "
                "definite everywhere.",
                sympy.Eq(r, 0) if known else sympy.false,
            ),
            source="K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989), JASA 84, 881-896.",
            arrange=arrange,
        )


def _divided(d: Tensor, log_factor: Tensor, times: int) -> Tensor:
    """Return a number by a factor so many times, which overflows only where the result does; zero stays zero."""
    factor = log_factor.exp().clamp(max=torch.finfo(d.dtype).max)
    for _ in range(times):
        d = d * factor
    return d


def _half(df: Tensor) -> Tensor:
    """Return half of the degrees of freedom, away from zero, where functions of them have their limits."""
    return (0.5 * df).clamp_min(torch.finfo(df.dtype).tiny ** 0.4)


def _constant(log_df: Tensor, df: Tensor) -> Tensor:
    """Return the logarithm of the normalizing constant at scale 1."""
    half = _half(df)
    # below, the half step of the gamma function is half of the logarithm and a constant
    below = (math.log(2.0 * torch.finfo(df.dtype).tiny ** 0.4) - log_df).clamp(min=0)
    return HALF_LOG_TWO_PI - half_step(half) + 0.5 * below


def _information(model: _Model) -> tuple[Tensor, Tensor]:
    """Return the information on location and log scale, which are uncorrelated, ``(..., M)`` each."""
    _, log_scale, _, df = model
    share = 2 / (1 + 3 / df)
    scale = share.expand_as(log_scale) if isinstance(share, Tensor) else torch.full_like(log_scale, share)
    return (1 - 2 / (df + 3)) * (-2 * log_scale).exp(), scale


def _information_of_df(model: _Model) -> tuple[Tensor, Tensor]:
    """Return the information on the log of the degrees of freedom: with the log scale, and its own."""
    df = model.df
    assert isinstance(df, Tensor)
    half, product = _half(df), 2 * (df + 1) * (df + 3)
    first, second = half_step_derivatives(half)
    few = first - second + (3 - df) / product
    # first - second starts with 1 / (2 df), which cancels against the other term: taken together in closed form
    many = half_step_excess(half) + (7 + 3 / df) / product
    return -2 / (df + 1) / (1 + 3 / df), torch.where(half < FROM, few, many)


def _weighted_median(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the lower median of each column, ``(M,)``."""
    if weights is None:
        return rows.median(0).values
    values, order = rows.sort(0)
    below = weights.to(rows)[order].cumsum(0)
    return values.gather(0, (below < 0.5 * below[-1]).sum(0, keepdim=True)).squeeze(0)
