"""Summary, residuals and report of a trained network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError, NotEstimableError
from raphson.diagnose import Randomness
from raphson.estimators._target_checks import TargetChecks
from raphson.estimators.networks._train import HIGHEST, LOWEST, symmetric_points
from raphson.estimators.review._figures import network_figures
from raphson.estimators.review._network_checks import coverage, coverage_check, network_checks
from raphson.estimators.review._reproduction import reproduction
from raphson.estimators.review._residual_checks import residual_checks
from raphson.laplace import Posterior, Predictive, left_out
from raphson.likelihoods import TargetDistribution
from raphson.linalg import Dense, SymmetricOperator, cholesky
from raphson.report import Report, Summary, check_report

if TYPE_CHECKING:
    import pandas as pd

_LARGEST = 1000
"""Parameters up to which a report forms curvature matrices and their eigenvalues, as that of a linear model does."""

_GIVEN = ("scale", "df", "dispersion", "n_levels", "link")


class NetworkReview(TargetChecks):
    """What a trained network says of itself; an estimator supplies network, units and posterior."""

    posterior_: Posterior
    posteriors_: list[Posterior]
    bounds_: list[float]
    converged_: bool
    n_iter_: int
    n_features_in_: int
    classes_: Any
    hidden: Any
    activation: str
    structure: str
    random_state: Any
    _means: NDArray[np.float64]
    _spread: NDArray[np.float64]
    _standardized: bool
    _unit: Tensor
    _center: Tensor
    _left_out: Predictive | None = None
    _predicted: TargetDistribution | None = None
    prior_range = (LOWEST, HIGHEST)

    @property
    def n_rows_(self) -> int:
        """Number of rows that the network was trained on, or their total weight."""
        return round(self.posterior_.total_weight)

    def has_rows(self) -> bool:
        """Return whether the rows of the fit are at hand; those of a saved model are not."""
        return self.posterior_.complete

    def layers(self) -> pd.DataFrame:
        r"""Return what the posterior says of each group of parameters that shares a prior precision.

        Returns:
            A frame indexed by layer and group, with the number of ``parameters``, their ``root_mean_square``, the
            ``prior_precision`` :math:`\delta_g`, and how many parameters the data have ``determined``,
            :math:`P_g - \delta_g \operatorname{tr}_g \Lambda^{-1}` (MacKay 1992).

        Examples:
            >>> import numpy as np
            >>> import raphson as rp
            >>> x = np.linspace(-2, 2, 60)[:, None]
            >>> net = rp.BayesianMLP(rp.Gaussian(), hidden=(10,), max_iter=5).fit(x, np.sin(2 * x[:, 0]))
            >>> net.layers()["parameters"].tolist()
            [10, 10, 10, 1]
        """
        import pandas as pd

        check_is_fitted(self, "posterior_")
        post = self.posterior_
        prior, sizes = post.prior, post.prior.sizes
        determined = sizes - prior.values * prior.sums(post.variance())
        index = pd.MultiIndex.from_tuples([_place(key) for key in prior.keys], names=["layer", "parameters of"])
        return pd.DataFrame(
            {
                "parameters": sizes.round().long().numpy(),
                "root_mean_square": (post.squares / sizes).sqrt().numpy(),
                "prior_precision": prior.values.numpy(),
                "determined": determined.clamp_min(0.0).numpy(),
            },
            index=index,
        )

    def summary(self) -> Summary:
        """Return facts about the network and the table of its layers.

        Returns:
            A summary that prints as text, shows as HTML in a notebook and turns into a frame.

        Examples:
            >>> import numpy as np
            >>> import raphson as rp
            >>> x = np.linspace(-2, 2, 60)[:, None]
            >>> net = rp.BayesianMLP(rp.Gaussian(), hidden=(10,), max_iter=5).fit(x, np.sin(2 * x[:, 0]))
            >>> net.summary().title
            'Gaussian network, hidden units 10'
        """
        check_is_fitted(self, "posterior_")
        post, likelihood = self.posterior_, self.posterior_.objective.likelihood
        layers, units = self.layers(), "" if not self._standardized else " (targets in standard deviations)"
        sizes = [self.n_features_in_, *self.hidden, post.objective.n_outputs]
        facts: list[tuple[str, Any]] = [
            ("Observations", f"{self.n_rows_}"),
            ("Columns", f"{self.n_features_in_}"),
            ("Units by layer", " - ".join(map(str, sizes)) + f", {self.activation}"),
            ("Outputs", ", ".join(likelihood.output_names(post.objective.n_outputs)[:12])),
            ("Parameters", f"{post.n_parameters}"),
            ("Effective dimension", f"{layers['determined'].sum():.2f}"),
            ("Posterior", self.structure),
            ("Rounds", f"{self.n_iter_}"),
            ("Log evidence, bound", f"{self.bounds_[-1]:.4f}{units}"),
            ("Log evidence, Laplace", f"{float(post.log_marginal_likelihood()):.4f}{units}"),
            ("Status", "The bound has settled." if self.converged_ else "The bound was still changing."),
        ]
        if len(self.posteriors_) > 1:
            mixed = f"{len(self.posteriors_)} networks, of which layers, curvature and residuals are the first one's"
            facts.append(("Predictions of", mixed))
        given = [(name, getattr(likelihood, name, None)) for name in _GIVEN]
        facts += [(name.capitalize(), f"{v:.5g}") for name, v in given if isinstance(v, int | float)]
        if self.classes_ is not None:
            facts.append(("Classes", ", ".join(map(str, self.classes_))))
        title = f"{type(likelihood).__name__} network, hidden units {', '.join(map(str, self.hidden))}"
        return Summary(title, tuple(facts), layers)

    def hessian(self) -> SymmetricOperator:
        r"""Return the posterior precision in units of the prior's, :math:`\delta^{-1/2} \Lambda \delta^{-1/2}`.

        Its eigenvalues are 1 where the data say nothing, and larger where they do.

        Returns:
            An operator ``(P, P)`` with labels. One that is too large to form is a ``TooLargeError``.
        """
        check_is_fitted(self, "posterior_")
        post = self.posterior_
        root = post.prior.vector.rsqrt()
        matrix = post.precision.to_dense() * root * root.unsqueeze(-1)
        return Dense(0.5 * (matrix + matrix.mT), labels=post.labels)

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        level: float = 0.95,
        generator: Randomness = 0,
        command: str | None = None,
        notes: Sequence[str] = (),
    ) -> Report:
        """Return a report of the network and write it: layers with their priors, numbered checks, figures.

        Each check says pass, look or problem, and what to do. Residuals, calibration and coverage are of the rows that
        the network was trained on, each predicted as if it had been left out (one Newton step). A page
        (.html) is one file that loads nothing; its figures need matplotlib (``pip install 'raphson[plot]'``).

        Args:
            path: File to write, whose name ends in .html, .md or .json; None for none.
            level: Coverage of predictive intervals that are looked at, beside 50, 80 and 95 percent.
            generator: Source of the draws of residuals and simulations, or a seed.
            command: What was called to make this fit, for the reader; None for the estimator's arguments.
            notes: Sentences for the reader, below the facts.

        Returns:
            The report; it prints as Markdown and shows as a page in a notebook.

        Raises:
            InputError: The file cannot be written, or the level is no probability.

        Examples:
            >>> import numpy as np
            >>> import raphson as rp
            >>> x = np.linspace(-2, 2, 60)[:, None]
            >>> y = np.sin(2 * x[:, 0]) + 0.1 * np.cos(40 * x[:, 0])
            >>> net = rp.BayesianMLP(rp.Gaussian(), hidden=(10,)).fit(x, y)
            >>> [check.name for check in net.report().checks[:2]]
            ['Training', 'Determined parameters']
        """  # noqa: DOC502
        check_is_fitted(self, "posterior_")
        if not 0 < level < 1:
            raise InputError(f"level is {level:g}, but a probability between 0 and 1 is needed (0.95, say).")
        if path is not None:
            check_report(path)
        found = self.summary()
        summary = Summary(found.title, found.facts, found.table, tuple(notes), level)
        post, matrix, spectrum, whole = self.posterior_, None, None, None
        if post.n_parameters <= _LARGEST:
            matrix = self.hessian().to_dense().numpy()
            spectrum = np.linalg.eigvalsh(matrix)
            if self.has_rows():
                whole = self._whole_spectrum()
        densities = self.mean_log_densities() if self.has_rows() else None
        checks = list(network_checks(self, summary.table, spectrum, whole, densities))
        covered = None
        if self.has_rows() and not self.has_classes():
            covered = coverage(self.residuals("quantile", generator), level)
            checks.append(coverage_check(covered))
        checks += residual_checks(self, generator)
        seeds = {"Seed of the start values": self.random_state, "Seed of residuals and simulations": generator}
        made = Report(
            summary,
            tuple(checks),
            lambda: tuple(network_figures(self, matrix, post.labels, generator)),
            reproduction(self, command, seeds),
            {
                "log_density": dict(zip(("rows", "left_out"), densities, strict=True)) if densities else None,
                "training": {"bounds": self.bounds_, "rounds": self.n_iter_, "converged": self.converged_},
                "coverage": None if covered is None else {f"{p:g}": k / max(n, 1) for p, (k, n) in covered.items()},
                "precision_eigenvalues": None if spectrum is None else spectrum.tolist(),
                "hessian_over_precision_eigenvalues": None if whole is None else whole.tolist(),
            },
            table_name="Layers and priors",
            caption="Groups of parameters with one prior precision, and how many of each the data determine",
        )
        if path is not None:
            made.save(path)
        return made

    def _whole_spectrum(self) -> NDArray[np.float64]:
        """Return the eigenvalues of the Hessian of loss and prior at the mean, in units of the posterior precision."""
        post = self.posterior_
        hessian = post.objective.curvature("hessian").to_dense() * (post.total_weight / post.temperature)
        hessian = hessian + torch.diag(post.prior.vector)
        lower = cholesky(post.precision.to_dense())
        half = torch.linalg.solve_triangular(lower, hessian, upper=False)
        whole = torch.linalg.solve_triangular(lower, half.mT, upper=False)
        values: NDArray[np.float64] = torch.linalg.eigvalsh((whole + whole.mT) / 2).numpy()
        return values

    def mean_log_densities(self) -> tuple[float, float]:
        """Return the mean log density of the training rows, and that of each as if it had been left out.

        Returns:
            Both in the units of ``score``; by one Newton step, without fitting again.
        """
        batch = self._row_batch()
        shift = self._unit.log().sum() if self._standardized else 0.0
        found = self.posterior_.predict(batch.x, generator=torch.Generator().manual_seed(0)), self._without_each()
        densities = (part.log_density(batch.y) - shift for part in found)
        weight = torch.ones(len(batch.x), dtype=torch.float64) if batch.weight is None else batch.weight
        inside, without = (float(weight @ density / weight.sum()) for density in densities)
        return inside, without

    # the rows that the network was trained on -------------------------------------------------------------------------

    def _row_batch(self) -> Any:
        check_is_fitted(self, "posterior_")
        if not self.has_rows():
            raise NotEstimableError(
                "The training rows are not part of a saved model; fit again, or predict rows by model.predictive(X)."
            )
        return next(iter(self.posterior_.objective.batches()))

    def _without_each(self) -> Predictive:
        """Return what is predicted of each training row by the posterior without it."""
        if self._left_out is None:
            batch, likelihood = self._row_batch(), self.posterior_.objective.likelihood
            generator = torch.Generator().manual_seed(0)
            found = self.posterior_.predict(batch.x, generator=generator)
            points = symmetric_points(found)
            around, y = found.output_mean + points, batch.y.expand(len(points), *batch.y.shape)
            gradient = likelihood.gradient(around, y).mean(0)
            curvature = likelihood.fisher(around, y).to_dense().mean(0)
            if batch.weight is not None:  # one of so many rows is left out
                w = batch.weight.clamp(max=1.0)
                gradient, curvature = gradient * w[:, None], curvature * w[:, None, None]
            self._left_out = left_out(found, gradient, curvature, generator)
        return self._left_out

    def _training_distribution(self) -> TargetDistribution:
        y = self._row_batch().y
        if self._predicted is None:
            self._predicted = self._without_each().distribution(y)
        return self._predicted

    def _fitted_means(self) -> NDArray[np.float64]:
        found = self.posterior_.predict(self._row_batch().x, generator=torch.Generator().manual_seed(0))
        return found.mean.detach().numpy()

    def _mean_names(self) -> list[str]:
        m = int(np.prod(self._training_distribution().mean.shape[1:]))
        if self.classes_ is not None:
            return [str(label) for label in self.classes_]
        return ["mean"] if m == 1 else [f"mean[{i}]" for i in range(m)]

    def _row_index(self) -> Any:
        return np.arange(len(self._row_batch().x))

    def _row_weights(self) -> NDArray[Any] | None:
        weight = self._row_batch().weight
        return None if weight is None else weight.numpy()

    def _row_table(self) -> tuple[list[str], Any]:
        names = getattr(self, "feature_names_in_", None)
        names = [f"x{i}" for i in range(self.n_features_in_)] if names is None else [str(name) for name in names]
        table = self._row_batch().x * torch.from_numpy(self._spread) + torch.from_numpy(self._means)
        return names, table

    def _mean_units(self) -> tuple[Any, Any]:
        if not self._standardized:
            return 0.0, 1.0
        return np.atleast_1d(self._center.numpy()), np.atleast_1d(self._unit.numpy())


def _place(key: str) -> tuple[str, str]:
    """Return layer and group of a prior's key: ``"2.weight[0]"`` is ``("layer 2", "weight, output 0")``."""
    module, _, tensor = key.partition(".")
    layer = f"layer {int(module) // 2 + 1}" if module.isdigit() else key
    name, _, output = tensor.partition("[")
    return layer, f"{name}, output {output[:-1]}" if output else (name or "all")
