"""K-FAC of a small network: what is stored, how near it is, and a step with it beside a gradient step.

python examples/kfac_network.py
"""

import torch
from torch import nn

import raphson as rp


def move(net: nn.Module, step: torch.Tensor) -> None:
    """Subtract a step from the parameters, in their order."""
    with torch.no_grad():
        vector = nn.utils.parameters_to_vector(net.parameters()) - step
        nn.utils.vector_to_parameters(vector, net.parameters())


def main() -> None:
    """Make data and a network, compare curvatures, and train by damped K-FAC steps and by gradient descent."""
    torch.manual_seed(0)
    x = torch.randn(500, 10, dtype=torch.float64) * torch.logspace(0, -1, 10, dtype=torch.float64)
    y = (x[:, :4] / x[:, :4].std(0) + 0.3 * torch.randn(500, 4)).argmax(1)
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    start = {name: value.clone() for name, value in net.state_dict().items()}

    objective = rp.Objective(net, rp.Categorical(), (x, y), l2=1e-4)
    exact = rp.ggn(objective, "dense").to_dense()
    factors = rp.kfac(objective, "exact")
    print(factors.report())
    for name, operator in (
        ("K-FAC", factors),
        ("EKFAC", rp.ekfac(objective)),
        ("diagonal", rp.ggn(objective, "diagonal")),
    ):
        distance = (operator.to_dense() - exact).norm() / exact.norm()
        print(f"{name:9s} relative distance to the Gauss-Newton matrix {distance:.2f}")

    steps = 40
    net.load_state_dict(start)
    for _ in range(steps):
        move(net, objective.gradient() / 2)
    print(f"gradient descent: loss {float(objective.value()):.4f} after {steps} steps")

    net.load_state_dict(start)
    damping, loss = 0.1, float(objective.value())
    for _ in range(steps):
        step = rp.kfac(objective, "exact").shift(damping).solve(objective.gradient())
        move(net, step)
        after = float(objective.value())
        if after < loss:  # a step that helps is kept, and the next may be longer
            damping, loss = damping / 2, after
        else:
            move(net, -step)
            damping *= 4
    print(f"K-FAC:            loss {loss:.4f} after {steps} steps, damping {damping:.1e}")


if __name__ == "__main__":
    main()
