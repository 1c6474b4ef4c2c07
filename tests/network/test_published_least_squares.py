"""NIST certified nonlinear regressions: certified standard deviations are Gauss-Newton, the observed ones differ.

National Institute of Standards and Technology, Statistical Reference Datasets, Misra1a and MGH09.
"""

from __future__ import annotations

import pytest
import torch

import raphson as rp

MISRA1A = (
    [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0],
    [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78],
    {"b1": 2.3894212918e02, "b2": 5.5015643181e-04},
    {"b1": 2.7070075241, "b2": 7.2668688436e-06},
    1.0187876330e-01,
    ("b1", 2.71086),
)
MGH09 = (
    [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
    [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
    {"b1": 1.9280693458e-01, "b2": 1.9128232873e-01, "b3": 1.2305650693e-01, "b4": 1.3606233068e-01},
    {"b1": 1.1435312227e-02, "b2": 1.9633220911e-01, "b3": 8.0842031232e-02, "b4": 9.0025542308e-02},
    6.6279236551e-03,
    ("b2", 0.154858),
)


def misra1a(b, x):
    return b["b1"] * (1 - torch.exp(-b["b2"] * x))


def mgh09(b, x):
    return b["b1"] * (x**2 + x * b["b2"]) / (x**2 + x * b["b3"] + b["b4"])


@pytest.mark.parametrize(("model", "table"), [(misra1a, MISRA1A), (mgh09, MGH09)], ids=["Misra1a", "MGH09"])
def test_certified_and_observed_standard_deviations(model, table):
    x, y, certified, deviations, sigma, (name, observed) = table
    data = tuple(torch.tensor(v, dtype=torch.float64)[:, None] for v in (x, y))
    parameters = {k: torch.tensor(v, dtype=torch.float64) for k, v in certified.items()}
    objective = rp.Objective(model, rp.Gaussian(sigma), data, params=parameters, reduction="sum")
    names = list(certified)

    def errors(operator):
        return operator.to_dense().inverse().diagonal().sqrt()

    expected = torch.tensor([deviations[k] for k in names], dtype=torch.float64)
    torch.testing.assert_close(errors(rp.ggn(objective, "dense")), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(errors(rp.fisher(objective, "expected", "dense")), expected, rtol=1e-6, atol=0)
    found = errors(rp.hessian(objective, "dense"))[names.index(name)]
    assert float(found) == pytest.approx(observed, rel=5e-6)
    assert float(found) != pytest.approx(deviations[name], rel=1e-3)
