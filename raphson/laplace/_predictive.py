r"""What a posterior predicts: outputs with their covariance, through the likelihood to the response."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.laplace._links import bridge, exact_gaussian, probit
from raphson.laplace._targets import normal_targets, predicted_targets
from raphson.likelihoods import COUNT, Likelihood, TargetDistribution
from raphson.network import squared_roots

Link = Literal["mixture", "probit", "bridge"]

_TOGETHER = 2**23
"""Entries of sampled outputs, or of sampled responses, that are made at a time."""

_RESPONSES = 4000
"""Responses of an example that an interval is read from: a 95 % limit is then known to 0.04 standard deviations."""


_FARTHEST_LINK = 0.1
"""Largest error of a probability by a link that is no average over samples."""

_FEWEST_CHECKED = 200
"""Samples by which such a probability is checked: they are within 0.04 of the integral (measured: 2 to 50 classes,
variances up to 100)."""

_HALVINGS = 40
"""How often a sample outside the domain is moved half the way to the mean."""


@dataclass(frozen=True, eq=False)
class Predictive:
    r"""The distribution of outputs and responses at some inputs, averaged over the parameters.

    With samples :math:`f_s` of the outputs the response has the density :math:`\frac1S \sum_s p(y \mid f_s)`, the mean
    of its means, and a variance in two parts: the mean of the variances (aleatoric) and the variance of the means
    (epistemic). For a Gaussian with a fixed scale both integrals are taken in closed form.

    Attributes:
        likelihood: The likelihood.
        output_mean: ``(N, ..., C)``.
        spread: The covariance of the outputs, or a square root of it.
        is_root: Which of the two.
        link: From outputs to responses.
        joint: Whether the covariance is that of all inputs together.
        noise: Standard normal numbers ``(S, C)`` that samples are made of, the same for all examples.
        outputs: Sampled outputs ``(S, N, ..., C)`` where these are given; None where they are made of the covariance.
    """

    likelihood: Likelihood
    output_mean: Tensor
    spread: Tensor
    is_root: bool
    link: Link
    joint: bool
    noise: Tensor
    outputs: Tensor | None = None

    def __repr__(self) -> str:
        n, c = self.output_mean.shape[0], self.output_mean.shape[-1]
        return f"<Predictive of {type(self.likelihood).__name__}: {n} rows, {c} outputs, link {self.link!r}>"

    @cached_property
    def output_covariance(self) -> Tensor:
        """``(N, ..., C, C)``; with ``joint=True`` of all outputs together, row-major, ``(N ... C, N ... C)``."""
        return squared_roots(self.spread) if self.is_root else self.spread

    @property
    def mean(self) -> Tensor:
        """The mean of the response: probabilities of classes ``(N, ..., K)``, or ``(N, ..., M)``.

        Infinite or nan, and so are the variances, where the response has none: a Student's t whose degrees of freedom
        may be one or fewer. ``interval`` and ``log_density`` hold all the same.
        """
        f = self._exact
        if f is not None:
            return f
        if self._shifted is not None:
            return self.likelihood.mean(self._shifted)
        return self._moments[0]

    @property
    def aleatoric(self) -> Tensor:
        """The mean of the response's variance, shaped like ``mean``: what better knowledge of parameters leaves."""
        return self._moments[2] if self._exact is None else self.likelihood.variance(self.output_mean)

    @property
    def epistemic(self) -> Tensor:
        """The variance of the response's mean, shaped like ``mean``: what comes from uncertain parameters."""
        if self._exact is None:
            return self._moments[1]
        return self._output_variance

    @property
    def variance(self) -> Tensor:
        """The variance of the response, aleatoric and epistemic together, shaped like ``mean``."""
        return self.aleatoric + self.epistemic

    def log_density(self, y: Tensor) -> Tensor:
        """Return the log density (or probability) of responses under the predictive distribution.

        Args:
            y: Responses, as for the likelihood.

        Returns:
            ``(N, ...)``; with ``joint=True`` one number for all together.

        Raises:
            InputError: Responses do not fit the likelihood, or are not one for each input.
        """
        f = self.output_mean
        y = torch.as_tensor(y).to(f.device)
        if y.ndim == 0 or len(y) != len(f):
            raise InputError(
                f"y has shape {tuple(y.shape)}, but responses of {len(f)} inputs are needed, one for each."
            )
        self.likelihood.check(y, f.shape[-1])
        if self._exact is not None:
            return exact_gaussian(self.likelihood, f, self.output_covariance, y, self.joint)
        if self._shifted is not None:
            value = -self.likelihood.nll(self._shifted, y)
            return value.sum() if self.joint else value

        def density(part: Tensor, rows: slice) -> Tensor:
            targets = y[rows]
            nll = self.likelihood.nll(part, targets.expand(len(part), *targets.shape))
            if self.joint:
                nll = nll.flatten(1).sum(1)
            return torch.logsumexp(-nll, 0, keepdim=self.joint) - math.log(len(part))

        value = torch.cat(self._over_samples(density))
        return value[0] if self.joint else value

    def distribution(self, y: Tensor) -> TargetDistribution:
        """Return targets beside the predictive distribution: what ``raphson.diagnose.residuals`` takes.

        Its tail probabilities are averages over the samples; those of targets that depend on each other (counts of
        several classes, multivariate normal ones) are at the mean outputs, and so are deviances.

        Args:
            y: Targets, as for the likelihood.

        Returns:
            The distribution of the targets.

        Raises:
            InputError: The predictions are joint.

        Examples:
            >>> import torch
            >>> import raphson as rp
            >>> from raphson.diagnose import residuals
            >>> x = torch.linspace(-1, 1, 20)[:, None]
            >>> post = rp.laplace(torch.nn.Linear(1, 1), rp.Gaussian(), (x, 2 * x), structure="dense")
            >>> residuals(post.predict(x).distribution(2 * x)).shape
            (20, 1)
        """
        if self.joint:
            raise InputError("Residuals are those of single rows: predict with joint=False.")
        y = y.to(self.output_mean.device)
        if self._shifted is not None:
            return self.likelihood.distribution(self._shifted, y)
        if self._exact is not None:
            return normal_targets(self.mean, self.variance, y)
        moments = self.mean, self.variance
        return predicted_targets(
            self.likelihood, y, self.output_mean, moments, self._over_samples, self._sampled_outputs
        )

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw responses.

        Args:
            n: How many for each input.
            generator: Source of randomness; None for torch's own.

        Returns:
            ``(n, N, ...)``, as the likelihood samples.
        """
        return self.likelihood.sample(self._sampled_outputs(n, generator), generator)

    def _sampled_outputs(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return outputs drawn from their distribution, ``(n, N, ..., C)``."""
        if self.outputs is not None:
            device = self.outputs.device
            places = torch.randint(len(self.outputs), (n,), generator=generator, device=device)
            return self.outputs[places]
        f = self.output_mean
        size = self._root.shape[-1]
        shape = (n, size) if self.joint else (n, *f.shape[:-1], size)
        noise = torch.randn(shape, generator=generator, dtype=f.dtype, device=f.device)
        if self.joint:
            moved = (noise @ self._root.mT).view(n, *f.shape)
        else:
            moved = (self._root @ noise.unsqueeze(-1)).squeeze(-1)
        return inside(self.likelihood, f, moved)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return limits between which a response lies with probability ``level``, as much outside on either side.

        For classes (probabilities as means) the limits are those of the probability under the posterior.

        Args:
            level: Between 0 and 1.

        Returns:
            Lower and upper limits, shaped like ``mean``; another level is an ``InputError``.
        """
        check_level(level)
        if self._exact is not None:
            width = self.variance.sqrt() * (math.sqrt(2) * torch.erfinv(self.variance.new_tensor(level)))
            return self.mean - width, self.mean + width
        low, high = torch.cat([quantiles(part, level) for part in self.draws()]).unbind(1)
        return low, high

    def draws(self, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Yield what intervals are read from, some inputs at a time: responses, or probabilities of classes.

        Args:
            generator: Source of randomness; None for a fixed one.

        Yields:
            ``(draws, n, ...)``, shaped like ``mean`` behind the first axis.
        """
        generator = generator or torch.Generator(self.output_mean.device).manual_seed(0)
        for part, _ in self._sampled(_RESPONSES):
            found = self.likelihood.mean(part)
            times = -(-_RESPONSES // len(part))
            responses = self.likelihood.sample(part.expand(times, *part.shape).flatten(0, 1), generator)
            if responses.shape[1:] == found.shape[1:] and not self._are_classes(responses):
                found = responses
            yield found.to(part.dtype)

    def _are_classes(self, responses: Tensor) -> bool:
        # counts of rare events are 0 and 1 as well
        return self.likelihood.support != COUNT and bool(((responses == 0) | (responses == 1)).all())

    @cached_property
    def _exact(self) -> Tensor | None:
        """The mean where the predictive density has a closed form: a Gaussian with outputs as means."""
        closed = self.outputs is None and self.link == "mixture" and exact_gaussian.applies(self.likelihood)
        return self.output_mean if closed else None

    @cached_property
    def _shifted(self) -> Tensor | None:
        """Outputs at which the likelihood gives the predictive probabilities, for a link that is not the mixture."""
        if self.link == "mixture":
            return None
        if self.link == "probit":
            spread = self.spread if self.is_root else self._marginal_covariance
            return probit(self.likelihood, self.output_mean, spread, self.is_root)
        return bridge(self.likelihood, self.output_mean, self._marginal_covariance)

    @cached_property
    def _marginal_covariance(self) -> Tensor:
        """Covariances of the outputs of each input, ``(N, ..., C, C)``."""
        if not self.joint:
            return self.output_covariance
        f = self.output_mean
        positions, c = f.shape[:-1].numel(), f.shape[-1]
        own = self.output_covariance.view(positions, c, positions, c).diagonal(dim1=0, dim2=2)
        return own.movedim(-1, 0).reshape(*f.shape, c)

    @property
    def _output_variance(self) -> Tensor:
        """Variances of the outputs, ``(N, ..., C)``."""
        return self.spread.square().sum(-1) if self.is_root else self._marginal_covariance.diagonal(dim1=-2, dim2=-1)

    @cached_property
    def _root(self) -> Tensor:
        """A square root of the covariance."""
        if self.is_root:
            return self.spread
        lower: Tensor
        lower, info = torch.linalg.cholesky_ex(self.output_covariance)
        if not bool(info.any()):
            return lower
        values, vectors = torch.linalg.eigh(self.output_covariance)
        # rounding leaves small negative ones where outputs move together
        root: Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        return root

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of means, variance of means and mean of variances over the samples."""

        def moments(part: Tensor, _: slice) -> Tensor:
            means = self.likelihood.mean(part)
            return torch.stack([means.mean(0), means.var(0, correction=0), self.likelihood.variance(part).mean(0)], 1)

        mean, epistemic, aleatoric = torch.cat(self._over_samples(moments)).unbind(1)
        return mean, epistemic, aleatoric

    def _over_samples(self, function: Callable[[Tensor, slice], Tensor]) -> list[Tensor]:
        """Return what a function makes of sampled outputs ``(S, n, ..., C)``, some examples at a time."""
        return [function(part, rows) for part, rows in self._sampled()]

    def _sampled(self, times: int = 1) -> Iterator[tuple[Tensor, slice]]:
        """Yield sampled outputs ``(S, n, ..., C)`` and their rows; ``times`` tensors of their size fit in memory."""
        f = self.output_mean
        samples = len(self.noise) if self.outputs is None else len(self.outputs)
        step = max(1, _TOGETHER // (max(samples, times) * f[0].numel()))
        if self.joint and self.outputs is None:
            moved = (self.noise @ self._root.mT).view(samples, *f.shape)
            yield inside(self.likelihood, f, moved), slice(None)
            return
        for start in range(0, len(f), step):
            rows = slice(start, start + step)
            if self.outputs is not None:
                yield self.outputs[:, rows], rows
            else:
                yield inside(self.likelihood, f[rows], (self._root[rows] @ self.noise.mT).movedim(-1, 0)), rows


def check_level(level: Any) -> None:
    """Raise ``InputError`` where the level of an interval is not between 0 and 1."""
    if isinstance(level, str) or not 0 < level < 1:
        raise InputError(f"level is {level!r}, but a probability between 0 and 1 is needed (0.95, say).")


def quantiles(draws: Tensor, level: float) -> Tensor:
    """Return limits ``(n, 2, ...)`` between which a share ``level`` of draws ``(S, n, ...)`` lies."""
    q = torch.tensor((0.5 - level / 2, 0.5 + level / 2), dtype=draws.dtype, device=draws.device)
    return torch.quantile(draws, q, 0).movedim(0, 1)


def inside(likelihood: Likelihood, f: Tensor, moved: Tensor) -> Tensor:
    """Return ``f + moved``, ``(S, N, ..., C)``, where that leaves the domain of the likelihood only part of the way.

    A Gaussian knows of no bounds: a scale that is an output comes out negative now and then, thresholds out of order.
    """
    found = f + moved
    for _ in range(_HALVINGS):
        outside = torch.isnan(likelihood.mean(found)).any(-1)
        for c, domain in enumerate(likelihood.domains * (f.shape[-1] // len(likelihood.domains))):
            outside |= ~domain.contains(found[..., c])
        if not bool(outside.any()):
            return found
        moved = torch.where(outside.unsqueeze(-1), moved / 2, moved)
        found = f + moved
    return found


def from_outputs(
    likelihood: Likelihood,
    f: Tensor,
    covariance: Tensor,
    link: Link,
    samples: int,
    generator: torch.Generator | None,
    joint: bool = False,
    is_root: bool = False,
) -> Predictive:
    """Return the predictive distribution of Gaussian outputs, sampled by the generator, None for a fixed one.

    ``f`` ``(N, ..., C)`` are their means; ``covariance`` is ``(N, ..., C, C)``, with ``joint`` that of all together,
    and with ``is_root`` a square root ``(N, C, r)`` of it.

    Raises:
        InputError: There is no such link, or the likelihood has none.
    """
    if link not in get_args(Link):
        raise InputError(f"link is {link!r}, but it must be one of {', '.join(get_args(Link))}.")
    likelihood = likelihood.of_targets()  # what weights say of the loss, they do not say of responses
    noise = normal_points(samples, covariance.shape[-1], generator, f)
    made = Predictive(likelihood, f, covariance, is_root, link, joint, noise)
    if link != "mixture":
        points = normal_points(max(samples, _FEWEST_CHECKED), covariance.shape[-1], None, f)
        _refuse_far(made, Predictive(likelihood, f, covariance, is_root, "mixture", joint, points))
    return made


def _refuse_far(made: Predictive, mixture: Predictive) -> None:
    """Raise ``InputError``, naming the row, where probabilities by a link are far from averages over samples."""
    by_link, averaged = made.mean, mixture.mean
    gap = (by_link - averaged).abs()
    far = ~(gap <= _FARTHEST_LINK)
    if not bool(far.any()):
        return
    place = tuple((gap == gap.max()).nonzero()[0].tolist())
    count, whole = int(far.flatten(1).any(1).sum()), len(gap)
    raise InputError(
        f"link='{made.link}' gives row {place[0]} the probability {float(by_link[place]):.2f} of class {place[-1]}, "
        f"and an average over samples of the outputs {float(averaged[place]):.2f}: the approximation does not hold for "
        f"outputs that vary as these do ({count} of {whole} rows are more than {_FARTHEST_LINK:g} off). Use "
        "link='mixture'."
    )


def from_samples(likelihood: Likelihood, outputs: Tensor) -> Predictive:
    """Return the predictive distribution of sampled outputs, ``(S, N, ..., C)``."""
    f, likelihood = outputs.mean(0), likelihood.of_targets()
    centered = (outputs - f).movedim(0, -1)
    covariance = centered @ centered.mT / max(1, len(outputs) - 1)
    return Predictive(likelihood, f, covariance, False, "mixture", False, outputs.new_zeros(0), outputs)


def normal_points(n: int, d: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Return ``n`` points of the standard normal distribution in ``d`` dimensions, spread evenly where d is small.

    Scrambled Sobol points, in pairs of opposite sign so that their mean is zero: for a few dimensions averages over a
    hundred of them are as good as over thousands of independent ones.
    """
    generator = generator or torch.Generator(like.device).manual_seed(0)
    half = -(-n // 2)
    if d > 64:
        points = torch.randn(half, d, generator=generator, dtype=like.dtype, device=like.device)
    else:
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        uniform = engine.draw(half, dtype=torch.float64)
        points = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(dtype=like.dtype, device=like.device)
    return torch.cat([points, -points])[:n]
