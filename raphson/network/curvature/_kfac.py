r"""Kronecker-factored curvature of a network: K-FAC, KFLR and KFRA."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from raphson._errors import InputError
from raphson.network._objective import Objective
from raphson.network._required import check_objective
from raphson.network.curvature._kfra import kfra
from raphson.network.curvature.factors._kronecker_factors import Sharing
from raphson.network.curvature.factors._layer_operator import LayerOperator
from raphson.network.curvature.factors._layer_plan import Bias
from raphson.network.curvature.factors._layer_sums import LayerSums
from raphson.network.curvature.factors._output_factor import Sampling, sampling_of
from raphson.network.curvature.factors._recorded_batches import recorded_batches

Estimator = Literal["exact", "mc", "empirical", "recursive"]


def kfac(
    objective: Objective,
    estimator: Estimator = "exact",
    sharing: Sharing = "expand",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    bias: Bias = "joint",
) -> LayerOperator:
    r"""Return the Gauss-Newton matrix of a network, layer by layer, as Kronecker products.

    With inputs :math:`a` and output gradients :math:`g` of a layer with weight :math:`W` (out, in), its block is
    approximated by

    .. math:: \sum_{n,c} g_{nc} g_{nc}^T \otimes a_n a_n^T \approx
        \Bigl(\sum_{n,c} g_{nc} g_{nc}^T\Bigr) \otimes \Bigl(\frac{\sum_n \omega_n a_n a_n^T}{\sum_n \omega_n}\Bigr),

    where the output factor :math:`u_{nc}`, from which the :math:`g` come by one backward pass each, satisfies
    :math:`\sum_c u_{nc} u_{nc}^T = s\, w_n F_n`: scale, example weight and the likelihood's expected Hessian (for
    the usual likelihoods with their canonical outputs that is the Hessian itself). Class weights and ignored
    targets are inside, in :math:`\omega_n` too. The block is exact for one example, and for a deep linear network
    with squared error.

    Estimators of the output side: ``"exact"`` takes all C vectors (KFLR), ``"mc"`` random combinations of them that
    are right in expectation (K-FAC), ``"empirical"`` the gradient at the data, ``"recursive"`` averages the
    recursion for the pre-activation Gauss-Newton matrix, which needs none (KFRA; ``Sequential`` networks of
    linear layers and elementwise activations). Weights shared over positions (sequences, images): ``"expand"``
    takes positions as examples, exact for a deep linear network with a loss at every position; ``"reduce"`` takes
    the mean input and summed gradient of an example, exact for a deep linear network that ends in a mean or sum
    over positions. If outputs have positions that depend on other positions of a layer (attention), ``"exact"`` and
    ``"empirical"`` need a backward pass for every vector *at every position*: use ``"mc"``.

    Parameters are arranged as the objective's. Linear layers, convolutions (grouped: a product for each group;
    transposed) and embeddings (diagonal input side) have Kronecker blocks. A weight used several times (tied) has the
    sum over its calls, products between different calls left out; used as itself and as its transpose (an
    embedding and the output layer) it is a sum of two Kronecker products, for which ``solve`` is dense. Scales and
    shifts of norms, and every parameter that is used in some other way, have an exact block of up to 256
    parameters or an exact diagonal. A factor of more than 16,384 rows (the output side of a vocabulary) is kept as its
    diagonal. ``report()`` lists what was stored.

    A layer that all examples share, as positions that are looked up once and broadcast, counts as if each example had
    it by itself; its gradients come from examples one by one, which then takes as many passes as there are examples.

    Cost, with F operations of a forward pass, for layers wide against the number of outputs: F forward, half of
    each factor's :math:`2 N d^2` because it is symmetric, and k backward passes of F (less the first layer) for k
    vectors, which go through the network together. Patches of a 3 x 3 convolution that moves by one position cost
    13 :math:`c^2` for c channels, not 40. No array of N x C x C is formed, vectors are taken some at a time. A linear
    layer whose outputs are the model's, reshaped at most, needs no vectors: its output factor is the sum of the
    output Hessians, one product of :math:`2 N C^2` for C classes, and alone (``params=``) it takes any number of
    examples.

    Args:
        objective: The objective; its scale, weights and :math:`\lambda I` are included.
        estimator: How the output side is estimated.
        sharing: How positions with a shared weight are combined.
        samples: Number of random combinations for ``"mc"``.
        generator: Source of randomness for ``"mc"``; None for a fixed one.
        bias: ``"joint"``: a bias is one more column of its weight; ``"separate"``: it has a block of its own.

    Returns:
        A block-diagonal operator ``(P, P)``.

    An argument that is not one of those above, and a module that ``"recursive"`` does not know, raise ``InputError``.
    ``TooLargeError`` refuses a factor of ``"recursive"`` that is too large, and an ``"exact"`` that would take hours
    in the layers below the outputs: its C vectors of C outputs, at every position of all examples (of a vocabulary,
    say), are counted first.

    References:
        J. Martens and R. Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature.
        A. Botev, H. Ritter and D. Barber (2017), Practical Gauss-Newton optimisation for deep learning.
        R. Eschenhagen et al. (2023), Kronecker-factored approximate curvature for modern neural network
        architectures.

    Examples:
        Least squares with one layer: the Hessian of the mean is :math:`I \otimes X^T X / N`.

        >>> import torch
        >>> from raphson.network._objective import Objective
        >>> from raphson.likelihoods import Gaussian
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]]), torch.zeros(4, 1)
        >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), Gaussian(), (x, y))
        >>> kfac(objective).to_dense()
        tensor([[1., 1.],
                [1., 2.]])
    """
    check_objective(objective)
    check_options(sharing, bias)
    _check_estimator(estimator)
    if estimator == "recursive":
        return kfra(objective, bias)
    return layer_sums(objective, sampling_of(objective, estimator, samples, generator), sharing, bias).operator()


def _check_estimator(estimator: str) -> None:
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator is {estimator!r}, but it must be one of {', '.join(get_args(Estimator))}.")


def layer_sums(
    objective: Objective, sampling: Sampling, sharing: Sharing, bias: Bias, outer: bool = False
) -> LayerSums:
    """Return the blocks of all batches; with ``outer``, vectors will be needed in the layer of the outputs, too."""
    sums: LayerSums | None = None
    for recorded in recorded_batches(objective, sampling.mixed):
        sums = sums or LayerSums(objective, recorded, sharing, bias)
        sums.add(recorded, sampling, outer)
    assert sums is not None
    return sums


def check_options(sharing: Sharing, bias: Bias) -> None:
    """Raise ``InputError`` for a value that is not one of the possible ones."""
    for name, value, known in (("sharing", sharing, ("expand", "reduce")), ("bias", bias, ("joint", "separate"))):
        if value not in known:
            raise InputError(f"{name} is {value!r}, but it must be {known[0]!r} or {known[1]!r}.")
