r"""The Gaussian likelihood with mean and scale as outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._closed_form import ClosedForm
from raphson.likelihoods._command import Command
from raphson.likelihoods._definiteness import Definiteness
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._parameters import blocks, interleaved, lower_blocks
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI
from raphson.likelihoods._support import Support
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import columns, like_outputs, start_rows, weighted_mean
from raphson.likelihoods._units import InUnits
from raphson.likelihoods.composed import _mean_link
from raphson.likelihoods.families._gaussian_parametrizations import PARAMETRIZATIONS, Entries, Moments, Parametrization
from raphson.linalg import Diagonal, EqualBlocks, LinearOperator, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


class _Parts(NamedTuple):
    second: Tensor  # the second output of each response
    at: Moments
    r: Tensor  # standardized residual


@dataclass(frozen=True, eq=False)
class HeteroscedasticGaussian(ClosedForm[_Parts]):
    r"""Independent Gaussian responses, each with two outputs: its mean :math:`\mu` and a form of its scale :math:`s`.

    .. math::
        \ell(f, y) = \sum_m \log s_m + \tfrac12 r_m^2 + \tfrac12 \log 2\pi, \qquad r_m = \frac{y_m - \mu_m}{s_m}

    In mean and scale, one response has

    .. math::
        \nabla\ell = \begin{pmatrix} -r/s \\ (1 - r^2)/s \end{pmatrix}, \qquad
        \nabla^2\ell = \frac1{s^2} \begin{pmatrix} 1 & 2r \\ 2r & 3r^2 - 1 \end{pmatrix}, \qquad
        \mathrm{E}\,\nabla^2\ell = \frac1{s^2} \begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix},

    and the other parametrizations follow by the chain rule. The observed Hessian of an example is ``M`` blocks of
    ``2 x 2``, and so is its average over examples (``average_hessian``): no axis of either counts examples.

    ==================== =============================================== ==========================================
    parametrization      outputs                                         observed Hessian
    ==================== =============================================== ==========================================
    mean_scale           :math:`\mu,\ s`                                 indefinite
    mean_log_scale       :math:`\mu,\ \log s`                            indefinite, singular at :math:`r = 0`
    mean_variance        :math:`\mu,\ s^2`                               indefinite
    mean_log_variance    :math:`\mu,\ \log s^2`                          indefinite, singular at :math:`r = 0`
    mean_precision       :math:`\mu,\ s^{-2}`                            positive definite where :math:`r^2 < 1/2`
    mean_softplus_scale  :math:`\mu,\ \theta` with                       indefinite
                         :math:`s = \log(1 + e^\theta)`
    natural              :math:`\mu/s^2,\ -1/(2s^2)`                     positive definite: the loss is convex
    ==================== =============================================== ==========================================

    The Fisher information is positive definite in all of them, and diagonal in all but the last: mean and scale are
    orthogonal parameters. ``definiteness`` says this as data, ``definiteness_at`` counts it in a sample.

    Shapes: outputs ``(..., 2 M)``, the two of response 0 first; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        parametrization: One of the names above.
        link: What the first output is of the mean: ``"identity"``, ``"log"`` or ``"inverse"``.

    Raises:
        InputError: The parametrization or the link is none of them, or there is a link with natural parameters.

    References:
        D. A. Nix and A. S. Weigend (1994), Estimating the mean and variance of the target probability distribution.
        O. E. Barndorff-Nielsen (1978), Information and Exponential Families, for the natural parameters.
        D. R. Cox and N. Reid (1987), Parameter orthogonality and approximate conditional inference, JRSS B 49.

    Examples:
        At the mean with scale 2 the observed Hessian in mean and scale is ``diag(1, -1) / 4``: a saddle.

        >>> import torch
        >>> from raphson.likelihoods import HeteroscedasticGaussian
        >>> lik, f, y = HeteroscedasticGaussian("mean_scale"), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0]])
        >>> lik.hessian(f, y).to_dense()
        tensor([[[ 0.2500,  0.0000],
                 [ 0.0000, -0.2500]]])
        >>> lik.fisher(f).to_dense()
        tensor([[[0.2500, 0.0000],
                 [0.0000, 0.5000]]])
        >>> lik.definiteness.observed
        'indefinite'
    """

    parametrization: str = "mean_log_scale"
    link: str = "identity"

    has_units = True
    link_names = ("identity", "log", "inverse")
    commands = (Command("gaussian"), Command("heteroscedastic-gaussian", constraints="own"))

    def __post_init__(self) -> None:
        if self.parametrization not in PARAMETRIZATIONS:
            raise InputError(
                f"parametrization is {self.parametrization!r}, but it must be one of {', '.join(PARAMETRIZATIONS)}."
            )
        object.__setattr__(self, "concave", self.definiteness.observed == "positive definite")
        _mean_link.check_link(self)
        if self.link != "identity":
            if self.parametrization == "natural":
                raise InputError(
                    "A link is of the mean, which natural parameters are not made of; leave one of the two."
                )
            _mean_link.use_link(self, replace(self, link="identity"))

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return every parametrization, and each other link."""
        names = [name for name in PARAMETRIZATIONS if name != cls().parametrization]
        return cls(), *map(cls, names), *(cls(link=link) for link in cls.link_names[1:])

    @property
    def _form(self) -> Parametrization:
        return PARAMETRIZATIONS[self.parametrization]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The two outputs of a response."""
        return self._form.names if self.link == "identity" else (_mean_link.mean_name(self.link), self._form.names[1])

    def locations(self, n_outputs: int) -> slice | None:
        """Return the means, where they are outputs."""
        return slice(0, None, 2) if self.link == "identity" and self.parametrization != "natural" else None

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood] | None:
        """Return the same parametrization of scales about one."""
        if self.link != "identity":
            return None
        units = self._form.in_units(f[..., ::2], f[..., 1::2])
        return InUnits(self, interleaved(*units.outputs), units.target, interleaved(*units.gradient))

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where the two outputs must lie."""
        if self.link == "identity":
            return self._form.domains
        return _mean_link.mean_domain(self), self._form.domains[1]

    @property
    def definiteness(self) -> Definiteness:
        """What observed and expected Hessians are for every output and target, as data and in words."""
        return self._form.definiteness

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the expected Hessian: ``Diagonal``, or ``EqualBlocks`` in natural parameters."""
        second, at = self._moments(f)
        return _operator(self._form.expected(second, at))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the Cholesky factor of ``fisher(f)``: diagonal, or lower triangular blocks in natural parameters."""
        second, at = self._moments(f)
        first, cross, second = self._form.root(second, at)
        return Diagonal(interleaved(first, second)) if cross is None else lower_blocks(first, cross, second)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        r"""Return :math:`(y, y^2)` per response in natural parameters, else None.

        Also None where a sum of squares about zero would lose more than a third of the digits against one about the
        mean, that is where the mean of these targets is over 300 times their standard deviation.
        """
        if self.parametrization != "natural":
            return None
        response = columns(y, n_outputs // 2).double()
        rows = response.reshape(-1, response.shape[-1])
        if bool((rows.mean(0).square() > 1e5 * rows.var(0, correction=0)).any()):
            return None
        return interleaved(response, response.square())

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`A`, the means of ``(y, y^2)`` and their covariance, in natural parameters.

        :math:`A = \sum_m \frac{\mu^2}{2 s^2} + \log s + \frac12 \log 2\pi`.

        Raises:
            NotImplementedError: In other than natural parameters.
        """
        if self.parametrization != "natural":
            raise NotImplementedError(f"The Gaussian is not an exponential family in '{self.parametrization}' outputs.")
        second, at = self._moments(f)
        means = interleaved(at.mean, at.mean.square() - 0.5 / second)
        curvature = _operator(self._form.expected(second, at)) if hessian else None
        return Derivatives(_value(at, at.mean * at.inverse_scale), means, curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses, ``(..., M)``."""
        at = self._moments(f.detach())[1]
        return torch.empty_like(at.mean).normal_(generator=generator).div_(at.inverse_scale).add_(at.mean)

    def mean(self, f: Tensor) -> Tensor:
        """Return the means of the responses, ``(..., M)``."""
        return self._moments(f)[1].mean

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return normal distributions, ``(..., M)``; the deviance keeps the scale."""
        from scipy import stats

        at = self._moments(f)[1]
        value, scale = to_array(like_outputs(at.mean, y)), to_array(1 / at.inverse_scale)
        return Univariate(stats.norm(to_array(at.mean), scale), value, stats.norm(value, scale))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the responses, ``(..., M)``."""
        return self._moments(f)[1].inverse_scale.square().reciprocal()

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the outputs of the weighted mean and standard deviation, the best ones common to all rows.

        Constant responses, which have no optimum, get a scale of their own size, or 1.
        """
        rows = start_rows(y, n_outputs, 2)
        mean = weighted_mean(rows, weights)
        return interleaved(*self._form.outputs(mean, _safe_scale(rows - mean, mean, weights)))

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Return the output of the root mean square residual ``(M,)``, the optimum; None in natural parameters."""
        if self.parametrization == "natural":
            return None
        residual = like_outputs(first, y) - first
        return self._form.outputs(first, _safe_scale(residual, first.abs().amax(0), weights))[1]

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first response that is not finite, and unless there are two outputs for each."""
        _check_even(n_outputs)
        Likelihood.check(self, y, n_outputs)

    def _moments(self, f: Tensor) -> tuple[Tensor, Moments]:
        _check_even(f.shape[-1])
        second = f[..., 1::2]
        return second, _finite_inverse(self._form.moments(f[..., ::2], second))

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        _check_even(f.shape[-1])
        second = f[..., 1::2]
        at = self._form.moments(f[..., ::2], second)
        d = like_outputs(at.mean, y) - at.mean
        # a residual of zero stays zero however small the scale
        return _Parts(second, _finite_inverse(at), torch.where(d == 0, d, d * at.inverse_scale))

    def _value(self, p: _Parts) -> Tensor:
        return _value(p.at, p.r)

    def _gradient(self, p: _Parts) -> Tensor:
        return interleaved(*self._form.gradient(*p))

    def _observed(self, p: _Parts) -> EqualBlocks:
        first, cross, second = self._form.observed(*p)
        return blocks(first, torch.zeros_like(first) if cross is None else cross, second)

    def _expected(self, p: _Parts) -> SymmetricOperator:
        return _operator(self._form.expected(p.second, p.at))

    def definition(self) -> Definition:
        """Return the formulas in this parametrization."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, grouped, logistic, positive, real, sympy

        mu, y, r, e, s, rho, a, eta = real("mu y r e s rho a eta_1")
        sigma, v, tau, q = positive("sigma v tau q")
        eta_2 = sympy.Symbol("eta_2", negative=True)
        log, half_log_2pi = sympy.log, sympy.log(2 * sympy.pi) / 2
        residual = fm.Abbreviation(r, (y - mu) / sigma, {mu: -1 / sigma, sigma: -r / sigma})
        deviation = fm.Abbreviation(e, y - mu)
        natural = (
            fm.Abbreviation(v, -1 / (2 * eta_2), {eta_2: 2 * v**2}),
            fm.Abbreviation(mu, eta * v, {eta: v, eta_2: 2 * mu * v}),
        )
        # the second output, the value, its abbreviations, and the second output and the target of the example
        forms: dict[str, tuple[fm.Expr, fm.Expr, tuple[fm.Abbreviation, ...], float, float]] = {
            "mean_scale": (sigma, log(sigma) + r**2 / 2, (residual,), 0.8, 1.5),
            "mean_log_scale": (s, s + r**2 / 2, (exponential(sigma, s), residual), -0.2, 1.5),
            "mean_variance": (v, log(v) / 2 + e**2 / (2 * v), (deviation,), 0.6, 1.5),
            "mean_log_variance": (
                rho,
                rho / 2 + r**2 / 2,
                (fm.Abbreviation(sigma, sympy.exp(rho / 2), {rho: sigma / 2}), residual),
                -0.4,
                1.5,
            ),
            "mean_precision": (tau, -log(tau) / 2 + tau * e**2 / 2, (deviation,), 1.5, 0.7),
            "mean_softplus_scale": (
                a,
                log(sigma) + r**2 / 2,
                (logistic(q, a), fm.Abbreviation(sigma, log(1 + sympy.exp(a)), {a: q}), residual),
                0.2,
                1.5,
            ),
            "natural": (eta_2, mu**2 / (2 * v) + log(v) / 2 - eta * y - eta_2 * y**2, natural, -0.7, 1.5),
        }
        name = self.parametrization
        second, value, pieces, example, target = forms[name]
        zero, one = sympy.Integer(0), sympy.Integer(1)
        moments = {r: zero, r**2: one, e: zero, e**2: 1 / tau if name == "mean_precision" else v}
        arrange = {"mean_softplus_scale": lambda entry: grouped(entry, [sigma]), "natural": sympy.expand}
        true, false = sympy.true, sympy.false
        where = {"mean_log_scale": sympy.Eq(r, 0), "mean_log_variance": sympy.Eq(r, 0), "natural": true}
        where["mean_precision"] = tau * e**2 <= sympy.Rational(1, 2)
        first, mean = eta if name == "natural" else mu, tuple[fm.Abbreviation, ...]()
        if self.link != "identity":
            first, piece = _mean_link.mean_formula(self.link, mu)
            mean = (piece,)
        made = fm.Definition(
            likelihood=self,
            outputs=(first, second),
            targets=(y,),
            nll=value + half_log_2pi,
            abbreviations=(*mean, *pieces),
            moments={y: mu, y**2: mu**2 + v} if name == "natural" else moments,
            example=((0.4 if name == "natural" else 0.3, example), target),
            convexity=fm.Convexity(_CONVEXITY[name], where.get(name, false)),
            source=_BROWN if name == "natural" else _COX_REID,
            **({"arrange": arrange[name]} if name in arrange else {}),
        )
        return made if not mean else replace(made, convexity=_mean_link.linked_convexity(made))


_COX_REID = "D. R. Cox and N. Reid (1987), J. R. Statist. Soc. B 49, 1-39: mean and scale are orthogonal parameters."
_BROWN = "L. D. Brown (1986), Fundamentals of Statistical Exponential Families, chapter 1."
_FISHER = "The Fisher information is positive definite everywhere."
_IN_EACH = (
    "Convex in {0} for a fixed mean and in the mean for a fixed {0}, but not in both: the determinant is negative "
    f"wherever y differs from the mean, and zero where it does not. {_FISHER}"
)
_CONVEXITY = {
    "mean_scale": (
        "Nowhere convex: the determinant is negative, so the observed Hessian always has one negative eigenvalue. "
        + _FISHER
    ),
    "mean_log_scale": _IN_EACH.format("s"),
    "mean_variance": (
        "Nowhere convex: the determinant is -1/(2v³) whatever y is, so the observed Hessian always has one negative "
        f"eigenvalue. {_FISHER}"
    ),
    "mean_log_variance": _IN_EACH.format("ρ"),
    "mean_precision": (
        "Convex where τe² ≤ 1/2, that is within 0.707 standard deviations of the mean; beyond, the observed Hessian "
        f"has one negative eigenvalue. {_FISHER}"
    ),
    "mean_softplus_scale": (
        "Nowhere convex: the determinant is negative, because σ(1 - q)(1 - r²) < q(1 + r²) for every a and r (it comes "
        f"down to 1 + σ < exp σ). {_FISHER}"
    ),
    "natural": (
        "Strictly convex everywhere: the Hessian is the covariance of (y, y²) and does not depend on y, so observed "
        "and expected are the same matrix."
    ),
}


def _safe_scale(residual: Tensor, size: Tensor, weights: Tensor | None) -> Tensor:
    """Return the root mean square ``(M,)`` of residuals ``(N, M)``; where they vanish, the size of the mean, or 1."""
    scale = weighted_mean(residual.square(), weights).sqrt()
    return torch.where(scale > 1e-12 * size.abs(), scale, torch.where(size == 0, 1.0, size.abs()))


def _check_even(n_outputs: int) -> None:
    if n_outputs % 2:
        raise InputError(
            f"The model has {n_outputs} outputs, but a Gaussian with mean and scale needs two per response: "
            "give an even number, the two of the first response first."
        )


def _finite_inverse(at: Moments) -> Moments:
    return at._replace(inverse_scale=at.inverse_scale.clamp(max=torch.finfo(at.inverse_scale.dtype).max))


def _value(at: Moments, r: Tensor) -> Tensor:
    each = torch.addcmul(at.log_scale, r, r, value=0.5) + HALF_LOG_TWO_PI
    value = each.squeeze(-1) if each.shape[-1] == 1 else each.sum(-1)
    # outside the domain logarithms and roots are nan, or the log scale is -inf
    return torch.nan_to_num(value, nan=math.inf, posinf=math.inf, neginf=math.inf)


def _operator(entries: Entries) -> SymmetricOperator:
    first, cross, second = entries
    return Diagonal(interleaved(first, second)) if cross is None else blocks(first, cross, second)
