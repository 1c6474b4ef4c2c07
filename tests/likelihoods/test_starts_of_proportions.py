"""Where fits of proportions and levels start, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from raphson import _errors
from raphson.likelihoods import Bernoulli, Beta, Binomial, Categorical, Gaussian, Multinomial, Ordinal, StudentT

from .conformance import DTYPE

# starts ----------------------------------------------------------------------------------------------------------

_G = torch.Generator().manual_seed(2)
_SATURATED = [
    (Gaussian(2.0), torch.randn(30, 2, generator=_G), 2),
    (Bernoulli(), torch.rand(30, 2, generator=_G), 2),
    (Bernoulli(pos_weight=torch.tensor([3.0, 0.5])), torch.randint(2, (30, 2), generator=_G), 2),
    (Categorical(), torch.randint(3, (30,), generator=_G), 3),
    (
        Categorical(torch.tensor([1.0, 2.0, 0.5]), ignore_index=1),
        torch.tensor([0, 2, 0, 2, 2, 0] * 5).masked_fill(torch.arange(30) % 7 == 0, 1),
        3,
    ),
    (Categorical(label_smoothing=0.3), torch.randint(3, (30,), generator=_G), 3),
    (Categorical(), torch.softmax(torch.randn(30, 4, generator=_G), -1), 4),
    (Multinomial(), torch.randint(9, (30, 4), generator=_G), 4),
]


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 2.0, 30, dtype=DTYPE)], ids=["plain", "weighted"])
@pytest.mark.parametrize(("lik", "y", "c"), _SATURATED, ids=lambda v: type(v).__name__)
def test_a_start_in_closed_form_is_the_optimum(lik, y, c, weights):
    start = lik.start(y, c, weights)
    g = lik.gradient(start.expand(30, c), y)
    total = g.sum(0) if weights is None else weights @ g
    if isinstance(lik, Categorical) and lik.ignore_index == 1:
        total = total[[0, 2]]  # the ignored class has no rows: kept off minus infinity
    assert float(total.abs().max()) < (2.0 if isinstance(lik, Categorical) and lik.ignore_index == 1 else 1e-5)


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 2.0, 400, dtype=DTYPE)], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("lik", "f"),
    [
        (Beta(), [0.4, 2.0, -1.0, 3.0]),
        (StudentT(5.0), [3.0, 0.5, -2.0, 1.0]),
        (StudentT(), [3.0, 0.5, 1.6]),
        (Ordinal(4, "probit"), [-1.0, 0.2, 0.9]),
        (Ordinal(4, "cloglog"), [-2.0, -0.2, 0.9]),
        (Binomial(9), [0.3]),
        (Binomial(), [0.3]),
    ],
)
def test_a_start_is_near_the_parameters_of_its_targets(lik, f, weights):
    f = torch.tensor(f, dtype=DTYPE)
    y = lik.sample(f.expand(400, -1), torch.Generator().manual_seed(4))
    start = lik.start(y, len(f), weights)
    # degrees of freedom apart, on which 400 targets say little
    close = (start - f).abs()[torch.tensor([name != "log_df" for name in lik.output_names(len(f))])]
    assert bool((close < 0.3).all())
    lik.check_outputs(start)


@pytest.mark.parametrize(
    ("lik", "y", "c"),
    [
        (Beta(), torch.full((5, 2), 0.3), 4),
        (Beta(), torch.full((5,), 1e-12), 2),
        (StudentT(), torch.full((5,), 7.0), 3),
        (StudentT(3.0), torch.tensor([0.0, 0.0, 0.0, 9.0]), 2),
        (Ordinal(5), torch.full((6,), 3), 4),
        (Ordinal(3, "cloglog"), torch.tensor([2]), 2),
        (Binomial(), torch.tensor([[0, 9], [0, 3]]), 1),
        (Binomial(4), torch.tensor([4, 4]), 1),
        (Multinomial(), torch.tensor([[0, 0, 0], [5, 0, 0]]), 3),
        (Multinomial(), torch.zeros(2, 3), 3),
        (Categorical(), torch.tensor([-100, -100]), 3),
        (Categorical(), torch.tensor([1, 1]), 3),
        (Bernoulli(), torch.ones(4), 1),
        (Gaussian(), torch.ones(4), 1),
    ],
)
def test_a_start_is_in_the_domain_for_constant_targets(lik, y, c):
    start = lik.start(y, c)
    assert start.shape == (c,) and start.dtype == DTYPE
    lik.check_outputs(start)
    assert bool(torch.isfinite(lik.nll(start.expand(len(y), c), y)).all())


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lik", "y", "c", "words"),
    [
        (Beta(), [0.2, 0.0], 2, r"row 1.* is 0, .* strictly between 0 and 1 .*move all n targets inward"),
        (Beta(), [[0.2, 0.3], [0.4, 1.5]], 4, r"row 1, position 1 is 1.5, .* strictly between 0 and 1\. "),
        (Beta(), [0.2], 3, r"3 outputs, but 2 are needed per response"),
        (StudentT(), [1.0, math.nan], 3, r"row 1.* is nan, .* finite"),
        (StudentT(), [1.0], 2, r"2 outputs, but 3 are needed per response"),
        (Ordinal(3), [0, 2, 3], 2, r"row 2 is 3, .* an integer from 0 to 2"),
        (Ordinal(3), [0, 0.5], 2, r"row 1 is 0.5, .* an integer from 0 to 2"),
        (Ordinal(3), [0, 1], 3, r"3 outputs, but Ordinal\(3\) needs 2"),
        (Binomial(), [[2, 1], [3, -1]], 1, r"row 1, position 1 is -1, .* failures in 1"),
        (Binomial(), [3, 4], 2, r"successes and failures: give those, or Binomial\(trials=n\)"),
        (Binomial(), [3, 4, 5], 1, r"shape \(3,\) for 1 outputs"),
        (Binomial(4), [4, 5], 1, r"row 1.* is 5, .* from 0 to 4"),
        (Multinomial(), [[1, 2], [0.5, 1]], 2, r"row 1.* is 0.5, .* a whole number, 0 or more"),
        (Multinomial(), [1, 0], 3, r"use Categorical for one label"),
    ],
)
def test_check_names_the_first_bad_row(lik, y, c, words):
    with pytest.raises(_errors.InputError, match=words):
        lik.check(torch.tensor(y), c)


@pytest.mark.parametrize(
    ("lik", "f", "y"),
    [
        (Ordinal(3), [0.0, 1.0], 3),
        (Ordinal(3), [0.0, math.nan], 1),
        (Binomial(4), [0.3], [5]),
        (Binomial(), [0.3], [2, 0.5]),
        (Multinomial(), [0.3, 0.1], [-1, 3]),
        (Beta(), [math.nan, 0.0], [0.5]),
        (Beta(), [0.0, math.inf], [0.5]),
        (StudentT(), [math.inf, 0.0, 1.0], [0.5]),
    ],
)
def test_the_impossible_has_infinite_loss(lik, f, y):
    assert lik.nll(torch.tensor([f], dtype=DTYPE), torch.tensor([y])).item() == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: StudentT(0.0),
        lambda: StudentT(math.nan),
        lambda: Ordinal(1),
        lambda: Ordinal(3, "cauchit"),
        lambda: Binomial(0),
        lambda: Binomial(2.5),
        lambda: Binomial().nll(torch.zeros(3, 1), torch.zeros(3)),
        lambda: Multinomial().nll(torch.zeros(3, 2), torch.zeros(3)),
        lambda: Ordinal(3).nll(torch.zeros(3, 2), torch.zeros(2)),
        lambda: Ordinal(3).nll(torch.zeros(3, 3), torch.zeros(3)),
        lambda: Beta().nll(torch.zeros(3, 4), torch.zeros(3)),
        lambda: StudentT().nll(torch.zeros(3, 4), torch.zeros(3)),
    ],
)
def test_what_cannot_be_used_is_refused(make):
    with pytest.raises(_errors.InputError):
        make()


def test_names_of_outputs():
    assert Ordinal(4).output_names(3) == ("0|1", "1|2", "2|3")
    assert Beta().output_names(2) == ("logit_mean", "log_precision")
    assert StudentT().output_names(6)[3:] == ("location[1]", "log_scale[1]", "log_df[1]")
    assert Ordinal(4).n_outputs(torch.tensor([0, 1])) == 3
