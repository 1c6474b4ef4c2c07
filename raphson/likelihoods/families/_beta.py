r"""The beta likelihood of proportions, by mean and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._parameters import blocks, constant, interleaved, lower_blocks, product, split, total
from raphson.likelihoods._special._binet import HALF_LOG_TWO_PI, binet, log_remainder
from raphson.likelihoods._special._binet_together import binet_together
from raphson.likelihoods._special._sampling import log_gamma_variate
from raphson.likelihoods._special._tracked import can_look
from raphson.likelihoods._support import OPEN_UNIT_INTERVAL
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import columns, like_outputs, refuse_outside, start_rows, weighted_mean
from raphson.linalg import EqualBlocks, EqualBlocksMatrix

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition, Expr


_MODERATE = 1024.0
"""Precisions up to which the plain difference of two logarithms, times them, keeps twelve digits."""


class _Model(NamedTuple):
    """The two parameters, and the shapes ``a = mean * precision`` and ``b = (1 - mean) * precision``."""

    mean: Tensor
    complement: Tensor
    log_mean: Tensor
    log_complement: Tensor
    log_precision: Tensor
    precision: Tensor
    spread: Tensor  # precision times mean (1 - mean), where one may underflow and the other overflow
    # a and b, (2, ..., M), and their sum; away from zero, where all of their functions are flat
    shapes: Tensor
    sum: Tensor
    moderate: bool  # whether no precision is so large that what cancels would be seen

    @property
    def times(self) -> Callable[[Tensor, Tensor], Tensor]:
        """How to multiply by a precision."""
        return torch.mul if self.moderate else product


class _Gammas(NamedTuple):
    """Binet's function, its first or its second derivative at a, b and their sum."""

    at_a: Tensor
    at_b: Tensor
    at_sum: Tensor


class _Data(NamedTuple):
    """How far the mean is from the target."""

    log_ratio: Tensor  # log(mean / y) - log((1 - mean) / (1 - y)), the difference of the logits
    divergence: Tensor  # Kullback-Leibler, from a label of probability y to one of probability mean
    log_variance: Tensor  # log y + log(1 - y)


