r"""The Weibull likelihood with right censoring: durations; the exponential is the case of shape 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods import _parameters
from raphson.likelihoods._closed_form import ClosedForm
from raphson.likelihoods._command import Command
from raphson.likelihoods._special._binet import horner
from raphson.likelihoods._support import POSITIVE, Support
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import check_columns, like_outputs, start_rows, weighted_mean
from raphson.linalg import Diagonal, LinearOperator, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition

_EVENT = Support("1 (event observed) or 0 (right-censored) in the second place", lambda e: (e == 0) | (e == 1))

# E[w log w] and E[w (1 + log^2 w)] less the square of the former, w standard exponential
_CROSS = 1 - 0.5772156649015329
_REST = math.pi**2 / 6


class _Parts(NamedTuple):
    f: Tensor  # all outputs
    log_time: Tensor
    event: Tensor | float
    z: Tensor  # log of the cumulative hazard
    hazard: Tensor  # cumulative
    excess: Tensor  # cumulative hazard less event
    log_shape: Tensor | float
    shape: Tensor | float


@dataclass(frozen=True, eq=False)
class Weibull(ClosedForm[_Parts]):
    r"""Independent Weibull durations with the logarithms of scale and shape as outputs, some right-censored.

    With scale :math:`\eta = e^{f_1}`, shape :math:`k = e^{f_2}`, :math:`z = k \log(t / \eta)`, cumulative hazard
    :math:`\Lambda = e^z = (t/\eta)^k` and :math:`\delta = 1` for an event, 0 for a censored time, one response has

    .. math::
        \ell = \Lambda - \delta \log\frac{k \Lambda}{t}, \qquad
        \nabla\ell = \begin{pmatrix} -k (\Lambda - \delta) \\ z (\Lambda - \delta) - \delta \end{pmatrix}, \qquad
        \nabla^2\ell = \begin{pmatrix} k^2 \Lambda & -k (\Lambda - \delta + z \Lambda) \\
            \cdot & z (\Lambda - \delta) + z^2 \Lambda \end{pmatrix}.

    Without censoring, with Euler's :math:`\gamma`,

    .. math::
        I = \begin{pmatrix} k^2 & -k (1 - \gamma) \\ \cdot & \pi^2/6 + (1 - \gamma)^2 \end{pmatrix}.

    With censoring the Fisher information would need the censoring times of the events too, which nobody knows.
    Given the targets, ``fisher`` returns the predictable variation of the score up to the observed time,

    .. math::
        I(t) = \int_0^t \nabla \log h \, \nabla \log h^\top \, d\Lambda
             = \Lambda \begin{pmatrix} k^2 & -k z \\ \cdot & 1 + z^2 \end{pmatrix},

    which is positive definite for events and for censored times, and whose expectation is the Fisher information
    under any independent censoring. Without targets it returns the information without censoring.

    With ``shape`` a number the scale is the only output (``shape=1.0`` is the exponential) and :math:`\ell` is
    convex in ``f``; with both it is not.

    Shapes: outputs ``(..., 2 M)``, scale and shape of response 0, then of response 1, or ``(..., M)`` with
    ``shape``. Targets are times ``(..., M)``, or ``(...,)`` where ``M = 1``; with ``censored`` they have one more
    axis, always the last and always of length 2: ``(..., M, 2)``, or ``(..., 2)`` where ``M = 1``, the time
    and then 1 for an event or 0 for a censored time.

    Args:
        shape: ``k``, the same for all; None makes it an output.
        censored: Whether targets are pairs of time and event.

    Raises:
        InputError: ``shape`` is not positive and finite.

    References:
        J. F. Lawless (2003), Statistical Models and Methods for Lifetime Data, 2nd ed., section 5.2.
        P. K. Andersen, O. Borgan, R. D. Gill and N. Keiding (1993), Statistical Models Based on Counting Processes,
        section VI.1.2 (predictable variation of the score).

    Examples:
        A censored exponential time adds its cumulative hazard, an event takes off the log hazard.

        >>> import torch
        >>> from raphson.likelihoods import Weibull
        >>> f, y = torch.zeros(2, 1), torch.tensor([[3.0, 1.0], [3.0, 0.0]])
        >>> Weibull(shape=1.0, censored=True).nll(f, y)
        tensor([3., 3.])
        >>> Weibull(shape=2.0, censored=True).hessian(f, y).diagonal()
        tensor([[36.],
                [36.]])
    """

    shape: float | None = None
    censored: bool = False

    support = POSITIVE
    commands = (Command("weibull"),)

    def __post_init__(self) -> None:
        _parameters.check_number("shape", self.shape)
        object.__setattr__(self, "concave", self.shape is not None)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a learned and a fixed shape, of complete and of right-censored durations."""
        return cls(), cls(1.5), cls(censored=True), cls(1.0, censored=True)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logarithms of the scale and, unless ``shape`` is given, of the shape of each response."""
        return ("log_scale", "log_shape") if self.shape is None else ("log_scale",)

    def n_outputs(self, y: Tensor) -> int:
        """Return ``C`` for targets ``(N,)`` or ``(N, M)``; with ``censored`` ``(N, 2)`` or ``(N, M, 2)``."""
        times = y[..., 0] if self.censored and y.ndim > 1 else y
        return len(self.parameters) * (1 if times.ndim < 2 else times.shape[-1])

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the information without censoring, or at censored targets the predictable variation of the score."""
        if self.censored and y is not None:
            return self._variation(self._parts(f, y))
        return self._information(f)

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return the Cholesky factor of ``fisher(f, y)`` in closed form, ``(..., C, C)``."""
        if self.shape is not None:
            return self.fisher(f, y).factor()
        if self.censored and y is not None:
            p = self._parts(f, y)
            w = (0.5 * p.z).exp()
            return _parameters.lower_blocks(w * p.shape, -w * p.z, w)
        shape = self._split(f)[1].exp()
        return _parameters.lower_blocks(
            shape, torch.full_like(shape, -_CROSS), torch.full_like(shape, math.sqrt(_REST))
        )

    @property
    def self_concordance(self) -> float | None:
        r"""k, the given shape: in the log scale the loss is :math:`e^{k (\log t - f)}` and a linear term."""
        return self.shape

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        r"""Return :math:`-k (\Lambda - \delta)` in extended precision; None where the shape is an output."""
        if self.shape is None:
            return None
        time, event = self._targets(torch.from_numpy(f.astype(np.float64)), y)
        shape = np.longdouble(self.shape)
        hazard = np.exp(shape * (np.log(time.double().numpy().astype(np.longdouble)) - f))
        found: NDArray[np.longdouble] = shape * ((event if isinstance(event, float) else event.numpy()) - hazard)
        return found

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`k^2 \Lambda`, more where the exponent, a difference of logarithms, is rounded by more."""
        if self.shape is None:
            return super().curvature_terms(f, y)
        log_time = self._targets(f, y)[0].log()
        large = self.shape * (log_time.abs() + f.abs())
        return self.shape**2 * torch.exp(self.shape * (log_time - f)) * (1 + large / 16)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw times without censoring, ``(..., M)``, or with ``censored`` pairs ``(..., M, 2)`` of time and 1."""
        log_scale, log_shape = self._split(f.detach())
        hazard = torch.empty_like(log_scale).exponential_(generator=generator)
        time = (log_scale + hazard.log() * (-log_shape).exp()).exp().clamp(min=torch.finfo(f.dtype).tiny)
        return torch.stack((time, torch.ones_like(time)), -1) if self.censored else time

    def mean(self, f: Tensor) -> Tensor:
        r"""Return the means :math:`\eta\,\Gamma(1 + 1/k)` of the uncensored times, ``(..., M)``."""
        log_scale, log_shape = self._split(f)
        return (log_scale + torch.lgamma(1 + (-log_shape).exp())).exp()

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return Weibull distributions, ``(..., M)``; the deviance keeps the shape, and knows what is censored."""
        from scipy import stats

        log_scale, log_shape = self._split(f)
        time, event = self._targets(log_scale, y)
        value, shape = to_array(time), to_array(log_shape.exp())
        laws = [stats.weibull_min(shape, scale=scale) for scale in (to_array(log_scale.exp()), value)]
        return Univariate(laws[0], value, laws[1], event=to_array(event) if isinstance(event, Tensor) else None)

    def variance(self, f: Tensor) -> Tensor:
        r"""Return the variances :math:`\eta^2 [\Gamma(1 + 2/k) - \Gamma(1 + 1/k)^2]`, ``(..., M)``."""
        log_scale, log_shape = self._split(f)
        # an inverse shape whose gamma function is infinite, but not its logarithm
        a = (-log_shape).exp().clamp(max=torch.finfo(f.dtype).max ** 0.4)
        twice = torch.lgamma(1 + 2 * a)
        small = a < 1 / 64
        # log Gamma(1 + 2 a) - 2 log Gamma(1 + a), by its series where the two nearly cancel
        near = torch.where(small, a, 0.0)
        series = horner(near, _DOUBLING) * near.square()
        change = torch.where(small, series, twice - 2 * torch.lgamma(1 + a))
        # by logarithms: the scale may overflow where the rest underflows
        share = torch.where(change > 0, (-torch.expm1(-change)).log(), math.log(_DOUBLING[0]) - 2 * log_shape)
        return (2 * log_scale + twice + share).exp()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first time that is not positive and finite, or event that is not 0 or 1.

        Targets are times ``(..., M)``; with ``censored`` times and events, ``(..., M, 2)``, or ``(..., 2)``.

        Raises:
            InputError: A time, an event or the shape is not as it must be.
        """
        n_parameters = len(self.parameters)
        if not self.censored:
            if y.ndim > 1 and y.shape[-1] == 2 and bool((y[..., 1] == 0).any() & _EVENT.contains(y[..., 1]).all()):
                raise InputError(
                    "The second column of the targets is 0 or 1 throughout, which no durations are. If it marks "
                    "observed events, use Weibull(censored=True); else leave it out."
                )
            check_columns(y, n_outputs, n_parameters, self.support)
            return
        if y.ndim == 0 or y.shape[-1] != 2:
            raise InputError(
                f"The targets have shape {tuple(y.shape)}, but Weibull(censored=True) needs times and events on a last "
                "axis of length 2. Stack them, torch.stack((time, event), -1), or leave out censored=True."
            )
        check_columns(y[..., 0], n_outputs, n_parameters, self.support)
        check_columns(y[..., 1], n_outputs, n_parameters, _EVENT)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the shape from the spread of the log times of events, and the scale's estimate given it.

        Constant times give a shape of about 1e4.
        """
        n_parameters = len(self.parameters)
        log_time = start_rows(y[..., 0] if self.censored else y, n_outputs, n_parameters).log()
        event = torch.ones_like(log_time)
        if self.censored:
            event = start_rows(y[..., 1], n_outputs, n_parameters)
        events = weighted_mean(event, weights).clamp(min=0.5 / max(log_time.shape[0], 1))
        center = weighted_mean(event * log_time, weights) / events
        spread = weighted_mean(event * (log_time - center).square(), weights) / events
        log_shape = 0.5 * (math.pi**2 / 6 / spread.clamp(min=1e-8)).log()
        if self.shape is not None:
            log_shape = torch.full_like(spread, math.log(self.shape))
        shape, top = log_shape.exp(), log_time.amax(0)
        hazard = weighted_mean((shape * (log_time - top)).exp(), weights)
        return _parameters.join(top + (hazard / events).log() / shape, log_shape, self.shape is not None)

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return _parameters.split(f, None if self.shape is None else math.log(self.shape))

    def _targets(self, log_scale: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self.censored:
            return like_outputs(log_scale, y), 1.0
        if y.ndim == 0 or y.shape[-1] != 2:
            raise InputError(
                f"The targets have shape {tuple(y.shape)}, but Weibull(censored=True) needs times and events on a last "
                "axis of length 2."
            )
        time, event = y.unbind(-1)
        return like_outputs(log_scale, time), like_outputs(log_scale, event)

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        log_shape: Tensor | float
        shape: Tensor | float
        if self.shape is not None:
            log_scale, log_shape, shape = f, math.log(self.shape), float(self.shape)
        else:
            log_scale, log_shape = self._split(f)
            shape = log_shape.exp().clamp(max=torch.finfo(f.dtype).max)
        time, event = self._targets(log_scale, y)
        log_time = time.log()
        # finite below, so that no hazard times its logarithm is zero
        z = ((log_time - log_scale) * shape).clamp(min=torch.finfo(f.dtype).min)
        hazard, excess = z.exp(), torch.expm1(z)
        return _Parts(
            f,
            log_time,
            event,
            z,
            hazard,
            excess if isinstance(event, float) else torch.where(event == 0, hazard, excess),
            log_shape,
            shape,
        )

    def _value(self, p: _Parts) -> Tensor:
        gain = p.z - p.log_time + p.log_shape
        return _parameters.total(p.hazard - (gain if isinstance(p.event, float) else p.event * gain), p.f)

    def _gradient(self, p: _Parts) -> Tensor:
        scale = -p.shape * p.excess
        return scale if self.shape is not None else _parameters.interleaved(scale, p.z * p.excess - p.event)

    def _observed(self, p: _Parts) -> SymmetricOperator:
        scale = (p.z + 2 * p.log_shape).exp()
        if self.shape is not None:
            return Diagonal(scale)
        turned = p.z * p.hazard
        return _parameters.blocks(scale, -p.shape * (p.excess + turned), p.z * (p.excess + turned))

    def _expected(self, p: _Parts) -> SymmetricOperator:
        return self._variation(p) if self.censored else self._information(p.f)

    def _variation(self, p: _Parts) -> SymmetricOperator:
        scale = (p.z + 2 * p.log_shape).exp()
        if self.shape is not None:
            return Diagonal(scale)
        turned = p.z * p.hazard
        return _parameters.blocks(scale, -p.shape * turned, p.hazard + p.z * turned)

    def _information(self, f: Tensor) -> SymmetricOperator:
        log_scale, log_shape = self._split(f)
        shape = log_shape.exp().expand_as(log_scale)
        if self.shape is not None:
            return Diagonal(shape.square())
        return _parameters.blocks(shape.square(), -_CROSS * shape, torch.full_like(shape, _REST + _CROSS**2))

    def definition(self) -> Definition:
        """Return the formulas, with the shape as an output or a constant, of complete or right-censored durations."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, positive, real, sympy

        y, k, w = positive("y k w")
        a, z, delta, kappa = real("a z delta kappa")
        known = self.shape is not None
        shape = () if known else (exponential(k, kappa),)
        standard = fm.Abbreviation(z, k * (sympy.log(y) - a), {a: -k} if known else {a: -k, kappa: z})
        euler = 1 - sympy.EulerGamma
        moments = {
            w: sympy.Integer(1),
            z: -sympy.EulerGamma,
            w * z: euler,
            w * z**2: euler**2 + sympy.pi**2 / 6 - 1,
        }
        convexity = fm.STRICTLY_CONVEX
        if not known and self.censored:
            convexity = fm.Convexity(
                "Strictly convex in the log scale for a fixed shape, not in both outputs: for an event the determinant "
                "is negative unless w = 1; for a censored row the Hessian is positive semidefinite where z ≤ -1 only.",
                sympy.Or(sympy.And(sympy.Eq(delta, 0), z <= -1), sympy.Eq(w, 1) & sympy.Eq(delta, 1)),
            )
        elif not known:
            convexity = fm.Convexity(
                "Strictly convex in the log scale for a fixed shape, not in both outputs: the determinant is negative "
                "unless w = 1. The Fisher information is positive definite everywhere.",
                sympy.Eq(w, 1),
            )
        event = delta if self.censored else sympy.Integer(1)
        return fm.Definition(
            likelihood=self,
            outputs=(a,) if known else (a, kappa),
            targets=(y, delta) if self.censored else (y,),
            nll=w + event * (sympy.log(y) - z - (sympy.log(k) if known else kappa)),
            abbreviations=(*shape, standard, exponential(w, z)),
            moments=moments,
            # the information of complete durations; what censored rows have instead is in a note
            expect=lambda entry: fm.mean_by_moments(entry.subs(delta, 1), moments, {y, z, w}),
            constants={} if self.shape is None else {k: self.shape},
            read=(lambda row: row.reshape(-1).tolist()) if self.censored else fm.one_number,
            example=((0.4,) if known else (0.4, 0.3), [2.0, 1.0] if self.censored else 2.0),
            convexity=convexity,
            source="J. F. Lawless (2003), Statistical Models and Methods for Lifetime Data, 2nd ed., section 5.2.",
            notes=(_CENSORED,) if self.censored else (),
            target_words="a time y, and δ = 1 for an event, 0 if right-censored" if self.censored else "a time y",
        )


# zeta(n) (2^n - 2) / n with alternating signs, n = 2, 3, ...: the next term is below 1e-16 of the first for a < 1/64
_ZETA = (
    *(1.6449340668482264, 1.2020569031595943, 1.0823232337111382, 1.03692775514337, 1.0173430619844491),
    *(1.0083492773819228, 1.0040773561979443, 1.0020083928260822, 1.000994575127818, 1.000494188604119),
)
_DOUBLING = tuple((-1) ** n * zeta * (2**n - 2) / n for n, zeta in enumerate(_ZETA, 2))


_CENSORED = (
    "This is the information of a complete duration: that of a censored one would need the censoring times of all "
    "rows. At given targets the library takes the predictable variation of the score up to the observed time instead, "
    "w [[k², -k z], [-k z, 1 + z²]], whose mean is the Fisher information under independent censoring."
)
