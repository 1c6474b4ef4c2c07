"""What a likelihood made of another one takes over from it, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods import (
    HeteroscedasticGaussian,
    Likelihood,
    MultivariateGaussian,
    Ordinal,
    Poisson,
    ScaledLikelihood,
    Weibull,
    Wrapper,
)
from raphson.likelihoods.composed import _wrapper
from raphson.linalg import Scaled

OF_THE_VALUE = {
    *("nll", "gradient", "hessian", "fisher", "fisher_factor", "derivatives", "definition", "hessian_bound"),
    *("differences_only", "always_finite", "partition", "partition_multiple", "statistic", "log_partition"),
    *("self_concordance", "concordance_terms", "curvature_terms", "extended_gradient", "power_curvature"),
    *("of_difference", "negative_exponential", "locations", "in_units", "second_given", "of_targets"),
}
"""What is said of the value, which a wrapper makes another one."""
OF_THE_CLASS = {"examples", "link_names", "commands"}


@dataclass(frozen=True, eq=False)
class Twice(Wrapper):
    """All that a new wrapper has to say."""

    base: Likelihood

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        return 2 * self.base.nll(f, y)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return 2 * self.base.gradient(f, y)

    def hessian(self, f: Tensor, y: Tensor) -> Scaled:
        return Scaled(self.base.hessian(f, y), 2.0)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Scaled:
        return Scaled(self.base.fisher(f, y), 2.0)


BASES = [Poisson(), HeteroscedasticGaussian("mean_scale"), Ordinal(3), MultivariateGaussian(2), Weibull(censored=True)]


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("wrap", [Twice, ScaledLikelihood])
def test_outputs_targets_and_predictions_are_the_bases(base, wrap):
    made = wrap(base)
    for name in ("parameters", "domains", "concave", "has_units"):
        assert getattr(made, name) == getattr(base, name)
    assert made.support.description == base.support.description
    f, y = (torch.tensor(part, dtype=torch.float64) for part in base.definition().example)
    f, y = f.expand(6, -1), y.expand(6, *y.shape)
    c = f.shape[-1]
    made.check(y, c)
    assert made.output_names(c) == base.output_names(c) and made.n_outputs(y) == base.n_outputs(y)
    for own, other in zip(made.default_columns(c), base.default_columns(c), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(made.start(y, c), base.start(y, c))
    drawn = [lik.sample(f, torch.Generator().manual_seed(0)) for lik in (made, base)]
    assert torch.equal(*drawn)
    assert torch.equal(made.mean(f), base.mean(f)) and torch.equal(made.variance(f), base.variance(f))
    assert made.weight(y) is None and made.examples() == ()


def test_outputs_out_of_order_are_refused_behind_a_wrapper():
    with pytest.raises(InputError, match="out of order"):
        ScaledLikelihood(Ordinal(3)).check_outputs(torch.tensor([[1.0, 0.0]]))


def test_what_is_known_of_the_bases_value_alone_is_not_taken_over():
    y, f = torch.ones(3, 1), torch.zeros(3, 1)
    made = Twice(Poisson())
    assert Poisson().statistic(y, 1) is not None and made.statistic(y, 1) is None
    assert made.partition is None and made.self_concordance is None and made.hessian_bound is None
    assert made.locations(1) is None and made.second_given(f, y) is None


def test_whatever_a_likelihood_says_is_of_its_value_or_taken_over():
    said = {name for name in vars(Likelihood) if not name.startswith("_")}
    taken_over = {*_wrapper._TAKEN_OVER, "sample", "mean", "variance"}
    assert said == taken_over | OF_THE_VALUE | OF_THE_CLASS
