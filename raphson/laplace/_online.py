r"""The prior of a network from the evidence while it trains, in a training loop of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.laplace._curvature import Structure
from raphson.laplace._fit import laplace
from raphson.laplace._posterior import Posterior
from raphson.laplace._prior import Per, Prior, regrouped
from raphson.likelihoods import Likelihood, as_likelihood

_DAMPING = 0.5
"""Share of the way to the evidence's maximum, in logarithms, that an update goes: the parameters have to follow."""

_LARGEST = 10.0
"""Largest factor by which an update changes a precision: far from the mode the evidence is that of another network."""


class OnlineEvidence:
    r"""Prior precisions, and the noise of a Gaussian, that follow the evidence while a network trains.

    The average loss of a network with the prior :math:`\theta_g \sim N(0, \delta_g^{-1})` and data of total weight W is

    .. math:: \frac1W \sum_n w_n \ell_n + \sum_g \frac{\delta_g}{2W} \|\theta_g\|^2,

    so that a weight decay (``l2``) of :math:`\lambda_g` is the prior precision :math:`\delta_g = W \lambda_g`. Add
    ``penalty()`` to the average loss of each mini-batch, and leave the optimizer's own weight decay at 0; now and then,
    once an epoch say, call ``update()``, which makes a Laplace posterior at the present parameters and moves each
    :math:`\log\delta_g` half the way to the maximum of its evidence. No rows are held out for any of this.

    Args:
        model: The module that is trained.
        likelihood: A likelihood, or a torch loss that stands for one.
        data: The training data, as for ``laplace``.
        structure: Of the posterior: ``"kfac"`` for networks, ``"dense"`` for small ones.
        per: One precision for ``"all"`` parameters, each ``"layer"`` or each ``"tensor"``.
        prior_precision: Where the precisions start.
        scale: Whether the scale of a Gaussian likelihood is learned with them; ``likelihood`` has it.

    Attributes:
        likelihood: The likelihood, with its present scale.
        log_evidence: The log marginal likelihood after each update.

    Raises:
        InputError: An argument is not one of those of ``laplace``.

    References:
        A. Immer, M. Bauer, V. Fortuin, G. Raetsch and M. E. Khan (2021), Scalable marginal likelihood estimation for
        model selection in deep learning, ICML, algorithm 1.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 3, generator=g)
        >>> y = x[:, :1] + 0.1 * torch.randn(60, 1, generator=g)
        >>> model = torch.nn.Linear(3, 1)
        >>> prior = rp.OnlineEvidence(model, rp.Gaussian(), (x, y), structure="dense", scale=True)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        >>> for epoch in range(300):
        ...     loss = prior.likelihood.nll(model(x), y).mean() + prior.penalty()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        ...     if epoch % 20 == 19:
        ...         prior.update()
        >>> round(float(prior.likelihood.scale), 1)
        0.1
        >>> interval = prior.posterior().predict(x[:2]).interval()
    """

    likelihood: Likelihood
    log_evidence: list[float]

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | nn.Module,
        data: Any,
        *,
        structure: Structure = "kfac",
        per: Per = "layer",
        prior_precision: float | Mapping[str, float] = 1.0,
        scale: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}, but a module that is trained is needed.")
        self._model, self._data, self._structure = model, data, structure
        self.likelihood = as_likelihood(likelihood)
        self._scale = scale
        self.log_evidence = []
        post = self._at(prior_precision)
        space = post.objective.space
        if scale and post.residuals is None:
            raise InputError(
                f"scale=True learns the scale of a Gaussian; {type(self.likelihood).__name__} has none that is fixed."
            )
        self._names, self._per = space.names, per
        self._prior: Prior = regrouped(post.prior, space.names, space.sizes, per)
        self._total_weight = post.total_weight

    @property
    def prior_precision(self) -> float | dict[str, float]:
        r""":math:`\delta`: one number, or numbers by name of a layer or tensor."""
        return self._prior.described

    @property
    def weight_decay(self) -> float | dict[str, float]:
        r""":math:`\lambda = \delta / W`: what an optimizer of the average loss would be given."""
        found = self._prior.described
        if isinstance(found, dict):
            return {name: value / self._total_weight for name, value in found.items()}
        return found / self._total_weight

    def penalty(self) -> Tensor:
        r"""Return :math:`\sum_g \delta_g \|\theta_g\|^2 / 2W`, differentiable in the parameters, a number."""
        own = dict(self._model.named_parameters())
        parts = torch.split(self._prior.vector, [own[name].numel() for name in self._names])
        # every entry of a tensor has the precision of its first one: groups are of whole tensors
        terms = [0.5 * part[0] * own[name].square().sum() for name, part in zip(self._names, parts, strict=True)]
        return torch.stack([term.to(terms[0].dtype) for term in terms]).sum() / self._total_weight

    def update(self) -> None:
        """Move the precisions, and the scale, half the way to what the evidence at the present parameters says."""
        post = self.posterior()
        tuned = post.tune_prior(per=self._per, scale=self._scale)
        ratio = (tuned.prior.values / self._prior.values).pow(_DAMPING).clamp(1 / _LARGEST, _LARGEST)
        self._prior = self._prior.with_values(self._prior.values * ratio)
        if self._scale:
            assert tuned.residuals is not None
            self.likelihood = tuned.objective.likelihood
        self.log_evidence.append(float(post.log_marginal_likelihood()))

    def posterior(self) -> Posterior:
        """Return the posterior at the present parameters, with the present prior."""
        return self._at(self._prior.described)

    def _at(self, prior_precision: float | Mapping[str, float]) -> Posterior:
        """Return a posterior in evaluation mode; the model is left in the mode that it was in."""
        was = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            return laplace(
                self._model, self.likelihood, self._data, structure=self._structure, prior_precision=prior_precision
            )
        finally:
            for module, training in was:
                module.training = training
