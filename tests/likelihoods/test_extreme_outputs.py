"""Outputs up to 1e4 in size, extreme targets: value, gradient and Hessian diagonal against the formulas by mpmath."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from raphson.likelihoods import (
    Bernoulli,
    Gamma,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    Weibull,
)
from raphson.likelihoods.formulas._algebra import evaluator

from .conformance import DTYPE

SIZES = [1.0, 30.0, 700.0, 1e4]
GRID = [*(-size for size in SIZES[::-1]), *SIZES]
COUNTS, TIMES, REALS = [0.0, 1.0, 1e6, 1e15], [1e-300, 1e-5, 1.0, 1e5], [0.0, 1.0, -1e5, 1e150]

# digits: as many as the formula loses where a probability is one less e^-1e4
CASES: list[tuple[Likelihood, list[object], int]] = [
    *((Bernoulli(link=link), [0.0, 1.0], 9000) for link in ("logit", "cloglog", "loglog", "cauchit", "log")),
    *((Poisson(link), COUNTS, 80) for link in Poisson.link_names),
    *((NegativeBinomial(0.7, link), COUNTS, 80) for link in NegativeBinomial.link_names),
    (Gamma(0.3), [*TIMES, 1e300], 80),
    (Gamma(0.3, "identity"), TIMES, 80),
    (Weibull(1.5), TIMES, 80),
    (Weibull(1.0, censored=True), [[1.0, 0.0], [1e5, 1.0], [1e-300, 1.0]], 80),
    *((Gaussian(0.8, link=link), REALS, 80) for link in Gaussian.link_names),
    *(
        (HeteroscedasticGaussian(name), REALS, 80)
        for name in ("mean_log_scale", "mean_variance", "mean_log_variance", "mean_precision", "natural")
    ),
]


@pytest.mark.parametrize(("likelihood", "targets", "digits"), CASES, ids=lambda value: repr(value)[:60])
def test_values_and_derivatives_far_out(likelihood, targets, digits):
    definition = likelihood.definition()
    lik, c = definition.likelihood, len(definition.outputs)
    wanted = [definition.nll, *definition.gradient, *(definition.hessian[i, i] for i in range(c))]
    symbols = [*definition.outputs, *definition.targets, *definition.constants]
    exact = evaluator([definition.plain(entry) for entry in wanted], symbols, digits)
    seen = 0
    for f in itertools.product(GRID, repeat=c):
        outputs = torch.tensor([f], dtype=DTYPE)
        if not all(bool(domain.contains(x)) for domain, x in zip(lik.domains, outputs[0], strict=True)):
            continue
        for target in targets:
            y = torch.tensor([target], dtype=DTYPE)
            at = lik.derivatives(outputs, y)
            found = [*at.nll.tolist(), *at.gradient[0].tolist(), *at.hessian.diagonal()[0].tolist()]
            values = exact(*f, *definition.read(y[0]), *definition.constants.values())
            for ours, theirs in zip(found, values, strict=True):
                # an infinity is right where a double has no such number
                right = ours == theirs or math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-280)
                assert right, (f, target, found, values)
            seen += 1
    assert seen >= 8


def test_a_gamma_likelihood_is_never_nan():
    f = torch.tensor(list(itertools.product([0.0, *GRID], repeat=2)), dtype=DTYPE)
    for y in (*TIMES, 1e300):
        at = Gamma().derivatives(f, torch.full((len(f),), y, dtype=DTYPE))
        assert not bool(at.nll.isnan().any() | at.gradient.isnan().any() | at.hessian.diagonal().isnan().any())


@pytest.mark.parametrize(
    ("f", "y", "value"),
    [((40.0, -40.0), 1.0, 1.6315938998e17), ((-5.0, 5.0), 1e15, 6.931471805e14), ((-30.0, 30.0), 1e6, 693190.9961)],
)
def test_negative_binomial_counts_far_from_their_mean(f, y, value):
    found = NegativeBinomial().nll(torch.tensor([f], dtype=DTYPE), torch.tensor([y], dtype=DTYPE)).item()
    assert found == pytest.approx(value, rel=1e-4)
