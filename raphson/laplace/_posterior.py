r"""The posterior of a network's parameters: a Gaussian whose precision is the curvature plus the prior's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.data import Inputs, tree_map
from raphson.laplace._arguments import whole_number
from raphson.laplace._curvature import Kind, Structure
from raphson.laplace._evidence import Evidence, Residuals, determinant
from raphson.laplace._evidence import evidence as evidence_at
from raphson.laplace._operators import combined, inverse_diagonal
from raphson.laplace._predictive import Link, Predictive, from_outputs, from_samples
from raphson.laplace._prior import Per, Prior, make_prior
from raphson.laplace._state import description_of, fields_of, read, save, tensors_of, without_data
from raphson.laplace._tune import tune_by_evidence, tune_by_validation
from raphson.laplace._update import updated
from raphson.likelihoods import Likelihood
from raphson.linalg import HALF, SymmetricOperator, single
from raphson.network import LayerOperator, Objective, OutputCovariance, shown


@dataclass(frozen=True, eq=False)
class Posterior:
    r"""A Gaussian over the parameters of a network, :math:`N(\hat\theta, \Lambda^{-1})`.

    .. math::
        \Lambda = \frac1T\, W C + \operatorname{diag}(\delta),

    with the curvature C of the average loss, the total weight W of the data, the prior precisions :math:`\delta` and a
    temperature T of the likelihood. A network trained on an average loss with a weight decay (or ``l2``) of
    :math:`\lambda` has the prior precision :math:`\delta = W \lambda`. Made by ``laplace``; changes make a new one.

    Attributes:
        objective: The network with its likelihood and data.
        structure: Name of the structure.
        curvature: :math:`W C`, ``(P, P)``.
        prior: The prior.
        mean: :math:`\hat\theta`, ``(P,)``.
        loss: The summed loss at the mean.
        gradient: Its gradient there, ``(P,)``.
        total_weight: W.
        temperature: T.
        bias: Whether a bias shares the block of its weight.
        versions: The state of the model, which must not change.
        entries: Numbers of the parameters in the posterior, where these are a subnetwork; None for all.
        residuals: Of a Gaussian likelihood with one scale; None for another.
        factors: The Kronecker factors behind the curvature of ``"kfac"``, to which those of more data are added.
        complete: Whether the objective has all the data that the curvature is of.
        kind: Which curvature.
    """

    objective: Objective
    structure: Structure
    curvature: SymmetricOperator
    prior: Prior
    mean: Tensor
    loss: float
    gradient: Tensor
    total_weight: float
    temperature: float
    bias: Literal["joint", "separate"]
    versions: list[Any]
    entries: Tensor | None = None
    residuals: Residuals | None = None
    factors: LayerOperator | None = None
    complete: bool = True
    kind: Kind = "expected"

    def __repr__(self) -> str:
        what = f"{len(self.mean)} parameters under {type(self.objective.likelihood).__name__}"
        return f"<Posterior of {what}: {self.structure}, weight {self.total_weight:g}>"

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """One number, or numbers by name of a layer or tensor."""
        return self.prior.described

    @property
    def n_parameters(self) -> int:
        """Number of uncertain parameters ``P``."""
        return self.mean.shape[0]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the parameters, in the order of ``mean``; None where there are very many."""
        labels = self.objective.space.labels()
        if labels is None or self.entries is None:
            return labels
        return tuple(labels[i] for i in self.entries.tolist())

    @cached_property
    def precision(self) -> SymmetricOperator:
        r""":math:`\Lambda`, ``(P, P)``, in the structure of the posterior."""
        return combined(self.curvature, 1.0 / self.temperature, self.prior.vector)

    def variance(self) -> Tensor:
        r"""Return the marginal variances of the parameters, the diagonal of :math:`\Lambda^{-1}`, ``(P,)``."""
        return inverse_diagonal(self.precision)

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw parameters.

        Args:
            n: How many.
            generator: Source of randomness; None for torch's own.

        Returns:
            ``(n, P)``.

        Raises:
            InputError: If the number of draws is negative, or no whole number.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InputError(f"n is {n!r}, but it must be a whole number of draws that is not negative.")
        root = self.precision.factor()
        noise = torch.randn(
            root.shape[-1], n, generator=generator, dtype=self.precision.dtype, device=self.precision.device
        )
        return (self.mean.unsqueeze(-1) + self.precision.solve(root.mm(noise))).mT

    # storage --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that determine the posterior, by name."""
        return tensors_of(self)

    def metadata(self) -> dict[str, Any]:
        """Return the rest as plain values, ready for JSON: names, numbers and the description of the likelihood."""
        return description_of(self)

    @classmethod
    def from_state(
        cls,
        tensors: dict[str, Tensor],
        metadata: dict[str, Any],
        model: nn.Module | Callable[..., Tensor],
        likelihood: Likelihood | None = None,
    ) -> Posterior:
        """Return the posterior that ``state_dict`` and ``metadata`` are of; arguments else as of ``load``."""
        try:
            return cls(**fields_of(tensors, metadata, model, likelihood))
        except InputError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
            raise InputError(
                f"This is no whole posterior ({type(error).__name__}: {error}): the file was changed, or is of "
                "another network."
            ) from None

    def save(self, file: str | Path) -> None:
        """Write the posterior to a safetensors file; it holds numbers and names, no row of the data and no code.

        Args:
            file: Where to. What cannot be written is an ``InputError``.
        """
        save(self, file)

    @classmethod
    def load(
        cls, file: str | Path, model: nn.Module | Callable[..., Tensor], likelihood: Likelihood | None = None
    ) -> Posterior:
        """Return a posterior that ``save`` wrote.

        Args:
            file: The file.
            model: The network, with any values of its parameters: a copy gets those of the file.
            likelihood: The likelihood, where it is made from code; None for one that the file describes.

        Returns:
            The posterior; a file that holds none, and a model with other parameters, are an ``InputError``.
        """
        return cls.from_state(*read(file), model, likelihood)

    def __getstate__(self) -> dict[str, Any]:
        # rows of the data do not belong in a pickle, and what was derived can be derived again
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"objective": without_data(self.objective), "complete": False, "versions": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        objective = state["objective"]
        objective.model.refresh()  # a pickle has the parameters twice
        for name, value in (state | {"versions": objective.model.versions()}).items():
            object.__setattr__(self, name, value)

    # evidence -------------------------------------------------------------------------------------------------------

    def log_marginal_likelihood(self) -> Tensor:
        """Return the Laplace approximation of the log evidence, a number."""
        return self.evidence().value

    def evidence(self) -> Evidence:
        """Return the log marginal likelihood and its gradient in log prior precisions and a Gaussian's log scale."""
        return evidence_at(
            determinant(self.curvature, self.prior),
            self.prior,
            self.squares,
            self.loss,
            self.temperature,
            residuals=self.residuals,
        )

    @property
    def squares(self) -> Tensor:
        """Squared norms of the mean by group of the prior, ``(G,)``."""
        return self.prior.sums(self.mean.square())

    def tune_prior(
        self,
        by: Literal["evidence", "validation"] = "evidence",
        per: Per | None = None,
        data: Any = None,
        *,
        scale: bool = False,
        link: Link = "mixture",
    ) -> Posterior:
        r"""Return the posterior with the prior precisions that suit the data best.

        By evidence: MacKay's fixed point :math:`\delta_g \leftarrow (P_g - \delta_g \operatorname{tr}_g \Lambda^{-1}) /
        \|\theta_g\|^2`, then L-BFGS in the logarithms. By validation: the mean log predictive density of other data,
        on a grid of powers of ten that is refined, group by group.

        For classes, tune by validation. Where they are nearly separated the mode of the parameters is far from their
        mean under the posterior (Kuss and Rasmussen 2005), whatever the structure, and with the evidence's prior
        probabilities become too flat: on digits the negative log-likelihood rises from 0.05 to 0.4, while inputs of
        other kinds are told apart better. ``BayesianMLP`` moves the mean as well.

        Args:
            by: ``"evidence"`` or ``"validation"``.
            per: One precision for ``"all"`` parameters, each ``"layer"`` or each ``"tensor"``; None for the groups that
                there are.
            data: For ``"validation"``: data like those of the objective, held out.
            scale: By evidence: whether the scale of a Gaussian likelihood is tuned with it.
            link: For ``"validation"``: how densities are computed, as in ``predict``.

        Returns:
            The posterior.

        Raises:
            InputError: An argument is not one of those above, or there are no data to validate on.

        References:
            D. J. C. MacKay (1992), Bayesian interpolation, Neural Computation 4. A. Immer et al. (2021), Scalable
            marginal likelihood estimation for model selection in deep learning, ICML. M. Kuss and C. E. Rasmussen
            (2005), Assessing approximate inference for binary Gaussian process classification, JMLR 6.
        """
        if by == "evidence":
            return tune_by_evidence(self, per, scale)
        if by != "validation":
            raise InputError(f"by is {by!r}, but a prior is tuned by 'evidence' or 'validation'.")
        if data is None:
            raise InputError("Validation needs data that the network was not trained on: give data=(x, y).")
        return tune_by_validation(self, per, data, link)

    def update(self, data: Any) -> Posterior:
        """Return the posterior after other data as well, with this one as the prior (sequential Laplace).

        Curvatures add up. Where the mean is the mode of this posterior, as after training to the end with its prior, it
        takes the Newton step to the new mode, in a copy of the model; elsewhere it stays, with a warning if that leaves
        it far from the new mode. Both make a linear model's posterior that of all data at once.

        Args:
            data: Data like those of the objective.

        Returns:
            The posterior; data that do not fit are an ``InputError``.

        References:
            H. Ritter, A. Botev and D. Barber (2018), Online structured Laplace approximations for overcoming
            catastrophic forgetting, NeurIPS.
        """
        return updated(self, data)

    def with_prior(self, prior_precision: float | Tensor | Mapping[str, float]) -> Posterior:
        """Return the posterior with another prior: one precision, or precisions by name of a layer or tensor."""
        space = self.objective.space
        prior = make_prior(space.names, space.sizes, prior_precision, self.mean)
        return replace(self, prior=prior if self.entries is None else prior.of_entries(self.entries))

    # prediction -----------------------------------------------------------------------------------------------------

    def predict(
        self,
        x: Inputs,
        method: Literal["glm", "sample"] = "glm",
        link: Link = "mixture",
        samples: int = 100,
        generator: torch.Generator | None = None,
        joint: bool = False,
        progress: bool = False,
    ) -> Predictive:
        r"""Return what the posterior predicts.

        ``"glm"`` is the linearized network: outputs are Gaussian with the network's as mean and covariance
        :math:`J_n \Lambda^{-1} J_n^\top`, which is exact for this posterior in a linear model. ``"sample"`` runs the
        network with sampled parameters.

        Args:
            x: Inputs, as for the model.
            method: ``"glm"`` or ``"sample"``.
            link: From outputs to the response: ``"mixture"`` averages over samples of the outputs (the error is that of
                ``samples``: at most 0.07 in a probability by 100, 0.04 by 200, measured); for classes there are
                ``"probit"`` (MacKay 1992; of more than two by pairs, Lu, Ie and Sha 2020) and ``"bridge"`` (Dirichlet
                distribution, Hobbhahn, Kristiadi and Hennig 2022). The two are approximations, which are good for small
                variances only; where a probability is more than 0.1 from the average over 200 samples they are refused.
            samples: Number of samples.
            generator: Source of randomness; None for a fixed one.
            joint: Whether the covariance is that of all inputs together.
            progress: Whether a line on standard error shows how many inputs, or samples, are done.

        Returns:
            The predictive distribution.

        Raises:
            InputError: An argument is not one of those above, the model has changed, or ``link`` does not hold.

        References:
            A. Immer, M. Korzepa and M. Bauer (2021), Improving predictions of Bayesian neural nets via local
            linearization, AISTATS.
        """
        self.objective.model.check_unchanged(self.versions)
        if self.objective.dtype not in HALF:
            x = tree_map(single, x)
        if method not in {"glm", "sample"}:
            raise InputError(f"method is {method!r}, but a prediction is by 'glm' or 'sample'.")
        samples = whole_number("samples", samples)
        likelihood = self.objective.likelihood
        if method == "sample":
            return from_samples(likelihood, self._sampled_outputs(x, samples, generator, progress))
        if joint:
            f, spread = self._outputs.joint(x)
            return from_outputs(likelihood, f, spread, link, samples, generator, joint)
        roots = list(self._outputs.roots(x, progress))
        f, spread = (torch.cat(part) for part in zip(*(roots or self._outputs(x, progress)), strict=True))
        return from_outputs(likelihood, f, spread, link, samples, generator, is_root=bool(roots))

    def output_covariances(self, x: Inputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield outputs ``(n, ..., C)`` of the linearized network and their covariances, some inputs at a time.

        Args:
            x: Inputs, as for the model.

        Yields:
            Outputs, and covariances ``(n, ..., C, C)``.
        """
        self.objective.model.check_unchanged(self.versions)
        yield from self._outputs(x)

    @cached_property
    def _outputs(self) -> OutputCovariance:
        return OutputCovariance(self.objective, self.precision, self.bias, self.entries)

    def _sampled_outputs(
        self, x: Inputs, samples: int, generator: torch.Generator | None, progress: bool = False
    ) -> Tensor:
        """Return outputs with sampled parameters, ``(S, N, ..., C)``."""
        objective, found = self.objective, []
        generator = generator or torch.Generator(self.mean.device).manual_seed(0)
        whole = objective.space.vector()
        x = self._outputs.on_device(x)
        for _ in shown(range(samples), "samples", progress):
            theta = self.sample(1, generator)[0]
            theta = theta if self.entries is None else whole.index_copy(0, self.entries, theta)
            with torch.no_grad():
                found.append(objective.model.call(objective.space.unflatten(theta), x))
        return torch.stack(found)
