r"""What single examples do to a fit: parameters, predictions and losses without them.

Without example n, the curvature loses :math:`w_n J_n^\top H_n J_n` and the gradient at the mode is
:math:`-w_n J_n^\top g_n`. One Newton step from there is, with the output covariance
:math:`S_n = J_n \Lambda^{-1} J_n^\top` (the push-through identity),

.. math:: \Delta_n = \Lambda^{-1} J_n^\top u_n, \qquad u_n = w_n (I - w_n H_n S_n)^{-1} g_n, \qquad
    J_n \Delta_n = S_n u_n ,

which is exact for a linear model with squared error. :math:`H_n` is the expected output Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.laplace._posterior import Posterior


class Influence(NamedTuple):
    """The effect of leaving out single examples.

    Attributes:
        rows: Their numbers, ``(n,)``.
        parameters: Change of the parameters, ``(n, P)``.
        outputs: Change of the example's own outputs, ``(n, C)``.
        loss: Its own loss without it, minus that with it, ``(n,)``.
        cook: Cook's distance, the change in standard deviations of the posterior:
            ``parameters^T precision parameters / P``, ``(n,)``.
    """

    rows: Tensor
    parameters: Tensor
    outputs: Tensor
    loss: Tensor
    cook: Tensor


class _Fitted(Protocol):
    """A fitted linear model, which knows the influence of its rows itself."""

    def influence(self, rows: Sequence[int] | Tensor | slice) -> Influence:
        """Return what it would be without single rows."""
        ...


def influence(post: Posterior | _Fitted, rows: Sequence[int] | Tensor | slice) -> Influence:
    r"""Return what a fit would be without single examples, one at a time.

    Args:
        post: The posterior of a network at the mode of its penalized loss, with the data that it was made of; or a
            fitted linear model (``VectorGLM``, ``MultinomialLogisticRegression``) with its rows.
        rows: Numbers of examples, counted from 0 over all batches, or a slice.

    Returns:
        The effects, to first order in the weight of an example for networks and with the correction for leverage; for a
        linear model with squared error those of fitting again. Of Kronecker structures they are those of these. A
        linear model takes a Newton step with its own Hessian (``VectorGLM.influence``).

    Raises:
        InputError: The posterior has no data, or a number is none of its examples, or outputs have several positions.

    References:
        R. D. Cook (1977), Detection of influential observation in linear regression, Technometrics 19. P. W. Koh and
        P. Liang (2017), Understanding black-box predictions via influence functions, ICML. R. Grosse et al. (2023),
        Studying large language model generalization with influence functions.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.5)
        >>> data = torch.ones(2, 1), torch.tensor([[1.0], [2.0]])
        >>> post = rp.laplace(model, rp.Gaussian(), data, structure="dense", prior_precision=1e-6)
        >>> rp.influence(post, [1]).parameters
        tensor([[-0.5000]])
    """
    if not isinstance(post, Posterior):
        if not hasattr(post, "influence"):
            raise InputError(
                f"{type(post).__name__} has no influence of rows: give a posterior or a fitted linear model."
            )
        return post.influence(rows)
    objective = post.objective
    if not post.complete:
        raise InputError("This posterior has no data (it was updated, loaded or unpickled): make it from them again.")
    if post.entries is not None:
        raise InputError("The influence on a subnetwork of single entries is not known: use subset='all' or names.")
    n = objective.n_examples
    numbers = row_numbers(rows, n)
    found: dict[int, tuple[Tensor, ...]] = {}
    first = 0
    for batch in objective.batches():
        here = [int(i) for i in numbers if first <= int(i) < first + batch.n_examples]
        for i in here:
            part = batch.rows(slice(i - first, i - first + 1))
            found[i] = _of_one(post, part.x, part.y, None if part.weight is None else part.weight.to(post.mean.dtype))
        first += batch.n_examples
    parameters, outputs, loss, cook = (
        torch.stack(part) for part in zip(*(found[int(i)] for i in numbers), strict=True)
    )
    return Influence(numbers, parameters, outputs, loss, cook)


def row_numbers(rows: Sequence[int] | Tensor | slice, n: int) -> Tensor:
    """Return numbers of rows from 0 to ``n - 1``; ``InputError`` for one that is none, or for no row at all."""
    if isinstance(rows, slice):
        numbers = torch.arange(n)[rows]
    else:
        try:
            given = torch.as_tensor(rows).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            given = torch.ones(1)  # no whole numbers
        if given.dtype == torch.bool or (given.numel() and given.is_floating_point()):
            raise InputError("rows are numbers of rows, counted from 0, such as [0, 5], or a slice.")
        numbers = given.long()
    wrong = (numbers < -n) | (numbers >= n)
    if bool(wrong.any()):
        raise InputError(f"Row {int(numbers[wrong][0])} is none of the {n} examples, which count from 0.")
    if not numbers.numel():
        raise InputError(f"rows names none of the {n} examples: give at least one number.")
    return numbers % n


def _of_one(post: Posterior, x: Any, y: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """Return the effects of one example."""
    likelihood, objective = post.objective.likelihood, post.objective
    ((f, spread),) = post.output_covariances(x)
    if f.ndim > 2:
        raise InputError(
            f"Outputs have shape {tuple(f.shape[1:])}, several positions of an example, whose influences are not apart."
        )
    w = (1.0 if weight is None else float(weight)) / post.temperature
    h, g = likelihood.fisher(f, y).to_dense()[0], likelihood.gradient(f, y)[0]
    eye = torch.eye(len(g), dtype=f.dtype, device=f.device)
    u = w * torch.linalg.solve(eye - w * h @ spread[0], g)
    moved = spread[0] @ u
    leaves = objective.model.leaves()
    with torch.enable_grad():
        outputs = objective.model.call(leaves, x)
    parts = torch.autograd.grad(outputs, list(leaves.values()), u.unsqueeze(0), materialize_grads=True)
    pull = torch.cat([part.reshape(-1) for part in parts])
    change = post.precision.solve(pull)
    loss = likelihood.nll(f + moved, y) - likelihood.nll(f, y)
    return change, moved, loss[0], (pull @ change) / post.n_parameters
