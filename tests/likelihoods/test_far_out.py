"""Every likelihood at outputs up to 1e4 and targets from 1e-300 to 1e300: right, or infinite where it overflows.

Members are found by their export and compared with ``definitions`` in as many digits as it takes: value, gradient,
Hessian, expected information, mean and variance, in double and in single precision. A nan is never right.
"""

from __future__ import annotations

import functools
import itertools
import random

import mpmath as mp
import numpy as np
import pytest
import torch

from raphson import InputError
from raphson import likelihoods as lk
from raphson.likelihoods import Likelihood, catalogue

from . import jet
from .definitions import EXACT, exact

# outputs that a single precision number is, so that both precisions are asked about the same one
TINY = float(np.float32(1e-8))
GRID = [0.0, TINY, -TINY, 0.75, -1.5, 40.0, -40.0, 700.0, -700.0, 1e4, -1e4]
FEW, MANY = 14, 160

REALS = [0.0, 1.0, -1e5, 1e-300, 1e150, -1e300]
TIMES = [1e-300, 2.0**-17, 1.0, 1e5, 1e300]
COUNTS = [0.0, 1.0, 7.0, 1e6, 2.0**50, 1e300]
SHARES = [1e-300, 2.0**-27, 0.5, 0.75, 1 - 2.0**-24, 1 - 2.0**-53]
LABELS = [0.0, 1.0, 0.6875]


def targets(likelihood: Likelihood) -> list[object]:
    """Targets anywhere in the support."""
    base = likelihood
    while isinstance(base, lk.Linked | lk.ScaledLikelihood):
        base = base.base
    if isinstance(base, lk.Weibull) and base.censored:
        return [[y, event] for y in TIMES for event in (0.0, 1.0)]
    if isinstance(base, lk.Binomial):
        return (
            [[0.0, 1.0], [3.0, 4.0], [2.0**50, 1.0], [1e300, 1e300], [0.0, 0.0]]
            if base.trials is None
            else [0.0, 3.0, 7.0]
        )
    if isinstance(base, lk.Multinomial):
        return [[1.0, 0.0, 2.0], [2.0**50, 1.0, 0.0], [0.0, 1e300, 1.0], [0.0, 0.0, 0.0]]
    if isinstance(base, lk.MultivariateGaussian):
        return [[0.0, 1.0], [1e-300, -1e5], [0.75, -1.5], [1e150, -1e300]]
    if isinstance(base, lk.Categorical | lk.Ordinal):
        return [0, 1, 2]
    kinds = {lk.REAL: REALS, lk.POSITIVE: TIMES, lk.COUNT: COUNTS, lk.OPEN_UNIT_INTERVAL: SHARES}
    return list(kinds.get(base.support, LABELS))


def composed() -> list[Likelihood]:
    """Bases whose own derivatives overflow where those of the composition do not."""
    gaussian = lk.HeteroscedasticGaussian
    second = [(form, link) for form in ("scale", "variance", "precision") for link in ("exp", "softplus", "square")]
    return [
        *(lk.Linked(gaussian(f"mean_{form}"), ("identity", link)) for form, link in second),
        *(lk.Linked(gaussian(form), ("exp", "identity")) for form in ("mean_log_variance", "natural")),
        lk.Linked(gaussian("mean_variance"), ("exp", "square")),
        lk.Linked(gaussian("mean_softplus_scale"), ("sigmoid", "identity")),
        lk.Linked(gaussian("mean_precision"), ("normal_cdf", "exp")),
        lk.Linked(lk.StudentT(), ("exp", "identity", "identity")),
        lk.Linked(lk.StudentT(4.0), ("square", "softplus")),
        lk.Linked(lk.Gaussian(1e-20), "exp"),
        lk.Linked(lk.Gaussian(1e20), "exp"),
        lk.Linked(lk.ScaledLikelihood(lk.StudentT(4.0), 2.0), ("exp", "identity")),
        lk.Linked(lk.MultivariateGaussian(2), ("exp", "exp", "identity", "identity", "identity")),
        lk.Linked(lk.Gamma(), ("exp", "softplus")),
    ]


def members() -> list[Likelihood]:
    """Every member of every family, as its definition has it, and some made of others."""
    plain = [m.definition().likelihood for kind in catalogue().values() for m in kind.examples()]
    return [
        *plain,
        lk.Linked(lk.Gaussian(), "exp"),
        lk.Linked(lk.Bernoulli(), "normal_cdf"),
        lk.Linked(lk.Beta(), ("identity", "softplus")),
        *composed(),
        lk.ScaledLikelihood(lk.Gamma(), 2.0, 0.5),
        lk.ScaledLikelihood(lk.StudentT(), 3.0, mean_over_outputs=True),
    ]


