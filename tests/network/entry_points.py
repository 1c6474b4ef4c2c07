"""Entry points that take a model, each beside what its result is by its definition, for ``test_entry_points``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.func import jacrev

import raphson as rp

from .condition_cases import LOSS
from .network_cases import by_definition

LIKELIHOOD = rp.Categorical()
Model = Any


def parameters(model: Model) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def kept(model: Model) -> Tensor:
    return torch.cat([torch.full((p.numel(),), p.requires_grad) for p in model.parameters()])


def dense(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, gradient, Gauss-Newton matrix and Jacobian ``(N, C, P)`` of the mean loss."""
    found, keep = by_definition(model, LOSS, x, y, None, "mean", 0.0), kept(model)
    jacobian = found.jacobian[..., keep]
    return found.value, found.gradient[keep], found.ggn[keep][:, keep], jacobian.reshape(len(y), -1, int(keep.sum()))


@dataclass(frozen=True)
class Entry:
    """An entry point.

    ``make(model, x, y)`` makes what a user holds on to and returns a function without arguments that uses it;
    ``expected(model, x, y)`` is what that returns, of a model as it is before the use.
    """

    name: str
    make: Callable[[Model, Tensor, Tensor], Callable[[], Tensor]]
    expected: Callable[[Model, Tensor, Tensor], Tensor]
    once: bool = False  # whether a use changes the state, so that there is none before a change of the model
    reals: bool = False  # whether inputs must be real numbers
    trains: bool = False  # whether chance and statistics of the batch are its business

    def __repr__(self) -> str:
        return self.name


def moved(model: Model, loss: Callable[[], Tensor]) -> Tensor:
    """The loss that a step returns, and how far it went."""
    before = parameters(model)
    value = loss()
    return torch.cat([value.detach().double().reshape(1), parameters(model) - before])


FAR = 1e12  # a damping beside which no curvature is seen: the step is the gradient


