r"""The Hessian of a network's objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from raphson.data import Batch
from raphson.linalg import Dense, Diagonal, Implicit, SymmetricOperator
from raphson.network._objective import Objective
from raphson.network._required import check_objective
from raphson.network.autodiff._linearize import GradientGraph
from raphson.network.curvature._preactivation import preactivation_diagonal
from raphson.network.curvature._products import BatchProducts, NetworkProducts
from raphson.network.curvature._structures import Blocks, Structure, block_diagonal, check_structure
from raphson.network.curvature.factors._output_curvature import OutputCurvature
from raphson.network.layers._feed_forward_products import FeedForwardProducts, in_parts

_OBSERVED = OutputCurvature("observed")


def hessian(
    objective: Objective,
    structure: Structure = "implicit",
    *,
    blocks: Blocks = "tensor",
    params: str | Iterable[str] | None = None,
) -> SymmetricOperator:
    r"""Return the Hessian of an objective, the exact matrix of second derivatives.

    .. math::
        \nabla^2 L = s \sum_n w_n \Big[ J_n^\top H_n J_n + \sum_c g_{nc} \nabla^2 f_c(x_n) \Big] + \lambda I

    with the gradient :math:`g_n` and the Hessian :math:`H_n` of the loss in the outputs, and the sum, the scale and the
    weights of the objective. It is symmetric and in general indefinite.

    The diagonal of a ``Sequential`` of linear layers and elementwise activations comes from Hessians in its
    pre-activations, at a few gradients' cost; that of another model from one product for each parameter.

    Args:
        objective: The objective.
        structure: ``"implicit"`` (products), ``"dense"``, ``"diagonal"`` (exact), or ``"blocks"`` (exact blocks on the
            diagonal).
        blocks: For ``"blocks"``: one for each parameter (``"tensor"``) or for each module (``"layer"``).
        params: Names or prefixes of parameters: the rows and columns of these only.

    Returns:
        Symmetric operator ``(P, P)``, labeled unless very large; ``InputError`` if a word is not one of those above.

    References:
        B. A. Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6, 147-160. A. Botev,
        H. Ritter and D. Barber (2017), Practical Gauss-Newton optimisation for deep learning, ICML.

    Examples:
        The loss :math:`\tfrac12 (a b - 1)^2` at :math:`a = b = 0` has a saddle point.

        >>> import torch
        >>> import raphson as rp
        >>> model = lambda params, x: params["a"] * params["b"] * x
        >>> params = {"a": torch.zeros(1), "b": torch.zeros(1)}
        >>> objective = rp.Objective(model, rp.Gaussian(), (torch.ones(1, 1), torch.ones(1, 1)), params=params)
        >>> rp.hessian(objective, "dense").to_dense()
        tensor([[ 0., -1.],
                [-1.,  0.]])
    """
    check_objective(objective)
    check_structure(structure, blocks)
    objective = objective if params is None else objective.restricted(params)
    if structure == "blocks":
        return block_diagonal(objective, blocks, lambda part: _implicit(part).to_dense())
    if structure == "diagonal" and objective.feed_forward is not None:
        diagonal = preactivation_diagonal(objective, objective.feed_forward)
        return Diagonal(diagonal + objective.l2, labels=objective.space.labels())
    implicit = _implicit(objective)
    if structure == "dense":
        dense = implicit.to_dense()
        return Dense((dense + dense.mT) / 2, labels=implicit.labels)
    if structure == "diagonal":
        return Diagonal(implicit.diagonal(), labels=implicit.labels)
    return implicit


def _implicit(objective: Objective) -> Implicit:
    objective.check_products(second=True)

    def linearize(batch: Batch, index: int, _: float) -> BatchProducts:
        derivatives, network = partial(_derivatives, objective, batch, index), objective.feed_forward
        if network is None:
            return BatchProducts(GradientGraph(objective.model, batch.x, objective.traits, derivatives).products)
        closed = FeedForwardProducts(network, objective.space, network.features(batch.x), second=True)
        gradient, middle = derivatives(closed.outputs)
        closed.set_gradient(gradient)
        product = partial(closed.hessian_product, middle=middle)
        return BatchProducts(partial(in_parts, product, width=closed.width), closed.nbytes)

    return NetworkProducts(objective, linearize).operator()


def _derivatives(
    objective: Objective, batch: Batch, index: int, f: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the gradient of the loss in the outputs, and the product with its Hessian."""
    objective.check_outputs(f, batch, index)
    with torch.no_grad():
        gradient = objective.scaled(objective.likelihood.gradient(f, batch.y), batch)
        return gradient, _OBSERVED.product(objective, f, batch, index)


Objective.curvatures["hessian"] = hessian