def n_outputs(likelihood: Likelihood) -> int:
    base = likelihood
    while isinstance(base, lk.Linked | lk.ScaledLikelihood):
        base = base.base
    return len(base.definition().outputs)


@functools.cache
def rows(likelihood: Likelihood, dtype: torch.dtype, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in the domain with targets, a seeded choice where there are too many."""
    c, kind = n_outputs(likelihood), targets(likelihood)
    points = (
        list(itertools.product(GRID, repeat=c))
        if c < 4
        else [tuple(random.Random(i).choices(GRID, k=c)) for i in range(40 * MANY)]
    )
    f = torch.tensor(points, dtype=dtype)
    k = len(likelihood.domains)
    inside = torch.stack([likelihood.domains[i % k].contains(f[:, i]) for i in range(c)]).all(0)
    if isinstance(likelihood, lk.Ordinal):
        inside &= (f[:, 1:] > f[:, :-1]).all(1)
    inside_points = torch.nonzero(inside)[:, 0].tolist()
    limits = torch.finfo(dtype)

    def held(y: object) -> bool:
        values = y if isinstance(y, list) else [y]
        if (
            likelihood.support is lk.OPEN_UNIT_INTERVAL
            and dtype == torch.float32
            and 1 - float(values[0]) < limits.eps / 2
        ):
            return False
        return all(v == 0 or 1e3 * limits.tiny <= abs(v) <= limits.max for v in map(float, values))

    pairs = [(p, y) for p in inside_points for y in kind if held(y)]
    if len(pairs) > most:
        pairs = random.Random(0).sample(pairs, most)
    integer = isinstance(kind[0], int)
    y = torch.tensor([y for _, y in pairs], dtype=torch.long if integer else dtype)
    return f[[p for p, _ in pairs]], y


@functools.cache
def answer(likelihood: Likelihood, f: tuple[float, ...], y: tuple[float, ...]) -> dict[str, list[object]]:
    """The exact numbers of a row."""
    it, c = exact(likelihood), len(f)
    grid = list(itertools.product(range(c), repeat=2))

    def evaluate() -> list[object]:
        x, known = jet.variables(f), [mp.mpf(v) for v in y]
        at = it.value(likelihood, x, known)
        matrices = at.h, it.information(likelihood, x, known), it.information(likelihood, x, None)
        mean, variance = it.moments(likelihood, x)
        return [at.v, *at.g, *(m[i][j] for m in matrices for i, j in grid), *mean, *variance]

    values = jet.settled(evaluate, it.digits(f))
    sizes = [1, c, c * c, c * c, c * c]
    m = (len(values) - sum(sizes)) // 2
    names = ["nll", "gradient", "hessian", "expected", "fisher", "mean", "variance"]
    cuts = list(itertools.accumulate([0, *sizes, m, m]))
    return {name: values[a:b] for name, a, b in zip(names, cuts, cuts[1:], strict=False)}


def ours(likelihood: Likelihood, f: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same by the library, each as numbers ``(n, k)``; nothing where a row is refused."""
    at = likelihood.derivatives(f, y)
    asked = {
        "nll": lambda: at.nll,
        "gradient": lambda: at.gradient,
        "hessian": lambda: at.hessian.to_dense(),
        "expected": lambda: likelihood.derivatives(f, y, "expected").hessian.to_dense(),
        "fisher": lambda: likelihood.fisher(f).to_dense(),
        "mean": lambda: likelihood.mean(f),
        "variance": lambda: likelihood.variance(f),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask().detach().reshape(len(f), -1)
        except InputError:
            if len(f) > 1:
                rows = [ours(likelihood, f[i : i + 1], y[i : i + 1]).get(name) for i in range(len(f))]
                some = next(row for row in rows if row is not None)
                found[name] = torch.cat([torch.full_like(some, REFUSED) if row is None else row for row in rows])
    return found


REFUSED = 123456789.0


def beyond(likelihood: Likelihood, f: torch.Tensor, y: torch.Tensor, nll: object) -> bool:
    """Whether the loss, a parameter that the outputs are maps of, or a residual in it is no number of the type."""
    limits = torch.finfo(f.dtype)
    if abs(nll) > limits.max / 8:
        return True
    if getattr(likelihood, "link", None) == "log" and isinstance(likelihood, lk.Gaussian | lk.HeteroscedasticGaussian):
        likelihood = lk.Linked(lk.HeteroscedasticGaussian(), ("exp", "identity"))
    if not isinstance(likelihood, lk.Linked):
        return False
    theta = torch.stack([likelihood.maps[i % len(likelihood.maps)].function(x) for i, x in enumerate(f)])
    domains = likelihood.base.domains
    least = torch.tensor([
        0.0 if domains[i % len(domains)].contains(torch.zeros(())) else limits.tiny for i in range(len(f))
    ])
    places = likelihood.base.locations(len(f))
    # a location that underflows, known to no digit where the scale underflows too
    no_residual = places is not None and bool((torch.maximum(theta[places].abs(), y.abs()) < 1e3 * limits.tiny).any())
    return no_residual or not bool(((theta.abs() >= least) & (theta.abs() <= limits.max)).all())


def wrong(found: float, true: object, dtype: torch.dtype, slack: float) -> bool:
    """Whether a number is not the exact one to what its type can hold."""
    limits = torch.finfo(dtype)
    if mp.isnan(true):
        return found == found
    if found != found:
        return True
    if abs(true) > limits.max:
        return not (abs(found) >= 0.99 * limits.max and (found > 0) == (true > 0))
    tolerance = RELATIVE[dtype] * abs(true) + slack + FLOOR[dtype]
    if abs(found) == float("inf"):
        return abs(true) < limits.max * (1 - RELATIVE[dtype])
    return abs(mp.mpf(found) - true) > tolerance


FLOOR = {torch.float64: 1e-290, torch.float32: 1e-34}
RELATIVE = {torch.float64: 1e-8, torch.float32: 2e-3}
every_member = pytest.mark.parametrize("likelihood", members(), ids=repr)


def complaints(likelihood: Likelihood, f: torch.Tensor, y: torch.Tensor) -> list[str]:
    dtype = f.dtype
    found, eps = ours(likelihood, f, y), 16 * torch.finfo(dtype).eps
    bad = []
    for i, (row, target) in enumerate(zip(f.tolist(), y.reshape(len(y), -1).tolist(), strict=True)):
        true, c = answer(likelihood, tuple(row), tuple(target)), len(row)
        far = beyond(likelihood, f[i], y[i], true["nll"][0])
        # what counts is small against the expected information: a gradient's standard deviation is its root
        information = [mp.sqrt(true["expected"][a * c + a]) for a in range(c)]
        counts = sum(target) if isinstance(likelihood, lk.Multinomial | lk.Binomial) else 1
        counts = max(counts, likelihood.trials or 1) if isinstance(likelihood, lk.Binomial) else counts
        # or against the gradient's own products where that is far from its mean
        second = [b % len(likelihood.parameters) > 0 for b in range(c)]
        sizes = [max(a, abs(g), b) for a, g, b in zip(information, true["gradient"], second, strict=True)]
        logs = sum(abs(mp.log(abs(t))) for t in target if t)
        if likelihood.support is lk.OPEN_UNIT_INTERVAL:
            # its loss has both logarithms, which cancel against the gamma functions
            logs += sum(abs(mp.log1p(-mp.mpf(t))) for t in target)
        pairs = [a * b for a in sizes for b in sizes]
        moved = {
            # an output or a target that is off by its rounding; so many trials that are off by the rounding of one
            "nll": [sum(abs(x * g) for x, g in zip(row, true["gradient"], strict=True)) + max(counts, 1) + logs],
            "gradient": [
                sum(abs(row[a] * true["hessian"][a * c + b]) for a in range(c))
                + information[b]
                + second[b]
                + (counts > 9) * counts
                for b in range(c)
            ],
            "hessian": pairs,
            "expected": pairs,
            "fisher": [
                mp.sqrt(true["fisher"][a * c + a] * true["fisher"][b * c + b])
                + isinstance(likelihood, lk.Categorical | lk.Multinomial)
                for a in range(c)
                for b in range(c)
            ],
        }
        for name, values in true.items():
            for k, value in enumerate(values):
                slack = eps * min(moved[name][k], mp.mpf(10) ** 300) if name in moved else 0
                if isinstance(likelihood, lk.Categorical | lk.Multinomial) and name in ("hessian", "expected"):
                    # the diagonal is one share less its square, each rounded
                    slack += eps * max(1, counts)
                slack += max(counts, *map(abs, target)) * torch.finfo(dtype).tiny
                if isinstance(likelihood, lk.Linked):
                    # a map, or its derivative, that is off by the least number, in units of the scale
                    slack += sum(torch.finfo(dtype).tiny / v for v in true["variance"] if v > 0)
                if isinstance(likelihood, lk.NegativeBinomial) and name in ("expected", "fisher"):
                    slack += mp.mpf(2e-5) * abs(value)  # of its quadrature
                unseen = far or name in ("expected", "fisher") and beyond(likelihood, f[i], 0 * y[i], 0)
                if found[name][i, k] == REFUSED or unseen and not bool(found[name][i, k].isnan()):
                    continue
                if wrong(found[name][i, k].item(), value, dtype, slack):
                    shown = (
                        mp.nstr(value, 9)
                        if abs(mp.mag(value)) < 9999
                        else ("-" if value < 0 else "") + ("inf" if mp.mag(value) > 0 else "0")
                    )
                    where = f"f={f[i].tolist()}, y={y[i].tolist()}"
                    bad.append(f"{name}[{k}] {found[name][i, k].item():.9g}, not {shown}: {where}")
    return bad


@every_member
def test_right_or_infinite_far_out(likelihood):
    bad = complaints(likelihood, *rows(likelihood, torch.float64, FEW))
    assert not bad, f"{len(bad)} numbers: " + "\n".join(bad[:12])


SINGLE, DOUBLE = torch.float32, torch.float64
MEAN_AND_SCALE = lk.HeteroscedasticGaussian()
BETWEEN = [
    # a residual of zero by a scale whose inverse overflows, and by degrees of freedom that do
    (lk.StudentT(4.0), SINGLE, [0.0, -1e4], 0.0),
    (lk.StudentT(), SINGLE, [0.0, -700.0, -40.0], 0.0),
    (lk.StudentT(), SINGLE, [0.75, -40.0, 700.0], -1e5),
    (lk.StudentT(), DOUBLE, [-40.0, -700.0, 1e4], 1e-300),
    # the inverse scale overflows, the residual by it does not
    (lk.StudentT(4.0), SINGLE, [0.0, -100.0], 2.0**-110),
    (lk.StudentT(), DOUBLE, [0.0, -720.0, 3.0], 1e-305),
    # no count at a dispersion that overflows; a mean that does
    (lk.NegativeBinomial(), SINGLE, [-1e4, 700.0], 0.0),
    (lk.NegativeBinomial(), SINGLE, [700.0, -1e4], 7.0),
    (lk.NegativeBinomial(), SINGLE, [1e4, -700.0], 1e6),
    # a mean of 1/2 in single precision, of which the logit knows more
    (lk.Beta(), SINGLE, [TINY, 700.0], 1 - 2.0**-24),
    (lk.Beta(), SINGLE, [-TINY, 40.0], 0.5),
    (lk.Beta(), DOUBLE, [1e-20, 85.0], 0.5),
    (lk.Ordinal(3, "cloglog"), SINGLE, [700.0, 1e4], 1),
    # a residual that the rounded mean has lost
    (lk.HeteroscedasticGaussian(link="log"), SINGLE, [-TINY, -40.0], 1.0),
    (lk.HeteroscedasticGaussian(link="log"), DOUBLE, [1e-20, -50.0], 1.0),
    (lk.Gaussian(1e-12, link="log"), SINGLE, [TINY], 1.0),
    (lk.Linked(lk.StudentT(), ("exp", "identity", "identity")), SINGLE, [TINY, -20.0, 2.0], 1.0),
    (lk.Linked(lk.ScaledLikelihood(lk.StudentT(4.0), 2.0), ("exp", "identity")), SINGLE, [TINY, -20.0], 1.0),
    (lk.Linked(MEAN_AND_SCALE, ("sigmoid", "identity")), SINGLE, [TINY, -20.0], 0.5),
    (lk.Linked(MEAN_AND_SCALE, ("sigmoid", "identity")), DOUBLE, [40.0, -45.0], 1.0),
    (lk.Linked(MEAN_AND_SCALE, ("normal_cdf", "identity")), DOUBLE, [10.0, -45.0], 1.0),
    (lk.Linked(MEAN_AND_SCALE, ("cloglog_inverse", "identity")), SINGLE, [3.0, -25.0], 1.0),
    # the second derivative in a scale next to zero of a residual of zero
    (lk.Linked(lk.HeteroscedasticGaussian("mean_scale"), ("identity", "softplus")), DOUBLE, [0.0, -300.0], 0.0),
    # zero counts by a mean next to zero: the terms of the chain rule cancel
    (lk.NegativeBinomial(0.3, "identity"), SINGLE, [TINY], 0.0),
]


@pytest.mark.parametrize(("likelihood", "dtype", "f", "y"), BETWEEN, ids=repr)
def test_nothing_overflows_or_cancels_between(likelihood, dtype, f, y):
    target = torch.tensor([y], dtype=torch.long if isinstance(y, int) else dtype)
    bad = complaints(likelihood, torch.tensor([f], dtype=dtype), target)
    assert not bad, "\n".join(bad)


@pytest.mark.nightly
@every_member
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_right_or_infinite_at_many_outputs(likelihood, dtype):
    bad = complaints(likelihood, *rows(likelihood, dtype, MANY))
    assert not bad, f"{len(bad)} numbers: " + "\n".join(bad[:12])


def test_every_family_has_a_definition():
    families = {name for name, kind in catalogue().items() if kind.examples()}
    assert families <= EXACT.keys() and {"Linked", "ScaledLikelihood"} <= EXACT.keys()