@dataclass(frozen=True, eq=False)
class Beta(Likelihood):
    r"""Independent proportions strictly between 0 and 1, with the logit of the mean and the log of the precision.

    With mean :math:`\mu = 1 / (1 + e^{-\eta})`, precision :math:`\phi = e^\lambda`, :math:`a = \mu\phi` and
    :math:`b = (1 - \mu)\phi`,

    .. math::
        \ell = \log\Gamma(a) + \log\Gamma(b) - \log\Gamma(\phi) - (a - 1)\log y - (b - 1)\log(1 - y).

    The variance is :math:`\mu(1 - \mu) / (1 + \phi)`. With :math:`s(x) = x^2\psi'(x) - x`, which lies between
    1/2 and 1, the Fisher information per response is

    .. math::
        \begin{pmatrix}
        \phi\mu(1-\mu) + (1-\mu)^2 s(a) + \mu^2 s(b) & (1-\mu) s(a) - \mu s(b) \\
        (1-\mu) s(a) - \mu s(b) & s(a) + s(b) - s(\phi)
        \end{pmatrix},

    whose cross term is zero at mean 1/2 only. The observed Hessian adds
    :math:`(1 - 2\mu)\,\ell_\eta,\ \ell_\eta,\ \ell_\lambda`. The loss is convex in :math:`(a, b)`, but not in
    these outputs: the observed Hessian is indefinite far from the data.

    Shapes: outputs ``(..., 2 M)``, the parameters of a response side by side; targets ``(..., M)``, or
    ``(...,)`` where ``M = 1``.

    References:
        S. Ferrari and F. Cribari-Neto (2004), Beta regression for modelling rates and proportions, J. Appl.
        Statist. 31, 799-815; A. B. Simas, W. Barreto-Souza and A. V. Rocha (2010), Comput. Statist. Data Anal.
        54, 348-366, for a modeled precision.

    Examples:
        Mean 1/2 and precision 2 is the uniform distribution: density 1.

        >>> import math, torch
        >>> from raphson.likelihoods import Beta
        >>> f, y = torch.tensor([[0.0, math.log(2.0)]], dtype=torch.float64), torch.tensor([0.3])
        >>> bool(Beta().nll(f, y).abs() < 1e-15)
        True
        >>> Beta().mean(f), Beta().variance(f) * 12
        (tensor([[0.5000]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """

    support = OPEN_UNIT_INTERVAL
    commands = (Command("beta"),)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of the mean and the log of the precision of each response."""
        return ("logit_mean", "log_precision")

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over responses, to full accuracy for any precision."""
        model = _model(f)
        at_a, at_b = binet(model.shapes)
        remainders = _Gammas(at_a, at_b, binet(model.sum))
        return total(_value(model, _data(model, f, y), remainders), f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., 2 M)``."""
        return self.derivatives(f, y, None).gradient

    def hessian(self, f: Tensor, y: Tensor) -> EqualBlocks:
        """Return the observed Hessian, one 2 x 2 block per response."""
        curvature = self.derivatives(f, y).hessian
        assert isinstance(curvature, EqualBlocks)
        return curvature

    def fisher(self, f: Tensor, y: Tensor | None = None) -> EqualBlocks:
        """Return the Fisher information, one 2 x 2 block per response."""
        model = _model(f)
        return blocks(*_information(model, _gammas(model, second=True)[2]))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> EqualBlocksMatrix:
        """Return the lower triangular factor of each block of the Fisher information."""
        model = _model(f)
        a, b, c = _information(model, _gammas(model, second=True)[2])
        first = a.sqrt()
        off = b / first
        return lower_blocks(first, off, (c - off.square()).clamp_min(0).sqrt())

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the gamma functions."""
        model = _model(f, once=True)
        times = model.times
        data = _data(model, f, y)
        remainders, first, second = _gammas(model, second=hessian is not None)
        # x (psi(x) - log x), between -1 and -1/2
        at_a, at_b, at_sum = (value - 0.5 for value in first)
        mean, complement = model.mean, model.complement
        by_mean = times(data.log_ratio, model.spread) + complement * at_a - mean * at_b
        by_precision = times(data.divergence, model.precision) + at_a + at_b - at_sum
        curvature = None
        if second is not None:
            a, b, c = _information(model, second)
            if hessian == "observed":
                # finite: where both are infinite the loss is
                turned = times(complement - mean, by_mean).clamp(
                    max=torch.finfo(f.dtype).max, min=torch.finfo(f.dtype).min
                )
                a, b, c = a + turned, b + by_mean, c + by_precision
            curvature = blocks(*(entry.expand_as(by_mean) for entry in (a, b, c)))
        return Derivatives(total(_value(model, data, remainders), f), interleaved(by_mean, by_precision), curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw proportions strictly between 0 and 1, ``(..., M)``, from the two gamma variates whose share they are."""
        a, b = _model(f.detach()).shapes
        share = torch.sigmoid(log_gamma_variate(a, generator) - log_gamma_variate(b, generator))
        limits = torch.finfo(f.dtype)
        return share.clamp(limits.tiny, 1 - limits.eps / 2)

    def mean(self, f: Tensor) -> Tensor:
        """Return the mean of each response, ``(..., M)``."""
        return torch.sigmoid(split(f, None)[0])

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return beta distributions, ``(..., M)``.

        The deviance takes the target for its best mean, which is so for a large precision (Ferrari and
        Cribari-Neto 2004, Beta regression for modelling rates and proportions, J. Appl. Statist. 31, section 4).
        """
        from scipy import stats

        a, b = (to_array(shape) for shape in _model(f).shapes)
        value = to_array(columns(y, f.shape[-1], 2))
        return Univariate(stats.beta(a, b), value, stats.beta((a + b) * value, (a + b) * (1 - value)))

    def variance(self, f: Tensor) -> Tensor:
        """Return ``mean (1 - mean) / (1 + precision)``, ``(..., M)``."""
        logit, log_precision = split(f, None)
        return torch.sigmoid(logit) * torch.sigmoid(-logit) * torch.sigmoid(-log_precision)

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first proportion that is not strictly between 0 and 1."""
        values = columns(y, n_outputs, 2)
        description = self.support.description
        if bool(((values == 0) | (values == 1)).any()):
            description += (
                " (a beta distribution never gives 0 or 1 exactly: move all n targets inward by "
                "(y (n - 1) + 0.5) / n, or use Binomial if they are shares of known counts)"
            )
        refuse_outside(~self.support.contains(values), values, description)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logit of the mean and the log of ``mean (1 - mean) / variance - 1``, 0.1 at least."""
        rows = start_rows(y, n_outputs, 2)
        mean = weighted_mean(rows, weights)
        inside = mean.clamp(torch.finfo(mean.dtype).tiny, 1 - 0.5 * torch.finfo(mean.dtype).eps)
        return interleaved(inside.log() - torch.log1p(-inside), _precision(rows, inside, 1 - inside, weights).log())

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the moment estimate of the precision ``(M,)``, of 0.1 at least."""
        mean = torch.sigmoid(first)
        return _precision(like_outputs(mean, y), mean, torch.sigmoid(-first), weights).log()

    def definition(self) -> Definition:
        """Return the formulas; the scores of the two shapes have names of their own."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import exponential, factored, grouped, positive, real, sympy

        eta, s, u, v = real("eta s S T")
        y, mu, q, phi, a, b = positive("y mu q phi a b")
        # S is the score of the mean of log(y/(1 - y)), T that of b: their means are zero.
        score_a = sympy.digamma(a) - sympy.digamma(phi)
        score_b = sympy.digamma(b) - sympy.digamma(phi)
        log_odds = sympy.log(y / (1 - y))
        trigamma = {x: sympy.trigamma(x) for x in (a, b, phi)}
        special = [u, v, sympy.digamma(phi), *trigamma.values()]

        def shortest(part: Expr) -> Expr:
            forms = (part, part.subs(q, 1 - mu), part.subs(mu, 1 - q))
            return min(map(factored, forms), key=lambda form: form.count_ops())

        def rewrite(entry: Expr) -> Expr:
            entry = sympy.expand(entry.subs({sympy.log(y): score_a - u - v, sympy.log(1 - y): score_b - v}))
            parts = sympy.collect(entry, special, evaluate=False)
            return sympy.Add(*(shortest(part) * key for key, part in parts.items()))

        gammas = sympy.loggamma(a) + sympy.loggamma(b) - sympy.loggamma(phi)
        return fm.Definition(
            likelihood=self,
            outputs=(eta, s),
            targets=(y,),
            nll=gammas - (a - 1) * sympy.log(y) - (b - 1) * sympy.log(1 - y),
            abbreviations=(
                fm.Abbreviation(mu, 1 / (1 + sympy.exp(-eta)), {eta: mu * q}),
                fm.Abbreviation(q, 1 - mu, {eta: -mu * q}),
                exponential(phi, s),
                fm.Abbreviation(a, mu * phi),
                fm.Abbreviation(b, q * phi),
                fm.Abbreviation(u, sympy.digamma(a) - sympy.digamma(b) - log_odds, {a: trigamma[a], b: -trigamma[b]}),
                fm.Abbreviation(v, score_b - sympy.log(1 - y), {b: trigamma[b], phi: -trigamma[phi]}),
            ),
            moments={u: sympy.Integer(0), v: sympy.Integer(0)},
            example=((0.4, 1.2), 0.35),
            convexity=fm.Convexity(
                "Not convex everywhere, not even in the logit of the mean alone: S grows without bound as y approaches "
                "0 or 1, and its terms then outweigh the others. (It is convex in a and b.) The Fisher information is "
                "positive definite everywhere.",
            ),
            source="S. Ferrari and F. Cribari-Neto (2004), J. Applied Statistics 31, 799-815.",
            target_words="a number strictly between 0 and 1 with mean μ and variance μ(1 - μ)/(1 + φ)",
            rewrite=rewrite,
            arrange=lambda entry: grouped(entry, [u, v]),
        )


def _precision(y: Tensor, mean: Tensor, rest: Tensor, weights: Tensor | None) -> Tensor:
    """Return the precision of targets ``(N, M)`` about means, as if they differed by a millionth of these at least.

    That is of the distance to the nearer end of the interval: shares of 1e-100 have precisions above 1e100.
    """
    least = 1e-12 * torch.minimum(mean, rest) / torch.maximum(mean, rest)
    # of squares of small shares nothing is left
    share = torch.maximum((y - mean) / mean * ((y - mean) / rest), least)
    return (weighted_mean(share.expand_as(y), weights).reciprocal() - 1).clamp_min(0.1)


def _model(f: Tensor, *, once: bool = False) -> _Model:
    logit, log_precision = split(f, None)
    if once:
        logit, log_precision = constant(logit), constant(log_precision)
    mean, complement, precision = torch.sigmoid(logit), torch.sigmoid(-logit), log_precision.exp()
    log_mean, log_complement = logsigmoid(logit), logsigmoid(-logit)
    least = _least(f)
    moderate = once and can_look(precision) and float(precision.max()) <= _MODERATE
    if moderate:
        shapes = torch.stack((mean * precision, complement * precision))
        spread = shapes[0] * complement
    else:
        log_a = log_mean + log_precision
        shapes = torch.stack((log_a, log_complement + log_precision)).exp()
        spread = (log_a + log_complement).exp()
    logs, sizes = (log_mean, log_complement, log_precision), (shapes.clamp_min(least), precision.clamp_min(least))
    return _Model(mean, complement, *logs, precision, spread, *sizes, moderate)


def _least(like: Tensor) -> float:
    """Return a number below which x psi(x) and x^2 psi'(x) have their limits, and above which no square underflows."""
    return float(torch.finfo(like.dtype).tiny ** 0.4)


def _gammas(model: _Model, *, second: bool) -> tuple[_Gammas, _Gammas, _Gammas | None]:
    """Return Binet's function and its derivatives at the shapes; at their sum but once where it is one number."""
    flat = torch.cat((model.shapes.flatten(), model.sum.flatten()))
    value, first, curvature = (
        None if found is None else _at(found, model) for found in binet_together(flat, second=second)
    )
    assert value is not None and first is not None
    return value, first, curvature


def _at(values: Tensor, model: _Model) -> _Gammas:
    of_shapes, of_sum = torch.split(values, [model.shapes.numel(), model.sum.numel()])
    at_a, at_b = of_shapes.view_as(model.shapes)
    return _Gammas(at_a, at_b, of_sum.view_as(model.sum))


def _data(model: _Model, f: Tensor, y: Tensor) -> _Data:
    mean, complement = model.mean, model.complement
    # 1 - y in the type of y: a target near 1 keeps its distance from 1 though the outputs are single precision
    wide = torch.promote_types(mean.dtype, y.dtype)
    y = like_outputs(f[..., ::2].to(wide), y)
    log_y, log_rest = y.log().to(mean), torch.log1p(-y).to(mean)
    first, second = model.log_mean - log_y, model.log_complement - log_rest
    if model.moderate:
        return _Data(first - second, mean * first + complement * second, log_y + log_rest)
    y, rest, above_half = y.to(mean), (1 - y).to(mean), (y - 0.5).to(mean)
    # one excess for both ratios: the divergence is of second order in it, and two roundings would be of first
    logit = f[..., ::2]
    # about 1/2 the logit has digits of the mean that the rounded mean has not
    excess = torch.where(mean < 0.5, mean - y, rest - complement)
    excess = torch.where(logit.abs() < 1, 0.5 * torch.tanh(0.5 * logit) - above_half, excess)
    near = (excess.abs() < 0.5 * y) & (excess.abs() < 0.5 * rest)
    step = torch.where(near, excess, 0.0)
    up, down = step / y, step / rest
    # log(1 + up) = up - bent_up and log(1 - down) = -down - bent_down; in the divergence terms of first order cancel
    bent_up = up.square() * log_remainder(-up, 1 + up)
    bent_down = down.square() * log_remainder(down, 1 - down)
    divergence = step * (up + down) - mean * bent_up - complement * bent_down
    first, second = torch.where(near, up - bent_up, first), torch.where(near, -down - bent_down, second)
    far = mean * first + complement * second
    return _Data(first - second, torch.where(near, divergence, far), log_y + log_rest)


def _value(model: _Model, data: _Data, remainders: _Gammas) -> Tensor:
    """Return ``l`` with the large parts of the gamma functions taken together: a divergence of proportions."""
    precision = model.log_precision
    least = math.log(_least(precision))
    log_a, log_b = (precision + model.log_mean).clamp_min(least), (precision + model.log_complement).clamp_min(least)
    logarithms = 0.5 * (log_a + log_b - precision.clamp_min(least)) - precision - model.log_mean - model.log_complement
    of_gammas = remainders.at_a + remainders.at_b - remainders.at_sum + (logarithms + HALF_LOG_TWO_PI)
    return model.times(data.divergence, model.precision) + data.log_variance + of_gammas


def _information(model: _Model, second: _Gammas | None) -> tuple[Tensor, Tensor, Tensor]:
    assert second is not None
    mean, complement = model.mean, model.complement
    s_a, s_b, s_sum = (value + 0.5 for value in second)
    of_a, of_b = complement * s_a, mean * s_b
    return model.spread + complement * of_a + mean * of_b, of_a - of_b, s_a + s_b - s_sum