def kfac_step(model: Model, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    step = rp.optim.FixedStep(averaging=0.0, norm_constraint=math.inf)
    curvature = rp.optim.CurvatureOptions(estimator="empirical")
    opt = rp.optim.KFAC(model, LIKELIHOOD, lr=FAR, damping=FAR, step_size=step, curvature=curvature, averaging=False)
    return lambda: moved(model, lambda: opt.step(x, y))


def kfac_expected(model: Model, x: Tensor, y: Tensor) -> Tensor:
    value, gradient, *_ = dense(model, x, y)
    return torch.cat([value.reshape(1), -gradient])


def marquardt_step(model: Model, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    opt = rp.optim.LevenbergMarquardt(model, LIKELIHOOD, damping=10.0, geodesic=False)
    return lambda: moved(model, lambda: opt.step(x, y))


def marquardt_expected(model: Model, x: Tensor, y: Tensor) -> Tensor:
    value, gradient, g, _ = dense(model, x, y)
    scales = torch.where(g.diagonal() > 1e-300, g.diagonal(), 1.0)
    return torch.cat([value.reshape(1), -torch.linalg.solve(g + 10.0 * torch.diag(scales), gradient)])


def newton_step(model: Model, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    opt = rp.optim.NewtonCG(model, LIKELIHOOD, curvature="ggn", max_products=1)
    return lambda: moved(model, lambda: opt.step(x, y))


def newton_expected(model: Model, x: Tensor, y: Tensor) -> Tensor:
    value, gradient, g, _ = dense(model, x, y)
    return torch.cat([value.reshape(1), -(gradient @ gradient) / (gradient @ g @ gradient) * gradient])


def posterior(model: Model, x: Tensor, y: Tensor) -> Any:
    return rp.laplace(model, LIKELIHOOD, (x, y), structure="dense")


def precision(model: Model, x: Tensor, y: Tensor) -> Tensor:
    g = dense(model, x, y)[2]
    return len(y) * g + torch.eye(len(g), dtype=g.dtype)


def covariances(model: Model, x: Tensor, y: Tensor) -> Tensor:
    jacobian = dense(model, x, y)[3]
    return jacobian @ torch.linalg.solve(precision(model, x, y), jacobian.mT)


def left_out(model: Model, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        f = model(x)
    h, g, s = LIKELIHOOD.fisher(f, y).to_dense(), LIKELIHOOD.gradient(f, y), covariances(model, x, y)
    u = torch.linalg.solve(torch.eye(f.shape[-1], dtype=f.dtype) - h @ s, g)
    return (s @ u.unsqueeze(-1)).squeeze(-1)


def held_jacobian(product: Callable[[Any, Tensor], Tensor]) -> Callable[[Model, Tensor, Tensor], Callable[[], Tensor]]:
    def make(model: Model, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        jacobian = rp.jacobian(model, x)
        return lambda: product(jacobian, x)

    return make


def direction(size: int) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=torch.float64)


def inputs_jacobian(model: Model, x: Tensor, graph: bool = False) -> Tensor:
    """Each example by itself and each output by itself, backward: what no transformation can get wrong."""
    rows = []
    for row in x:
        leaf = row.unsqueeze(0).clone().requires_grad_()
        f = model(leaf).squeeze(0)
        parts = [torch.autograd.grad(c, leaf, create_graph=True, materialize_grads=True)[0].squeeze(0) for c in f]
        rows.append(torch.stack(parts))
    return torch.stack(rows) if graph else torch.stack(rows).detach()


def penalty(model: Model, x: Tensor) -> Tensor:
    """The penalty and its gradient in the parameters."""
    value = rp.contractive_penalty(model, x)
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(value, trained, materialize_grads=True, allow_unused=True)
    return torch.cat([value.detach().reshape(1), *(part.reshape(-1) for part in parts)])


def penalty_expected(model: Model, x: Tensor) -> Tensor:
    value = inputs_jacobian(model, x, graph=True).square().sum() / len(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(value, trained, materialize_grads=True, allow_unused=True)
    return torch.cat([value.detach().reshape(1), *(part.reshape(-1) for part in parts)])


def second(model: Model, x: Tensor) -> Tensor:
    from .network_cases import flat_call

    def plain_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
        return v * g / v.norm(dim=1, keepdim=True)

    call, theta = flat_call(model, x)
    keep = kept(model)
    with mock.patch.object(torch, "_weight_norm", plain_norm):  # torch's own is wrong under vmap (torch 2.13)
        return jacrev(jacrev(call))(theta)[..., keep, :][..., keep]


ENTRIES = [
    Entry("KFAC.step", kfac_step, kfac_expected, trains=True),
    Entry("LevenbergMarquardt.step", marquardt_step, marquardt_expected, once=True),
    Entry("NewtonCG.step", newton_step, newton_expected, once=True),
    Entry("laplace", lambda m, x, y: lambda: posterior(m, x, y).precision.to_dense(), precision),
    Entry(
        "Posterior.predict",
        lambda m, x, y: (post := posterior(m, x, y)) and (lambda: post.predict(x).output_covariance),
        covariances,
    ),
    Entry(
        "influence",
        lambda m, x, y: (post := posterior(m, x, y)) and (lambda: rp.influence(post, range(len(y))).outputs),
        left_out,
    ),
    Entry("jacobian", lambda m, x, y: lambda: rp.jacobian(m, x).to_dense(), lambda m, x, y: dense(m, x, y)[3]),
    Entry("Jacobian.to_dense", held_jacobian(lambda j, x: j.to_dense()), lambda m, x, y: dense(m, x, y)[3]),
    Entry(
        "Jacobian.mv",
        held_jacobian(lambda j, x: j.mv(direction(j.shape[-1]))),
        lambda m, x, y: (j := dense(m, x, y)[3]) @ direction(j.shape[-1]),
    ),
    Entry(
        "Jacobian.rmv",
        held_jacobian(lambda j, x: j.rmv(direction(j.outputs.numel()).view(j.outputs.shape))),
        lambda m, x, y: torch.einsum(
            "ncp,nc->p", j := dense(m, x, y)[3], direction(j[..., 0].numel()).view(j.shape[:2])
        ),
    ),
    Entry(
        "input_jacobian",
        lambda m, x, y: lambda: rp.input_jacobian(m, x),
        lambda m, x, y: inputs_jacobian(m, x),
        reals=True,
    ),
    Entry("second_derivatives", lambda m, x, y: lambda: rp.second_derivatives(m, x), lambda m, x, y: second(m, x)),
    Entry(
        "contractive_penalty",
        lambda m, x, y: lambda: penalty(m, x),
        lambda m, x, y: penalty_expected(m, x),
        reals=True,
        trains=True,
    ),
]
