r"""Posteriors from a trained network and its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from raphson._errors import IndefiniteError, InputError
from raphson.laplace._arguments import positive_number, whole_number
from raphson.laplace._curvature import Curvature, Kind, Structure, curvature_of
from raphson.laplace._evidence import Residuals
from raphson.laplace._posterior import Posterior
from raphson.laplace._prior import make_prior, parts_modules
from raphson.likelihoods import Gaussian, HeteroscedasticGaussian, Likelihood
from raphson.linalg import Dense, Diagonal, cholesky
from raphson.network import Objective

_SUBSETS = ("all", "last_layer", "largest_variance", "random")


def laplace(
    model: nn.Module | Callable[..., Tensor],
    likelihood: Likelihood | nn.Module,
    data: Any,
    *,
    structure: Structure = "kfac",
    subset: str | Iterable[str] = "all",
    prior_precision: float | Tensor | Mapping[str, float] = 1.0,
    temperature: float = 1.0,
    kind: Kind = "expected",
    params: Mapping[str, Tensor] | None = None,
    size: int | None = None,
    rank: int = 50,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Posterior:
    r"""Return the Laplace approximation of the posterior of a trained network's parameters.

    .. math::
        p(\theta \mid D) \approx N(\hat\theta, \Lambda^{-1}), \qquad
        \Lambda = \frac1T\, W C(\hat\theta) + \operatorname{diag}(\delta)

    with the parameters :math:`\hat\theta` as they are, the curvature C of the average loss, the total weight W of the
    data (the number of examples or positions), and the prior :math:`\theta \sim N(0, \delta^{-1})`. A weight decay of
    :math:`\lambda` on an average loss is the prior precision :math:`\delta = W \lambda`; on a summed loss it is
    :math:`\lambda` itself.

    ================ ====================================================================================
    structure        :math:`C`
    ================ ====================================================================================
    ``"dense"``      all of it, P x P
    ``"diagonal"``   its exact diagonal
    ``"kfac"``       a Kronecker product for each layer (``raphson.kfac``)
    ``"ekfac"``      the same with corrected eigenvalues (``raphson.ekfac``)
    ``"low_rank"``   a Nystrom approximation of rank ``rank`` plus the diagonal of the rest
    ================ ====================================================================================

    Args:
        model: A module in evaluation mode, or a function ``f(params, *x)``; outputs ``(N, ..., C)``. Of one in half
            precision there is a copy in single, as for ``Objective``.
        likelihood: A likelihood, or a torch loss that stands for one.
        data: The training data, as for ``Objective``.
        structure: One of those above.
        subset: Which parameters are uncertain: ``"all"`` that require gradients, those of the ``"last_layer"`` with
            parameters, names or prefixes; or, for a dense structure, ``size`` entries with the ``"largest_variance"``
            under the diagonal posterior, or at ``"random"``. The others stay as they are. A scale that is a parameter
            of the model is held fixed by leaving it out.
        prior_precision: :math:`\delta`: one number, or numbers by name of a tensor or layer.
        temperature: T; the likelihood is raised to the power 1/T.
        kind: ``"expected"``: Gauss-Newton with the expected output Hessian, the Fisher information, which is never
            indefinite; ``"observed"``: with the output Hessian at the data; ``"hessian"``: the whole Hessian. The last
            two are for dense and diagonal structures and can be indefinite.
        params: For a function: the dictionary of its parameters.
        size: Number of entries of a subnetwork.
        rank: For ``"low_rank"``.
        generator: Source of randomness of a low rank or random subnetwork; None for a fixed one.
        progress: Whether passes over the data show a line on standard error.

    Returns:
        The posterior; ``IndefiniteError`` where the curvature asked for with ``kind`` is indefinite.

    Raises:
        InputError: An argument is not one of those above.

    References:
        D. J. C. MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation 4.
        H. Ritter, A. Botev and D. Barber (2018), A scalable Laplace approximation for neural networks, ICLR.
        E. Daxberger et al. (2021), Laplace redux, NeurIPS; Bayesian deep learning via subnetwork inference, ICML.

    Examples:
        For a linear model it is Bayesian linear regression: :math:`\Lambda = X^T X / \sigma^2 + \delta I`.

        >>> import torch
        >>> import raphson as rp
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0], [3.0]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> post = rp.laplace(model, rp.Gaussian(), (x, y), structure="dense", prior_precision=0.5)
        >>> post.precision.to_dense()
        tensor([[2.5000, 2.0000],
                [2.0000, 4.5000]])
        >>> post.predict(torch.tensor([[1.0, 1.0]])).output_mean
        tensor([[2.]])
    """
    if structure not in get_args(Structure):
        raise InputError(f"structure is {structure!r}, but it must be one of {', '.join(get_args(Structure))}.")
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}, but it must be one of {', '.join(get_args(Kind))}.")
    temperature, rank = positive_number("temperature", temperature), whole_number("rank", rank)
    if kind != "expected" and structure not in {"dense", "diagonal"}:
        raise InputError(f"structure='{structure}' is made of the expected curvature; leave kind={kind!r} out.")
    objective = Objective(model, likelihood, data, params=params, progress=progress)
    objective = _restricted(objective, subset)
    entries: Tensor | None = None
    space = objective.space
    prior = make_prior(space.names, space.sizes, prior_precision, space.empty())
    parted = parts_modules(prior, space.names, space.sizes)
    if isinstance(subset, str) and subset in {"largest_variance", "random"}:
        entries = _entries(objective, subset, structure, size, prior.vector, generator)
        prior = prior.of_entries(entries)
    bias: Literal["joint", "separate"] = "separate" if parted else "joint"
    made = curvature_of(objective, Curvature(structure, kind, bias, rank, generator), entries)
    mean = space.vector() if entries is None else space.vector()[entries]
    loss, gradient, residuals = loss_and_residuals(objective)
    post = Posterior(
        objective=objective,
        structure=structure,
        curvature=made.operator,
        prior=prior,
        mean=mean,
        loss=loss,
        gradient=gradient if entries is None else gradient[entries],
        total_weight=objective.total_weight,
        temperature=temperature,
        bias=bias,
        versions=objective.model.versions(),
        entries=entries,
        residuals=residuals,
        factors=made.factors,
        kind=kind,
    )
    if kind != "expected":
        _refuse_indefinite(post, kind)
    return post


def loss_and_residuals(objective: Objective) -> tuple[float, Tensor, Residuals | None]:
    """Return the summed loss, its gradient and, of a Gaussian with one scale, what the loss depends on."""
    value, gradient = objective.value_and_gradient()
    loss, gradient = float(value) / objective.scale, gradient / objective.scale
    likelihood = objective.likelihood
    scale = torch.as_tensor(likelihood.scale, dtype=torch.float64) if isinstance(likelihood, Gaussian) else None
    if scale is None or scale.numel() > 1:
        return loss, gradient, None
    assert isinstance(likelihood, Gaussian)
    count = objective.total_weight * objective.n_outputs
    sigma = float(scale)
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi) if likelihood.normalized else 0.0
    return loss, gradient, Residuals(2 * sigma**2 * (loss - count * constant), count, sigma, constant)


def _restricted(objective: Objective, subset: str | Iterable[str]) -> Objective:
    """Return the objective in the parameters that are uncertain."""
    names = list(subset) if isinstance(subset, Iterable) and not isinstance(subset, str) else []
    known = subset in _SUBSETS if isinstance(subset, str) else bool(names) and all(isinstance(n, str) for n in names)
    if not known:
        raise InputError(
            f"subset is {subset!r}, but it must be one of {', '.join(_SUBSETS)}, or a list of names of parameters."
        )
    if subset == "last_layer":
        if objective.model.module is None:
            raise InputError("A function has no layers: name the parameters of the last one, as in subset=['w', 'b'].")
        last = objective.space.names[-1].rpartition(".")[0]
        return objective.restricted([name for name in objective.space.names if name.rpartition(".")[0] == last])
    return objective if isinstance(subset, str) else objective.restricted(names)


def _entries(
    objective: Objective,
    subset: str,
    structure: str,
    size: int | None,
    prior: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the numbers of the parameters of a subnetwork, in order."""
    p = objective.n_parameters
    if structure != "dense":
        raise InputError(f"A subnetwork of single entries has no layers: give structure='dense', not '{structure}'.")
    if size is None or not 0 < size <= p:
        raise InputError(f"size is {size}, but a subnetwork needs a number of entries from 1 to {p}.")
    if subset == "random":
        generator = generator or torch.Generator(objective.device).manual_seed(0)
        return torch.randperm(p, generator=generator, device=objective.device)[:size].sort().values
    diagonal = curvature_of(objective, Curvature("diagonal", "expected", "joint", 0, None)).operator.diagonal()
    return (diagonal + prior).topk(size, largest=False).indices.sort().values


def _refuse_indefinite(post: Posterior, kind: str) -> None:
    """Raise ``IndefiniteError`` where a precision of observed curvature is not positive definite."""
    precision = post.precision
    try:
        if isinstance(precision, Dense):
            cholesky(precision.matrix, labels=post.labels)
            return
        assert isinstance(precision, Diagonal)
        if bool((precision.values > 0).all()):
            return
        why = f"its smallest diagonal entry is {float(precision.values.min()):.3g}"
    except IndefiniteError as error:
        why = str(error).split(". ")[0][0].lower() + str(error).split(". ")[0][1:]
    likelihood = post.objective.likelihood
    theory = ""
    if isinstance(likelihood, HeteroscedasticGaussian):
        theory = f" {likelihood.definiteness.sentence}"
    elif not likelihood.concave:
        theory = f" {type(likelihood).__name__} is not log-concave in its outputs, so that this can happen at any fit."
    raise IndefiniteError(
        f"The {kind} curvature plus the prior is no precision: {why}.{theory} Leave kind out: the expected information "
        "is positive semi-definite whatever the parameters are"
        + ("; or use natural parameters, in which both are the same." if theory else ".")
    )
