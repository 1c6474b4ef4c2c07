"""One table with targets of every kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import statsmodels.api as sm

RNG = np.random.default_rng(3)
N, D = 400, 3
X = pd.DataFrame(RNG.normal(size=(N, D)) * [1.0, 3.0, 0.2] + [0.0, 10.0, 1.0], columns=["a", "b", "c"])
ETA = 0.3 + X.to_numpy() @ [0.4, -0.1, 0.5]
XC = sm.add_constant(X)
COUNTS = RNG.poisson(np.exp(ETA))
OVER = RNG.negative_binomial(2, 2 / (2 + np.exp(ETA)))
POSITIVE = RNG.gamma(3.0, np.exp(ETA) / 3.0)
REAL = ETA + RNG.normal(size=N) * np.exp(0.3 * X["a"])
SHARE = np.clip(RNG.beta(5 / (1 + np.exp(-ETA)), 5 / (1 + np.exp(ETA))), 1e-6, 1 - 1e-6)
YES = (RNG.random(N) < 1 / (1 + np.exp(-ETA))).astype(float)
LEVELS = np.digitize(ETA + RNG.logistic(size=N), [-1.0, 0.5, 2.0])


def coef(model):
    return model.summary().to_frame()["coef"].to_numpy(dtype=float)


def errors(model, kind="observed", **options):
    return model.standard_errors(kind, **options).to_numpy(dtype=float)
