r"""The Gauss-Newton matrix and the Fisher information of a network: :math:`J^\top M J` summed over the data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal

import torch

from raphson._errors import InputError, RaphsonWarning
from raphson.linalg import SymmetricOperator
from raphson.network._chance import check_draws
from raphson.network._objective import Objective
from raphson.network._required import check_objective
from raphson.network.curvature._gauss_newton import Keep, gauss_newton_products
from raphson.network.curvature._structures import Blocks, Structure, check_structure, gauss_newton_structure
from raphson.network.curvature.factors._output_curvature import OutputCurvature


def ggn(
    objective: Objective,
    structure: Structure = "implicit",
    *,
    kind: Literal["observed", "expected"] | None = None,
    blocks: Blocks = "tensor",
    params: str | Iterable[str] | None = None,
    keep: Keep = "auto",
) -> SymmetricOperator:
    r"""Return the generalized Gauss-Newton matrix of an objective.

    .. math::
        G = s \sum_n w_n\, J_n^\top H_n J_n + \lambda I, \qquad
        J_n = \frac{\partial f(x_n)}{\partial\theta}, \quad H_n = \frac{\partial^2 \ell}{\partial f^2}

    with the sum, the scale :math:`s` and the weights of the objective. It is the Hessian without the curvature of the
    model, positive semi-definite wherever the likelihood is log-concave in its outputs, and equal to the Hessian for a
    model that is piecewise linear in its parameters.

    Products are passes over the network, or products with :math:`J` itself, cached by layer: its factors where a linear
    layer has few positions, its block elsewhere. The two differ by rounding only.

    Args:
        objective: The objective.
        structure: ``"implicit"`` (products), ``"dense"``, ``"diagonal"`` (exact), or ``"blocks"`` (exact blocks on the
            diagonal).
        kind: ``"observed"`` takes :math:`H_n` at the data, ``"expected"`` its mean under the model (the Fisher
            information). None is ``"observed"``, except for a likelihood that is not log-concave: there the observed
            one would be indefinite, and ``"expected"`` is taken, with a warning.
        blocks: For ``"blocks"``: one for each parameter (``"tensor"``) or for each module (``"layer"``).
        params: Names or prefixes of parameters: the rows and columns of these only.
        keep: For ``"implicit"``: whether to cache the Jacobian between products. With E outputs of an example (C, times
            its positions), making it takes as long as about E / 2 products; it takes ``N (E out + in)`` numbers for
            each position of a linear layer, ``N E`` for each parameter of another. ``"auto"`` does it when about E
            vectors have been asked for, and only where all that is cached takes less than 512 MiB; True at the first
            product, whatever it takes; False never. Where no layers explain the Jacobian, products stay passes.

    Returns:
        Symmetric operator ``(P, P)``, in the units of the loss per unit of two parameters, labeled unless very large.

    Raises:
        InputError: An argument is not one of those above.

    References:
        N. N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent, Neural
        Computation 14, 1723-1738. J. Martens (2020), New insights and perspectives on the natural gradient method,
        JMLR 21(146).

    Examples:
        For a linear model with squared error it is the mean of :math:`x x^\top`.

        >>> import torch
        >>> import raphson as rp
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> objective = rp.Objective(torch.nn.Linear(2, 1, bias=False), rp.Gaussian(), (x, torch.zeros(2, 1)))
        >>> rp.ggn(objective, "dense").to_dense()
        tensor([[ 5.,  7.],
                [ 7., 10.]])
        >>> rp.ggn(objective) @ torch.tensor([1.0, 0.0])
        tensor([5., 7.])
    """
    check_objective(objective)
    if kind not in {None, "observed", "expected"}:
        raise InputError(f"kind is {kind!r}, but a Gauss-Newton matrix is 'observed' or 'expected'.")
    if kind is None and not objective.likelihood.concave:
        warnings.warn(
            f"{type(objective.likelihood).__name__} is not log-concave in its outputs, so that its observed Hessian "
            "can be indefinite: this Gauss-Newton matrix takes the expected one. Choose with kind='expected' or "
            "kind='observed'.",
            RaphsonWarning,
            stacklevel=2,
        )
        kind = "expected"
    return gauss_newton(objective, OutputCurvature(kind or "observed"), structure, blocks, params, keep)


def fisher(
    objective: Objective,
    kind: Literal["expected", "mc", "empirical"] = "expected",
    structure: Structure = "implicit",
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    blocks: Blocks = "tensor",
    params: str | Iterable[str] | None = None,
    keep: Keep = "auto",
) -> SymmetricOperator:
    r"""Return the Fisher information of a network, at the scale and weights of an objective.

    .. math::
        F = s \sum_n w_n\, J_n^\top M_n J_n + \lambda I

    with, for every position :math:`n`, :math:`M_n` the expected Hessian of the loss in the outputs (``expected``), an
    unbiased estimate :math:`\frac1S\sum_s (F_n z_s)(F_n z_s)^\top` of it from random signs :math:`z` and a factor
    :math:`F_n F_n^\top = M_n` (``mc``), or :math:`g_n g_n^\top` with the gradient at the data (``empirical``, which is
    not an estimate of the others). Class weights, ignored targets and label smoothing count as in the loss.

    Args:
        objective: The objective.
        kind: Which one: ``"expected"``, ``"mc"`` or ``"empirical"``.
        structure: ``"implicit"``, ``"dense"``, ``"diagonal"`` or ``"blocks"``, as for ``ggn``.
        samples: :math:`S`, for ``"mc"``; the error falls like :math:`1/\sqrt S`.
        generator: Source of randomness for ``"mc"``, from which one number is drawn; None for a fixed one.
        blocks: ``"tensor"`` or ``"layer"``, for ``structure="blocks"``.
        params: Names or prefixes of parameters: the rows and columns of these only.
        keep: Whether to cache the Jacobian between products, ``"auto"``, True or False, as for ``ggn``.

    Returns:
        Symmetric positive semi-definite operator ``(P, P)``.

    Raises:
        InputError: An argument is not one of those above.

    References:
        J. Martens (2020), New insights and perspectives on the natural gradient method, JMLR 21(146). F. Kunstner,
        L. Balles and P. Hennig (2019), Limitations of the empirical Fisher approximation, NeurIPS.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = rp.Objective(model, rp.Categorical(), (torch.tensor([[2.0]]), torch.tensor([0])))
        >>> rp.fisher(objective, structure="dense").to_dense()
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    check_objective(objective)
    if kind not in {"expected", "mc", "empirical"}:
        raise InputError(f"kind is {kind!r}, but a Fisher information is 'expected', 'mc' or 'empirical'.")
    check_draws(samples, generator)
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return gauss_newton(objective, OutputCurvature(kind, samples, seed), structure, blocks, params, keep)


def gauss_newton(
    objective: Objective,
    middle: OutputCurvature,
    structure: Structure,
    blocks: Blocks,
    params: str | Iterable[str] | None,
    keep: Keep,
) -> SymmetricOperator:
    """Return the sum of ``J^T M J`` with the given structure."""
    check_structure(structure, blocks)
    objective = objective if params is None else objective.restricted(params)
    if structure != "implicit":
        return gauss_newton_structure(objective, middle, structure, blocks)
    return gauss_newton_products(objective, middle, keep)


def _without_warning(objective: Objective) -> SymmetricOperator:
    return ggn(objective, kind="observed" if objective.likelihood.concave else "expected")


Objective.curvatures["gauss-newton"] = _without_warning
