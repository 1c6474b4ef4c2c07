r"""The ordinal likelihood: ordered levels by cumulative probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._closed_form import ClosedForm
from raphson.likelihoods._command import Command
from raphson.likelihoods._extended import ConcordanceTerm, partition_mean
from raphson.likelihoods._likelihood import Likelihood
from raphson.likelihoods._parameters import product
from raphson.likelihoods._special._binary_links import BINARY_LINKS
from raphson.likelihoods._special._cumulative_links import LINKS, CumulativeLink, Interval
from raphson.likelihoods._special._softmax import one_hot_variance
from raphson.likelihoods._support import COUNT, Support
from raphson.likelihoods._target_distribution import ClassLabels, TargetDistribution, to_array
from raphson.likelihoods._targets import refuse_outside
from raphson.linalg import Dense, DiagonalPlusLowRank, Matrix, where_float64

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition, Expr


class _Parts(NamedTuple):
    f: Tensor
    level: Tensor  # (..., 1)
    possible: Tensor  # whether outputs and target are, (...,)
    at: Interval  # of the level


@dataclass(frozen=True, eq=False)
class Ordinal(ClosedForm[_Parts]):
    r"""One of J ordered levels 0 .. J - 1, with its J - 1 cumulative predictors as outputs.

    .. math::
        P(Y \le k) = F(\eta_k), \quad k = 0, \dots, J - 2, \qquad
        \ell(\eta, y) = -\log\left(F(\eta_y) - F(\eta_{y - 1})\right),

    with :math:`\eta_{-1} = -\infty`, :math:`\eta_{J - 1} = \infty` and F the distribution function of the link:
    logistic (proportional odds), normal, or :math:`1 - e^{-e^\eta}` (proportional hazards). The outputs must
    increase; elsewhere ``nll`` is infinite. A larger predictor makes low levels likelier: the proportional-odds
    model of R's ``polr`` and statsmodels' ``OrderedModel`` is :math:`\eta_k = \theta_k - x^\top\beta`.

    The densities of all three links are log-concave, so that the loss is convex where the outputs increase
    (Pratt 1981). A target touches the two outputs at its sides: its Hessian is :math:`z\,(e_y - e_{y-1})
    (e_y - e_{y-1})^\top` plus a non-negative diagonal, :math:`z = F'(\eta_y) F'(\eta_{y-1}) / p_y^2`. The Fisher
    information is tridiagonal, with :math:`F'(\eta_k)^2 (1 / p_k + 1 / p_{k+1})` on the diagonal and
    :math:`-F'(\eta_k) F'(\eta_{k+1}) / p_{k+1}` beside it.

    Shapes: outputs ``(..., J - 1)``; targets ``(...,)`` or ``(..., 1)``, whole numbers of any type. ``mean`` is
    the level probabilities ``(..., J)``, the mean of the one-hot level.

    Args:
        n_levels: J, at least 2. A level that no target has is allowed.
        link: ``"logit"``, ``"probit"`` or ``"cloglog"``.

    Raises:
        InputError: ``n_levels`` or ``link`` is not one of those.

    References:
        P. McCullagh (1980), Regression models for ordinal data, J. R. Statist. Soc. B 42, 109-142; J. W. Pratt
        (1981), Concavity of the log likelihood, J. Amer. Statist. Assoc. 76, 103-106.

    Examples:
        Cumulative odds of 1/2 and 2 make three levels of probability 1/3.

        >>> import math, torch
        >>> from raphson.likelihoods import Ordinal
        >>> f = torch.tensor([[-math.log(2), math.log(2)]], dtype=torch.float64)
        >>> Ordinal(3).mean(f)
        tensor([[0.3333, 0.3333, 0.3333]], dtype=torch.float64)
        >>> Ordinal(3).gradient(f, torch.tensor([1]))
        tensor([[ 0.6667, -0.6667]], dtype=torch.float64)
    """

    n_levels: int
    link: str = "logit"

    link_names = tuple(LINKS)

    concave = True
    commands = tuple(
        Command(name, target="ordered", count="n_levels", arguments={"link": link})
        for name, link in (("ordinal", "logit"), ("ordinal-cloglog", "cloglog"), ("ordinal-probit", "probit"))
    )

    def __post_init__(self) -> None:
        if isinstance(self.n_levels, bool) or not isinstance(self.n_levels, int) or self.n_levels < 2:
            raise InputError(f"n_levels is {self.n_levels!r}, but an ordinal response has at least 2 levels.")
        if self.link not in LINKS:
            raise InputError(f"The link is {self.link!r}, but the cumulative links are {', '.join(LINKS)}.")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return three levels with each link."""
        return tuple(cls(3, link) for link in LINKS)

    def default_columns(self, n_outputs: int) -> tuple[Tensor, Tensor]:
        """Return parallel slopes, ``logit P(Y <= k) = theta_k - x' beta``: a larger coefficient means higher levels."""
        return torch.eye(n_outputs, dtype=torch.float64), -torch.ones(n_outputs, 1, dtype=torch.float64)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The cut between each two neighboring levels, as ``"0|1"``."""
        return tuple(f"{k}|{k + 1}" for k in range(self.n_levels - 1))

    def n_outputs(self, y: Tensor) -> int:
        """Return ``J - 1``, whatever levels are among the targets."""
        return self.n_levels - 1

    def check_outputs(self, f: Tensor) -> None:
        """Raise ``InputError`` for the first output that is not finite, or not above the one before it, by row."""
        self._check_width(f.shape[-1])
        Likelihood.check_outputs(self, f)
        bad = f[..., 1:] <= f[..., :-1]
        if bool(bad.any()):
            *place, k = torch.nonzero(bad)[0].tolist()
            where = f"row {place[0]}" if place else "the only row"
            first, second = (f[tuple(place)][i].item() for i in (k, k + 1))
            names = self.parameters
            raise InputError(
                f"The cumulative predictors in {where} are out of order: '{names[k]}' is {first:g} and "
                f"'{names[k + 1]}' is {second:g}, but each must exceed the one before it, or a level would have a "
                "negative probability. Use one common slope for all cuts, or other starting values."
            )

    def concordance_terms(self, f: NDArray[np.float64], y: Tensor) -> tuple[ConcordanceTerm, ...]:
        r"""Return the three terms of a level between two outputs a < b of logits, none for another link.

        :math:`-\log(\sigma(b) - \sigma(a)) = \log(1 + e^{-b}) + \log(1 + e^a) - \log(1 - e^{-(b - a)})`.
        """
        if self.link != "logit":
            return ()
        level, rows = y.reshape(-1).long().cpu().numpy(), np.arange(len(f))
        upper, lower = np.zeros_like(f), np.zeros_like(f)
        has_upper, has_lower = level < self.n_levels - 1, level > 0
        upper[rows[has_upper], level[has_upper]] = 1.0
        lower[rows[has_lower], level[has_lower] - 1] = 1.0
        both = has_upper & has_lower
        gap = np.full(len(f), np.inf)
        gap[both] = ((upper - lower) * f).sum(-1)[both]
        nowhere = np.full(len(f), np.inf)
        between = (upper - lower) * both[:, None]
        return (
            ConcordanceTerm(upper, 1.0, nowhere),
            ConcordanceTerm(lower, 1.0, nowhere),
            ConcordanceTerm(between, 1.0, gap),
        )

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        r"""Return :math:`-\sigma(-b) - k` and :math:`\sigma(a) + k` with :math:`k = 1 / (e^{b - a} - 1)`, of logits."""
        if self.link != "logit":
            return None
        level = y.reshape(-1).long().cpu().numpy()
        found = np.zeros_like(f)
        for i in range(f.shape[-1]):
            at, after = level == i, level == i + 1
            found[at, i] -= partition_mean("logistic", -f[at, i])
            found[after, i] += partition_mean("logistic", f[after, i])
            if i:
                share = 1 / np.expm1(f[at, i] - f[at, i - 1])
                found[at, i] -= share
                found[at, i - 1] += share
        return found

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the sums of the absolute entries of the rows of the Hessian."""
        return self.hessian(f, y).to_dense().abs().sum(-1)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Dense:
        """Return the Fisher information, tridiagonal: the sum over all levels."""
        lower, upper = self._scores(f)
        beside = upper[..., 1:] * lower[..., :-1]
        diagonal = torch.diag_embed(upper.square() + lower.square())
        return Dense(diagonal + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1))

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> Matrix:
        """Return the scores of all levels by the roots of their probabilities."""
        lower, upper = self._scores(f)
        at_level = torch.nn.functional.pad(torch.diag_embed(upper), (0, 1))
        return Matrix(at_level + torch.nn.functional.pad(torch.diag_embed(lower), (1, 0)))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw levels from 0 to J - 1, ``(...,)`` integers: how many outputs a draw from F exceeds."""
        uniform = torch.rand(f.shape[:-1], dtype=f.dtype, device=f.device, generator=generator)
        return (self._link.quantile(uniform).unsqueeze(-1) > f).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        """Return the level probabilities, ``(..., J)``; nan where the outputs do not increase."""
        return self._at_all(f).log_p.exp()

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return the distribution of levels, ``(...,)``."""
        level, _ = self._level(f, y)
        return ClassLabels(to_array(self._at_all(f).log_p), level.squeeze(-1).cpu().numpy())

    def variance(self, f: Tensor) -> Tensor:
        """Return ``p (1 - p)``, ``(..., J)``, the variances of the entries of the one-hot level."""
        return one_hot_variance(self.mean(f))

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first level that is not a whole number from 0 to J - 1, or unless C is J - 1."""
        self._check_width(n_outputs)
        outside = ~self.support.contains(y)
        refuse_outside(outside, y, self.support.description)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the quantiles of the cumulative shares of the levels, half a target added to each: increasing."""
        self._check_width(n_outputs)
        level = where_float64(y).reshape(-1).long()
        one = torch.ones(len(level), dtype=torch.float64, device=level.device)
        w = one if weights is None else weights.reshape(-1).to(one)
        # the scale of the weights must not matter
        share = w / w.mean().clamp_min(torch.finfo(torch.float64).tiny) if len(w) else w
        counts = torch.full((self.n_levels,), 0.5, dtype=torch.float64, device=level.device).index_add_(0, level, share)
        return self._link.quantile((counts.cumsum(0) / counts.sum())[:-1])

    @property
    def _link(self) -> CumulativeLink:
        return LINKS[self.link]

    @property
    def support(self) -> Support:  # type: ignore[override]
        """The levels, counted from 0."""
        top = self.n_levels - 1
        return Support(f"an integer from 0 to {top}", lambda y: COUNT.contains(y) & (y <= top))

    def _check_width(self, n_outputs: int) -> None:
        if n_outputs != self.n_levels - 1:
            raise InputError(
                f"The model has {n_outputs} outputs, but Ordinal({self.n_levels}) needs {self.n_levels - 1}: one for "
                "the cut between each two neighboring levels."
            )

    def _parts(self, f: Tensor, y: Tensor, *, once: bool = False) -> _Parts:
        level, possible = self._level(f, y)
        return _Parts(f, level, possible, self._at_level(f, level))

    def _value(self, p: _Parts) -> Tensor:
        log_p = p.at.log_p.squeeze(-1)
        return torch.where(p.possible & ~torch.isnan(log_p), -log_p, math.inf)

    def _gradient(self, p: _Parts) -> Tensor:
        return _beside(p.level, p.at.lower, -p.at.upper, p.f.shape[-1])

    def _observed(self, p: _Parts) -> DiagonalPlusLowRank:
        at, n_outputs = p.at, p.f.shape[-1]
        # a log-concave density: both entries of the diagonal are differences that are not negative
        # either may be infinite where the other is zero
        low = product(at.lower, at.lower_second - at.upper).clamp_min(0)
        high = product(at.upper, at.upper_second - at.lower).clamp_min(0)
        none = (at.lower == 0) | (at.upper == 0)
        root = torch.where(none, 0.0, at.lower.sqrt() * at.upper.sqrt())
        difference = _beside(p.level, -root, root, n_outputs)
        return DiagonalPlusLowRank(_beside(p.level, low, high, n_outputs), difference.unsqueeze(-1))

    def _expected(self, p: _Parts) -> Dense:
        return self.fisher(p.f)

    def definition(self) -> Definition:
        """Return the formulas of three levels with two cumulative predictors; t marks the level."""
        from raphson.likelihoods.formulas import Abbreviation, Convexity, Definition, sympy

        levels, cuts = 3, 2
        eta = sympy.symbols(f"eta_:{cuts}", real=True)
        t = sympy.symbols(f"t_:{levels}", real=True)
        p, f, h = (sympy.symbols(f"{name}_:{levels}", positive=name == "p", real=True) for name in "pfh")
        # distribution function, density and derivative of the density
        values = [_symbolic_link(self.link, x) for x in eta]
        cdf, density, change = (sympy.Function(name) for name in ("F", "F'", "F''"))
        pieces = [Abbreviation(f[j], values[j][1], {eta[j]: h[j]}, shown=density(eta[j])) for j in range(cuts)]
        pieces += [Abbreviation(h[j], values[j][2], {}, shown=change(eta[j])) for j in range(cuts)]
        for k in range(levels):
            upper = values[k][0] if k < cuts else sympy.Integer(1)
            lower = values[k - 1][0] if k else sympy.Integer(0)
            rates = {eta[k]: f[k]} if k < cuts else {}
            if k:
                rates[eta[k - 1]] = -f[k - 1]
            above = cdf(eta[k]) if k < cuts else sympy.Integer(1)
            pieces.append(Abbreviation(p[k], upper - lower, rates, shown=above - cdf(eta[k - 1]) if k else above))

        def arrange(entry: Expr) -> Expr:
            groups = sympy.collect(sympy.expand(entry), [*f, *h], evaluate=False)
            return sympy.Add(*(sympy.factor_terms(part) * key for key, part in groups.items()))

        return Definition(
            likelihood=replace(self, n_levels=levels),
            outputs=eta,
            targets=t,
            nll=-sympy.Add(*(a * sympy.log(b) for a, b in zip(t, p, strict=True))),
            abbreviations=tuple(pieces),
            expect=lambda entry: arrange(entry.subs(dict(zip(t, p, strict=True)))),
            read=lambda y: [float(int(y) == k) for k in range(levels)],
            example=((-0.5, 0.9), 1),
            convexity=Convexity(
                "Convex wherever the outputs are increasing, because F and 1 - F are log-concave.", sympy.true
            ),
            source="P. McCullagh (1980), J. R. Statist. Soc. B 42, 109-142.",
            target_words="t_k = 1 for the level of the example, 0 for the others",
            notes=(
                "The outputs must increase. " + _LINK_WORDS[self.link] + ".",
                "Written out for 3 levels. For K levels both matrices are tridiagonal, with f_k = F′(η_k), h_k = "
                "F″(η_k): observed entries f_k² (t_k/p_k² + t_{k+1}/p_{k+1}²) + h_k (t_{k+1}/p_{k+1} - t_k/p_k) and "
                "-f_k f_{k+1} t_{k+1}/p_{k+1}²; expected entries f_k² (1/p_k + 1/p_{k+1}) and -f_k f_{k+1}/p_{k+1}.",
            ),
            arrange=arrange,
            identities={sympy.Add(*p): sympy.Integer(1)},
            joint=True,
        )

    def _level(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level of each row, ``(..., 1)``, and whether outputs and target are possible, ``(...,)``."""
        self._check_width(f.shape[-1])
        if y.shape == (*f.shape[:-1], 1):
            y = y.squeeze(-1)
        if y.shape != f.shape[:-1]:
            raise InputError(
                f"The targets have shape {tuple(y.shape)} but the outputs have shape {tuple(f.shape)}: give one level "
                "per row of outputs."
            )
        known = self.support.contains(y)
        increasing = (f[..., 1:] > f[..., :-1]).all(-1)
        return torch.where(known, y, 0).long().unsqueeze(-1), known & increasing

    def _at_level(self, f: Tensor, level: Tensor) -> Interval:
        """Return the interval of each row's level, its parts ``(..., 1)``."""
        last = self.n_levels - 1
        a = torch.where(level == 0, -math.inf, f.gather(-1, (level - 1).clamp(min=0)))
        b = torch.where(level == last, math.inf, f.gather(-1, level.clamp(max=last - 1)))
        # outside the domain the value is infinite; derivatives are those of some interval, so that none is nan
        return self._link.interval(a, torch.where(b > a, b, a + 1))

    def _at_all(self, f: Tensor) -> Interval:
        """Return the intervals of all levels, ``(..., J)``."""
        self._check_width(f.shape[-1])
        end = torch.full_like(f[..., :1], math.inf)
        return self._link.interval(torch.cat((-end, f), -1), torch.cat((f, end), -1))

    def _scores(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each output, its scores at the level above and below it by their root probabilities."""
        at = self._at_all(f)
        root = (0.5 * at.log_p).exp()
        # a level of no probability counts nothing, however steep its logarithm
        lower, upper = (torch.where(root > 0, root * ratio, 0.0) for ratio in (at.lower, at.upper))
        return lower[..., 1:], -upper[..., :-1]


def _symbolic_link(name: str, x: Expr) -> tuple[Expr, Expr, Expr]:
    """Return the distribution function, the density and its derivative."""
    from raphson.likelihoods.formulas import as_function, sympy

    share, helper = sympy.Dummy(), sympy.Dummy()
    cdf = as_function(BINARY_LINKS[name].function, x, share, helper)[-1].meaning
    return cdf, sympy.diff(cdf, x), sympy.diff(cdf, x, 2)


_LINK_WORDS = {
    "logit": "F(η) = 1/(1 + exp(-η)), F′ = F(1 - F), F″ = F′(1 - 2F)",
    "probit": "F = Φ, the normal distribution function; F′ = φ, the density; F″ = -η φ(η)",
    "cloglog": "F(η) = 1 - exp(-exp(η)), F′ = exp(η - exp(η)), F″ = F′(1 - exp(η))",
}


def _beside(level: Tensor, low: Tensor, high: Tensor, n_outputs: int) -> Tensor:
    """Return ``(..., J - 1)`` with one number in the output below and one in that above the level, zero elsewhere."""
    # two columns more take what belongs to the ends; outputs vary slowest, as a linear model lays them out
    index = torch.cat((level, level + 1), -1).movedim(-1, 0)
    values = torch.cat((low, high), -1).movedim(-1, 0)
    padded = values.new_zeros(n_outputs + 2, *values.shape[1:]).scatter(0, index, values)
    return padded[1:-1].movedim(0, -1)
