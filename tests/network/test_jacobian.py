"""Jacobians, second derivatives and per-example gradients of networks against torch.func and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev

import raphson as rp

from .network_cases import BY_NAME, DTYPE, LOSSES, C, D, N, T, draw, flat_call, network


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_jacobian_of_the_outputs_in_the_parameters():
    model = network()
    x, _, _ = draw(BY_NAME["categorical"])
    call, theta = flat_call(model, x)
    expected = jacrev(call)(theta)
    J = rp.jacobian(model, x)
    p = len(theta)
    assert J.shape == (N, T, C, p) and J.dtype == DTYPE
    close(J.to_dense(), expected)
    close(J.outputs, model(x).detach())
    g = torch.Generator().manual_seed(0)
    v, u = torch.randn(p, 2, dtype=DTYPE, generator=g), torch.randn(N, T, C, 2, dtype=DTYPE, generator=g)
    close(J.mm(v), expected @ v)
    close(J.mv(v[:, 1]), expected @ v[:, 1])
    close(J.rmm(u), torch.einsum("ntcp,ntck->pk", expected, u))
    close(J.rmv(u[..., 0]), torch.einsum("ntcp,ntc->p", expected, u[..., 0]))
    by_parameter = J.by_parameter()
    assert by_parameter["2.weight"].shape == (N, T, C, C, 4)
    close(by_parameter["0.weight"].flatten(3), expected[..., :12])
    matrix = J.matrix()
    assert matrix.shape == (N * T * C, p)
    close(matrix.to_dense(), expected.reshape(-1, p))
    close(rp.jacobian(model, x, params="2.bias").to_dense(), expected[..., -C:])
    with pytest.raises(rp.InputError, match=r"vector of outputs has shape \(2,\)"):
        J.rmv(torch.ones(2, dtype=DTYPE))
    with pytest.raises(rp.InputError, match="training mode"):
        rp.jacobian(nn.Sequential(nn.Linear(D, C), nn.Dropout()), x.float())


def test_jacobian_of_the_outputs_in_the_inputs():
    model = network()
    x, _, _ = draw(BY_NAME["categorical"])
    full = jacrev(model)(x)
    own = torch.stack([full[n, :, :, n] for n in range(N)])
    J = rp.input_jacobian(model, x)
    assert J.shape == (N, T, C, T, D)
    close(J, own.detach())

    def two(params, token, left, right):
        return model(left * right) + params["table"][token]

    params = {"table": torch.randn(4, C, dtype=DTYPE)}
    inputs = {"token": torch.zeros(N, T, dtype=torch.long), "left": x, "right": torch.ones_like(x)}
    found = rp.input_jacobian(two, inputs, params)
    assert set(found) == {"left", "right"}
    close(found["left"], own.detach())
    close(rp.input_jacobian(two, tuple(inputs.values()), params)[0], own.detach())
    with pytest.raises(rp.InputError, match="nothing to differentiate in"):
        rp.input_jacobian(lambda p, i: p["table"][i], inputs["token"][:, 0], params)


def test_second_derivatives_of_a_vector_function():
    model = network()
    x, _, _ = draw(BY_NAME["categorical"], (2, T))
    call, theta = flat_call(model, x)
    expected = hessian(lambda t: call(t).reshape(-1))(theta).reshape(2, T, C, len(theta), len(theta))
    close(rp.second_derivatives(model, x), expected)
    close(rp.second_derivatives(model, x, "0"), expected[..., :16, :16])
    large = nn.Linear(100, 100)
    with pytest.raises(rp.TooLargeError, match="1 x 100 x 10100 x 10100"):
        rp.second_derivatives(large, torch.zeros(1, 100))
    with pytest.raises(rp.TooLargeError, match="30000 x 100 x 10100"):
        rp.jacobian(large, torch.zeros(30000, 100)).to_dense()
    o = rp.Objective(nn.Linear(200, 100), rp.Gaussian(), (torch.zeros(1, 200), torch.zeros(1, 100)))
    for call in (rp.hessian, rp.ggn):
        with pytest.raises(rp.TooLargeError, match="20100 x 20100"):
            call(o, "dense")


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_of_each_example(loss):
    model = network(loss.outputs)
    x, y, weight = draw(loss)
    call, theta = flat_call(model, x)
    expected = []
    for n in range(N):
        rows = lambda t, n=n: sum(loss.row(call(t)[n, i], y[n, i]) for i in range(T))  # noqa: E731
        expected.append(torch.func.grad(rows)(theta))
    expected = torch.stack(expected)
    likelihood = loss.build()
    o = rp.Objective(model, likelihood, [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])])
    close(rp.example_gradients(o), expected)
    close(rp.example_gradient_norms(o), expected.norm(dim=1))
    close(o.gradient(), o.scale * weight @ expected)
