"""A small network with its posterior behind scikit-learn's interface."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from raphson._errors import InputError
from raphson.estimators._no_mean import finite_deviation, finite_mean
from raphson.estimators.input._classes import class_labels, encode_classes, known_codes, restore_classes
from raphson.estimators.input._given import beside, plain_rows
from raphson.estimators.input._target import check_target, takes_labels
from raphson.estimators.input._validate import as_tensor, check_table, check_weights
from raphson.estimators.networks._review import NetworkReview
from raphson.estimators.networks._train import Training, train
from raphson.laplace import Posterior, Predictive, PredictiveMixture
from raphson.likelihoods import (
    REAL,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    as_likelihood,
    from_description,
    to_description,
)
from raphson.linalg import check_dense_size

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


_FIRST_SCALE = 0.1
"""Scale of a Gaussian, in standard deviations of the target, at which training starts. From 1 the evidence of the first
round finds nothing but noise in 60 rows of a sine, and switches the network off; from below the scale grows to what the
residuals show, on targets of noise alone as well."""


_MEDIAN = 1e-9
"""Level of an interval whose ends are the median."""


class BayesianMLP(NetworkReview, BaseEstimator):
    r"""A feed-forward network for tables whose predictions say how sure they are.

    Columns and real-valued targets are standardized inside. The network is trained with the posterior of its
    parameters: in rounds, the loss averaged over the outputs' posterior plus the prior is minimized by L-BFGS from the
    inverse of the Gauss-Newton precision, and prior precisions (one for each tensor and output) and, of a Gaussian, the
    scale follow from the evidence. No rows are held out for any of this.

    Args:
        likelihood: The likelihood, or a torch loss that stands for one; None for
            ``HeteroscedasticGaussian()``, whose mean and scale depend on the columns. Where the tails of the residuals
            are not normal, ``StudentT(df=5)`` predicts better densities.
        hidden: Numbers of hidden units, layer by layer.
        structure: Of the posterior, as for ``laplace``.
        activation: ``"tanh"``, ``"relu"``, ``"silu"`` or ``"gelu"``.
        members: Number of networks, from different start values, whose predictive distributions are mixed in equal
            shares: three predict better densities than one where the posterior has many modes (concrete by 0.1).
        max_iter: Largest number of rounds; None for 8 with a dense structure, and 14 with another.
        steps: Largest number of L-BFGS steps in a round; None for 60 with a dense structure, and 40 with another.
        tol: Training stops early when the bound on the log evidence changes by less for each row in two rounds.
        random_state: Seed of the start values.

    Attributes:
        posterior_: The posterior of the (first) trained network, in standardized units.
        posteriors_: The posteriors of all members.
        model_: The (first) network.
        bounds_: The bound on its log evidence after each round.
        n_iter_: Number of its rounds.
        converged_: Whether its last rounds changed the bound little.
        n_features_in_: Number of columns D.

    References:
        D. J. C. MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation 4.
        A. Immer et al. (2023), Effective Bayesian heteroscedastic regression with deep neural networks, NeurIPS.

    Examples:
        >>> import numpy as np
        >>> import raphson as rp
        >>> x = np.linspace(-2, 2, 60)[:, None]
        >>> y = np.sin(2 * x[:, 0])
        >>> net = rp.BayesianMLP(rp.Gaussian(), hidden=(10,), max_iter=5).fit(x, y)
        >>> bool(np.abs(net.predict(x) - y).max() < 0.1)
        True
        >>> low, high = net.predict_interval(np.array([[0.0], [5.0]]))
        >>> bool(high[1] - low[1] > high[0] - low[0])
        True
    """

    def __init__(
        self,
        likelihood: Any = None,
        hidden: Sequence[int] = (50,),
        structure: str = "dense",
        *,
        activation: str = "silu",
        members: int = 1,
        max_iter: int | None = None,
        steps: int | None = None,
        tol: float = 1e-3,
        random_state: Any = 0,
    ) -> None:
        self.likelihood = likelihood
        self.hidden = hidden
        self.structure = structure
        self.activation = activation
        self.members = members
        self.max_iter = max_iter
        self.steps = steps
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BayesianMLP:
        """Train the network.

        Args:
            X: ``(N, D)`` numbers.
            y: Targets as the likelihood takes them: ``(N,)``, or ``(N, M)`` for M responses. Labels of classes may be
                of any kind; ``classes_`` has them sorted.
            sample_weight: ``(N,)`` weights; 3 means the same as three rows.

        Returns:
            The fitted estimator; an argument that cannot be used is an ``InputError``.
        """
        self._check_options()
        likelihood = self._likelihood()
        X, index = plain_rows(X)
        y, sample_weight = beside(index, y=y, sample_weight=sample_weight)
        table = check_table(self, X, reset=True)
        weights = check_weights(sample_weight, table.shape[0])
        self.classes_: Any = None
        if isinstance(likelihood, Categorical) and np.ndim(y) == 1:
            self.classes_, codes = encode_classes(y, table.shape[0], weights)
            y = codes.numpy()
        response, c = check_target(y, table.shape[0], likelihood)
        x = self._learn_units(table, response, likelihood, weights)
        target, common = response, response
        if self._standardized:
            target = (response - self._center) / self._unit
            # a scale that starts at that of the targets sees no outliers before the mean is learned
            common = torch.special.ndtri(torch.linspace(0.005, 0.995, 199, dtype=torch.float64))
            common = common if response.ndim == 1 else common[:, None].expand(-1, *response.shape[1:])
            if isinstance(likelihood, Gaussian):
                likelihood = Gaussian(_FIRST_SCALE, link=likelihood.link)
        start = likelihood.start(common, c, None if self._standardized else weights)
        options = Training(self.structure, self.tol, self.max_iter, self.steps)
        trained = [train(net, likelihood, (x, target, weights), options) for net in self._networks(x.shape[1], start)]
        self._hold([done.posterior for done in trained])
        first = trained[0]
        self.bounds_, self.converged_, self.n_iter_ = first.bounds, first.converged, len(first.bounds)
        self._left_out, self._predicted = None, None
        return self

    def predictive(self, X: Any) -> Predictive | PredictiveMixture:
        """Return the predictive distribution of rows, in standardized units of a real-valued target."""
        check_is_fitted(self, "posterior_")
        x = self._scaled(check_table(self, X, reset=False))
        found = [post.predict(x, generator=torch.Generator().manual_seed(0)) for post in self.posteriors_]
        return found[0] if len(found) == 1 else PredictiveMixture(found)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean of the target in each row and, if asked for, the standard deviation of a new target.

        Where the predicted distribution has no finite mean it is the median, where it has no finite standard deviation
        nan, with a warning.

        Args:
            X: ``(N, D)`` numbers.
            return_std: Whether standard deviations are returned as well.

        Returns:
            ``(N,)``, or ``(N, M)`` for several responses; of levels and classes the probabilities ``(N, K)``.
        """
        found = self.predictive(X)
        mean = finite_mean(self._in_units(found.mean), lambda: self._in_units(found.interval(_MEDIAN)[0]))
        if not return_std:
            return mean
        return mean, finite_deviation(self._in_units(found.variance.sqrt(), shift=False))

    def predict_interval(self, X: Any, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return limits between which a new target lies with probability ``level``; of classes, those of probabilities.

        Args:
            X: ``(N, D)`` numbers.
            level: Between 0 and 1.

        Returns:
            Lower and upper limits, shaped as ``predict`` gives means.
        """
        low, high = self.predictive(X).interval(level)
        return self._in_units(low), self._in_units(high)

    def log_density(self, X: Any, y: Any) -> NDArray[np.float64]:
        """Return the log predictive density (or probability) of targets, in their own units.

        Args:
            X: ``(N, D)`` numbers.
            y: Targets.

        Returns:
            ``(N,)``.

        Raises:
            InputError: A label is no class of the fit, or an argument cannot be used.
        """
        X, index = plain_rows(X)
        (y,) = beside(index, y=y)
        found = self.predictive(X)
        n = found.output_mean.shape[0]
        if self.classes_ is not None:
            y = known_codes(y, self.classes_, n)
            if bool((y < 0).any()):
                row = int((y < 0).nonzero()[0])
                raise InputError(f"The label in row {row} is no class of the fit, so it has no density.", row=row)
        response, _ = check_target(y, n, self._likelihood())
        if not self._standardized:
            return found.log_density(response).numpy()
        scaled = (response - self._center) / self._unit
        return (found.log_density(scaled) - self._unit.log().sum()).numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean log predictive density per row, larger being better, for every likelihood alike.

        Args:
            X: ``(N, D)`` numbers.
            y: Targets.
            sample_weight: ``(N,)`` weights.

        Returns:
            The mean.
        """
        X, index = plain_rows(X)
        (sample_weight,) = beside(index, sample_weight=sample_weight)
        density = torch.from_numpy(self.log_density(X, y))
        weights = check_weights(sample_weight, density.shape[0])
        return float(density.mean() if weights is None else (weights @ density) / weights.sum())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"_left_out": None, "_predicted": None}  # they hold rows, which a pickle does not

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    # saving: numbers and names, no rows and no code -------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Save the fitted model in a directory, as ``raphson.save`` does; ``raphson.load`` reads it.

        Args:
            directory: Where to.
        """
        import raphson

        raphson.save(self, directory)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the fitted model."""
        check_is_fitted(self, "posterior_")
        units = {"columns": torch.from_numpy(np.stack([self._means, self._spread]))}
        if self._standardized:
            units["target"] = torch.stack([self._center, self._unit])
        for prefix, post in zip(_prefixes(len(self.posteriors_)), self.posteriors_, strict=True):
            units |= {f"{prefix}{name}": t for name, t in post.state_dict().items()}
        return units

    def metadata(self) -> dict[str, Any]:
        """Return the likelihood, names and facts of the fitted model, ready for JSON."""
        check_is_fitted(self, "posterior_")
        names = getattr(self, "feature_names_in_", None)
        return {
            "likelihood": to_description(self._likelihood()),
            "names": None if names is None else list(names),
            "classes": None if self.classes_ is None else class_labels(self.classes_),
            "bounds": self.bounds_,
            "converged": self.converged_,
            "posterior": json.dumps([post.metadata() for post in self.posteriors_]),
        }

    @classmethod
    def from_state(cls, params: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> BayesianMLP:
        """Rebuild a model of ``get_params``, ``state_dict`` and ``metadata``; it predicts the same bit for bit."""
        model = cls(from_description(metadata["likelihood"]), **params)
        model._means, model._spread = tensors["columns"].numpy()
        model.n_features_in_ = len(model._means)
        if metadata["names"] is not None:
            model.feature_names_in_ = np.array(metadata["names"], dtype=object)
        classes = metadata["classes"]
        model.classes_ = None if classes is None else restore_classes(classes)
        model._standardized = "target" in tensors
        if model._standardized:
            model._center, model._unit = tensors["target"]
        described = json.loads(metadata["posterior"])
        described = described if isinstance(described, list) else [described]  # of one network, before there were more
        posteriors = []
        for start, one in zip(_prefixes(len(described)), described, strict=True):
            own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            last = own[f"parameter.{2 * len(model.hidden)}.bias"]
            network = next(model._networks(model.n_features_in_, last))
            posteriors.append(Posterior.from_state(own, one, network))
        model._hold(posteriors)
        model.bounds_, model.converged_ = metadata["bounds"], metadata["converged"]
        model.n_iter_ = len(model.bounds_)
        return model

    # units ------------------------------------------------------------------------------------------------------------

    def _learn_units(self, table: Any, y: Tensor, likelihood: Likelihood, weights: Tensor | None) -> Tensor:
        """Remember means and standard deviations, and return the standardized columns."""
        if not isinstance(table, np.ndarray):
            table = table.toarray()
        w = np.ones(len(table)) if weights is None else weights.numpy()
        self._means = np.average(table, axis=0, weights=w)
        spread = np.sqrt(np.average((table - self._means) ** 2, axis=0, weights=w))
        # what rounding leaves of a constant is no spread
        self._spread = np.where(spread > 1e-12 * np.abs(self._means), spread, 1.0)
        continuous = likelihood.support == REAL and y.is_floating_point()
        self._standardized = continuous and not takes_labels(likelihood)  # probabilities of classes have no unit
        if self._standardized:
            rows, own = y.reshape(len(y), -1), torch.from_numpy(w)[:, None] / w.sum()
            center = (own * rows).sum(0)
            unit = (own * (rows - center).square()).sum(0).sqrt()
            unit = torch.where(unit > 1e-12 * center.abs(), unit, 1.0)
            self._center, self._unit = (center, unit) if y.ndim > 1 else (center[0], unit[0])
        return self._scaled(table)

    def _scaled(self, table: Any) -> Tensor:
        table = table if isinstance(table, np.ndarray) else table.toarray()
        return as_tensor((table - self._means) / self._spread)

    def _in_units(self, values: Tensor, shift: bool = True) -> NDArray[np.float64]:
        if self._standardized:
            values = values * self._unit + (self._center if shift else 0.0)
        return (values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values).numpy()

    # the networks -----------------------------------------------------------------------------------------------------

    def _hold(self, posteriors: list[Posterior]) -> None:
        """Remember the posteriors, and the network of the first."""
        self.posteriors_ = posteriors
        self.posterior_ = posteriors[0]
        module = self.posterior_.objective.model.module
        assert isinstance(module, nn.Sequential)
        self.model_ = module

    def _networks(self, inputs: int, start: Tensor) -> Iterator[nn.Sequential]:
        """Yield the networks at their start, with outputs near ``start``, ``(C,)``."""
        random = check_random_state(self.random_state)
        for _ in range(self.members):
            yield self._network(inputs, start, torch.Generator().manual_seed(int(random.randint(2**31 - 1))))

    def _network(self, inputs: int, start: Tensor, generator: torch.Generator) -> nn.Sequential:
        modules: list[nn.Module] = []
        for a, b in pairwise((inputs, *self.hidden)):
            layer = _empty_linear(a, b)
            with torch.no_grad():
                layer.weight.normal_(std=a**-0.5, generator=generator)
                layer.bias.normal_(std=0.5, generator=generator)
            modules += [layer, ACTIVATIONS[self.activation]()]
        last = _empty_linear((inputs, *self.hidden)[-1], len(start))
        with torch.no_grad():
            last.weight.normal_(std=0.1 * last.in_features**-0.5, generator=generator)
            last.bias.copy_(start)
        return nn.Sequential(*modules, last).eval()

    def _likelihood(self) -> Likelihood:
        if self.likelihood is None:
            return HeteroscedasticGaussian()
        if isinstance(self.likelihood, type):
            name = self.likelihood.__name__
            raise InputError(f"likelihood is the class {name}; pass an instance, {name}().")
        found: Likelihood = as_likelihood(self.likelihood)
        return found

    def _check_options(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}, but it must be one of {', '.join(ACTIVATIONS)}.")
        sizes = tuple(self.hidden) if isinstance(self.hidden, Sequence | np.ndarray) else ()
        if not sizes or any(not isinstance(size, int | np.integer) or size < 1 for size in sizes):
            raise InputError(f"hidden is {self.hidden!r}, but it must be whole numbers of units, such as (50,).")
        for size in sizes:  # the curvature of a layer is a square of its width
            check_dense_size((int(size), int(size)), torch.float64, "fewer hidden units")
        for name in ("members", "max_iter", "steps"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
            if not whole and not (name != "members" and value is None):
                raise InputError(f"{name} is {value!r}, but it must be a whole number, 1 or more.")
        if not isinstance(self.tol, int | float | np.number) or not self.tol >= 0:
            raise InputError(f"tol is {self.tol!r}, but it must be a number, 0 or more.")
        try:
            check_random_state(self.random_state)
        except ValueError:
            raise InputError(f"random_state is {self.random_state!r}, but it must be a whole number or None.") from None


def _prefixes(members: int) -> list[str]:
    """Return with what the names of each member's tensors start."""
    return ["posterior."] if members == 1 else [f"posterior.{i}." for i in range(members)]


def _empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with undefined entries, for which no random numbers are drawn."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)  # type: ignore[no-untyped-call]
    return made
