"""Shapes against arrays that are really formed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import raphson as rp


def test_shapes_are_those_of_the_arrays() -> None:
    n, d = 6, 3
    model = torch.nn.Linear(d, 4, dtype=torch.float64)
    likelihood = rp.HeteroscedasticGaussian()
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)
    f = model(x).detach()
    parameters = dict(model.named_parameters())

    def outputs(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, values, (x,))

    jacobian = torch.cat([j.reshape(n, 4, -1) for j in torch.func.jacrev(outputs)(parameters).values()], -1)
    rows = rp.shapes(n=n, c=4, p=16).to_frame()
    assert rows.loc["outputs", "all_examples"] == tuple(f.shape)
    assert rows.loc["output gradient", "all_examples"] == tuple(likelihood.gradient(f, y).shape)
    assert rows.loc["output Hessian", "all_examples"] == tuple(likelihood.hessian(f, y).shape)
    assert rows.loc["Jacobian", "all_examples"] == tuple(jacobian.shape)
    assert rows.loc["Jacobian", "all_examples_bytes"] == jacobian.numel() * jacobian.element_size()
    average = torch.einsum("ncp,ncd,ndq->pq", jacobian, likelihood.hessian(f, y).to_dense(), jacobian) / n
    assert rows.loc["parameter Hessian", "averaged"] == tuple(average.shape)
    assert rows.loc["parameter Hessian", "averaged_bytes"] == 16 * 16 * 8
    kept = rp.average_hessian(likelihood, f, y)
    assert rows.loc["output Hessian", "averaged"] == tuple(kept.shape)


def test_an_objective_of_a_sequence_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    x, y = torch.randn(7, 4, 3), torch.randint(0, 2, (7, 4))
    objective = rp.Objective(model, rp.Categorical(), (x, y))
    table = rp.shapes(objective)
    assert table.sizes == (7, 2, 32, (4,), 4)
    frame = table.to_frame()
    assert frame.loc["outputs", "all_examples"] == (7, 4, 2)
    assert frame.loc["output Hessian", "per_example"] == (4, 2, 2)
    assert frame.loc["parameter Hessian", "averaged_bytes"] == 32 * 32 * 4
    assert "N = 7 examples, T = 4 positions, C = 2 outputs, P = 32 parameters; 4 bytes a number" in str(table)


def test_a_fitted_linear_estimator() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)
    model = rp.MultinomialLogisticRegression()
    with pytest.raises(rp.InputError, match="not fitted yet"):
        rp.shapes(model)
    assert rp.shapes(model.fit(x, y)).sizes == (60, 3, 6, (), 8)
    counts = rp.VectorGLM(rp.Poisson()).fit(x, y)
    assert rp.shapes(counts).sizes == (60, 1, 3, (), 8)


def test_nothing_that_is_averaged_grows_with_the_number_of_examples() -> None:
    small, large = (rp.shapes(n=n, c=2, p=50).to_frame() for n in (10, 10**9))
    assert small["averaged_bytes"].equals(large["averaged_bytes"])
    assert small["per_example_bytes"].equals(large["per_example_bytes"])


def test_text_and_html() -> None:
    table = rp.shapes(n=1000, c=2, p=50_000)
    text = str(table)
    assert "1,000 x 2 x 2  31.2 KiB" in text
    assert "50,000 x 50,000  18.6 GiB" in text
    assert "N counts examples" in text and "Neither grows with N" in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 150
    assert "<td>parameter Hessian</td>" in table._repr_html_()
    assert "18.6 GiB" in table._repr_html_()


def test_bad_sizes_are_one_sentence() -> None:
    with pytest.raises(rp.InputError, match="shapes.. needs c, p"):
        rp.shapes(n=3)
    with pytest.raises(rp.InputError, match="c is 0, but it must be 1 or more"):
        rp.shapes(n=3, c=0, p=2)
    with pytest.raises(rp.InputError, match="not both"):
        rp.shapes(object(), n=3)
    with pytest.raises(rp.InputError, match="does not know the sizes of a list"):
        rp.shapes([1])
