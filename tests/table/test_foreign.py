"""What people write in formulas of R, patsy and mixed models: each is refused with what to write instead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import raphson as rp

N = 90
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"x": RNG.normal(size=N), "t": RNG.uniform(1, 4, N), "g": RNG.choice(list("abc"), N)})
FRAME = FRAME.assign(y=RNG.poisson(2, N), k=RNG.integers(0, 3, N))

REFUSED = {
    "y ~ x + (1|g)": r"random effects.*C\(g\), or cluster",
    "y ~ (x || g)": "random effects",
    "y ~ x | t": "random effects, or for a second right side",
    "y ~ s(x)": r"bs\(x, df=5\)",
    "y ~ ns(x, 3)": r"cr\(x, df=4, constraints='center'\)",
    "y ~ factor(k)": r"a factor is C\(g\)",
    "y ~ as.factor(k)": r"a factor is C\(g\)",
    "y ~ C(g, Treatment('b'))": r"contr.treatment\('b'\)",
    "y ~ C(g, Sum)": "contr.sum",
    "y ~ relevel(g, ref='b')": "contr.treatment",
    'y ~ Q("x")': "between backquotes",
    "y ~ sqrt(t)": r"np.sqrt\(x\)",
    "y ~ I(x^2)": r"a power is \*\*",
    "y ~ poly(x, 2, raw=TRUE)": "True, False and None",
    "y ~ bs(x, knots=c(0, 1))": r"knots=\[0, 1\]",
    "y ~ x > 0": r"inside I\(\.\.\.\)",
    "y ~ x + cluster(g)": "groups= of standard_errors",
    "y ~ x + weights(t)": "sample_weight= of fit",
    "log(y) ~ x": "computed in the table before the fit",
    "y ~ exp(1e6 * x)": "or a number overflows",
}


@pytest.mark.parametrize("formula", REFUSED)
def test_what_to_write_instead(formula: str) -> None:
    with pytest.raises(rp.InputError, match=REFUSED[formula]):
        rp.VectorGLM("poisson", formula=formula).fit(FRAME)


SAME = {
    "a factor": ("y ~ C(k)", "y ~ C(k, contr.treatment(0))"),
    "another base": ("y ~ C(g)", "y ~ C(g, contr.treatment('b'))"),
    "sums": ("y ~ C(g)", "y ~ C(g, contr.sum)"),
    "a power": ("y ~ x + I(x**2)", "y ~ poly(x, 2)"),
    "a root": ("y ~ np.sqrt(t)", "y ~ I(t**0.5)"),
    "a natural spline": ("y ~ cr(x, df=4, constraints='center')", "y ~ 0 + cr(x, df=4, constraints='center') + 1"),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_remedy_is_fitted(kind: str) -> None:
    one, other = (rp.VectorGLM("poisson", formula=formula).fit(FRAME) for formula in SAME[kind])
    assert one.loglik_ == pytest.approx(other.loglik_, abs=1e-9)
    assert one.collinearity_ is None or not one.collinearity_.sentences()
