"""Linear models for every likelihood of the catalogue, each parameter with columns of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.data import ColumnSums
from raphson.estimators._base import LinearEstimator
from raphson.estimators._no_mean import finite_mean
from raphson.estimators.fit._options import Progress
from raphson.estimators.input._aligned import check_columns
from raphson.estimators.input._formulas import ALL
from raphson.estimators.input._given import Given, beside, plain_rows
from raphson.estimators.input._layout import Layout, make_layout, make_parameter_layout, served_outputs
from raphson.estimators.input._named import named_likelihood
from raphson.estimators.input._tables import is_tables, merge_tables
from raphson.estimators.input._target import check_target, level_codes
from raphson.estimators.input._validate import check_offset, check_training_table, check_weights, feature_names
from raphson.likelihoods import (
    COUNT,
    NONNEGATIVE,
    OPEN_UNIT_INTERVAL,
    POSITIVE,
    UNIT_INTERVAL,
    Likelihood,
    as_likelihood,
    command_name,
    commands,
    from_description,
    to_description,
)
from raphson.linear import matrix_rank

_GIVEN = ("scale", "dispersion", "shape", "df", "trials")
"""Fields of likelihoods that hold a known parameter."""


class VectorGLM(LinearEstimator):
    r"""A linear model for any likelihood, each of whose parameters has a linear predictor.

    .. math::
        y_n \sim p(\cdot \mid f_n), \qquad f_n = \sum_g H_g \Theta_g x_{n,g} + o_n, \qquad
        L = -\frac1W \sum_n w_n \log p(y_n \mid f_n) + \frac\lambda2 \sum_g \|\Theta_g\|^2 .

    The outputs f (C per row) are what the likelihood says: a log mean, a mean and a log scale, the cumulative logits of
    ordered levels. By default columns act on the first parameter, and the others (scale, dispersion, precision) are
    constants; slopes of ordered levels are parallel. Both are constraint matrices :math:`H_g` (C, r_g), as is every
    other arrangement:

    * ``constraints="own"``: each output has its own coefficients; ``"parallel"``: all share one; ``"log_scale"`` or a
      list of names: the columns act on these parameters; an array ``(C, r)``: as it says.
    * ``constraints={"x1": ..., "(intercept)": ...}``: column by column, the others as by default.
    * ``fit({"mean": X1, "log_scale": X2}, y)``: a table for each parameter (distributional regression). Columns of the
      same name and values count once; a parameter left out is a constant.
    * ``formula={"mean": "y ~ x1 + C(g)", "log_scale": "~ x1"}``: the same from one table with named columns. A single
      text, ``formula="y ~ x1 + C(g)"``, makes the columns and leaves their place to ``constraints``.

    The optimum is found by Newton steps; where the likelihood is not concave, by expected information first and
    observed information at the end.

    Args:
        likelihood: A likelihood, say ``Poisson()``, what ``as_likelihood`` makes one of, or its name on the command
            line (``"poisson"``, ``"negative-binomial"``, ``"ordinal"``).
        formula: A formula, or formulas by parameter, as above; the left side of one of them names the target. Codings
            (levels, splines, centers) are learned in ``fit`` and kept for prediction. ``- 1`` takes an intercept out,
            ``offset(log(t))`` adds an offset, and the left side ``Surv(time, event)`` names censored times.
        constraints: How columns act on the outputs, as above; None for the default.
        l2: Penalty :math:`\lambda` of the average loss, on slopes only: scikit-learn's ``alpha`` for its
            Poisson regression.
        penalty: ``"ridge"`` or ``"jeffreys"``, as in ``MultinomialLogisticRegression``.
        fit_intercept: False leaves out the intercept of the parameters that columns act on; constants stay.
        solver: ``"auto"``, ``"newton"`` (dense Hessian) or ``"newton-cg"`` (Hessian products); for a concave likelihood
            without constraints also ``"gradient-descent"`` or ``"sgd"``.
        tol, max_iter, warm_start, progress: As in ``MultinomialLogisticRegression``.

    Attributes:
        coef_: ``(C, D)`` slopes of the outputs: constraints expanded, zero where a column does not act. What they are
            under separation, and all attributes not listed here, are as in ``MultinomialLogisticRegression``.
        intercept_: ``(C,)``.
        output_names_: Names of the C outputs.
        levels_: Names of the levels, lowest first, where the target was an ordered categorical or counts levels
            otherwise than from 0; else None.
        solution_: What the solver returned; its ``value`` leaves out terms that depend on the targets only.

    References:
        Yee and Wild (1996), Vector generalized additive models, J. R. Statist. Soc. B 58, 481-493. McCullagh and Nelder
        (1989), Generalized Linear Models, 2nd ed. Rigby and Stasinopoulos (2005), Appl. Statist. 54, 507-554.

    Examples:
        Two groups of counts: the slope is the log ratio of the means, its variance the sum of reciprocal totals.

        >>> import numpy as np
        >>> from raphson import Poisson
        >>> x = np.array([0.0, 0.0, 1.0, 1.0])[:, None]
        >>> model = VectorGLM(Poisson()).fit(x, [3, 5, 7, 9])
        >>> bool(np.isclose(model.coef_[0, 0], np.log(16 / 8)))
        True
        >>> bool(np.isclose(model.standard_errors().iloc[1], (1 / 8 + 1 / 16) ** 0.5))
        True
    """

    _axis_names = ("parameter", "column")
    _responses: tuple[str, ...] = ()
    """Names of the columns of the targets of the fit, if they came in a frame; not saved."""

    def __init__(
        self,
        likelihood: Any,
        *,
        formula: Any = None,
        constraints: Any = None,
        l2: float = 0.0,
        penalty: str = "ridge",
        fit_intercept: bool = True,
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int = 100,
        warm_start: bool = False,
        progress: Progress = False,
    ) -> None:
        self.likelihood = likelihood
        self.formula = formula
        self.constraints = constraints
        self.l2 = l2
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.progress = progress

    # fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None) -> VectorGLM:
        """Fit the model.

        Args:
            X: ``(N, D)`` frame, array, SciPy sparse matrix or tensor of numbers; or a dictionary from the name of a
                parameter to a dense table of its own; with ``formula`` a frame of raw columns, whose rows with missing
                values are left out and counted in the summary.
            y: Targets as the likelihood takes them: ``(N,)``, or ``(N, M)`` for M responses; levels of an ordinal
                likelihood are whole numbers, such as 0 .. J - 1 or 1 .. J, or an ordered categorical.
            sample_weight: ``(N,)`` weights; 3 means the same as three rows, 0 leaves a row out.
            offset: ``(N, C)`` added to the outputs; ``(N,)`` is added where a column acts by default, as if it had the
                coefficient one (the logarithm of the exposure, for counts).

        Returns:
            The fitted estimator.

        Raises:
            InputError: If an argument cannot be used; the message names the row, column or parameter. Rows go together
                by position, and pandas objects whose row labels contradict it are refused.
        """
        given = Given.of(self.formula, X, y, sample_weight, offset)
        self._formulas = given.formulas
        if isinstance(self.likelihood, str):
            self._named = named_likelihood(self.likelihood, given.y, given.is_censored)
        likelihood = self._likelihood()
        if given.is_censored and not getattr(likelihood, "censored", False):
            raise InputError(
                f"Surv(time, event) holds censored times, which {type(likelihood).__name__} does not take as it is; "
                "use Weibull(censored=True)."
            )
        with given.naming_rows():
            table, names, sums = self._read(given.x)
            y, levels = level_codes(given.y, likelihood)
            response, c = check_target(y, table.shape[0], likelihood)
            layout = self._make_layout(likelihood, c, names)
            if levels is not None and layout.outputs == tuple(f"{k}|{k + 1}" for k in range(len(levels) - 1)):
                cuts = tuple(f"{low}|{high}" for low, high in itertools.pairwise(levels))
                layout = replace(layout, outputs=cuts)
            weights = check_weights(given.sample_weight, table.shape[0])
            check_columns(given.offset, layout.outputs, "offset")
            whole = self._whole_offset(given.frame, given.offset, table.shape[0], c)
            rows = given.rows(table, response, weights, whole, sums)
        start = self._coefficients_before((c, len(names))) if self.warm_start else None
        self._fit_rows(rows, likelihood, layout, start)
        self.levels_ = levels
        self._responses = tuple(map(str, getattr(given.y, "columns", ())))
        return self

    def _null_intercepts(self) -> Tensor:
        default, own = self._likelihood().default_columns(len(self.intercept_))[0], self._layout.intercepts
        # without some intercepts a model with them all is not nested in this one
        return default if matrix_rank(torch.cat([own, default], 1)) == matrix_rank(own) else own

    def _read(self, X: Any) -> tuple[Any, Sequence[str], ColumnSums | None]:
        """Return the table of all columns, their names and sums, if known; remembers which parameter has which."""
        self._columns = None
        if is_tables(X):
            if self.constraints is not None:
                raise InputError(
                    "A table for each parameter already says which columns act on it; leave out constraints, or pass "
                    "one table with them."
                )
            X, self._columns = merge_tables(X)
        table, sums = check_training_table(self, X, min_columns=self._min_columns)
        return table, feature_names(X, table.shape[1]), sums

    def _make_layout(self, likelihood: Likelihood, c: int, names: Sequence[str]) -> Layout:
        left_out = () if self._formulas is None else self._formulas.without_intercept
        if self._columns is None:
            constraints = self.constraints
            if constraints is None and isinstance(self.likelihood, str):
                named = commands().get(command_name(self.likelihood))
                constraints = None if named is None else named[1].constraints
            return make_layout(likelihood, c, names, constraints, self.fit_intercept and not left_out)
        without = left_out if self.fit_intercept else tuple(self._columns)
        layout = make_parameter_layout(likelihood, c, self._columns, without)
        position = {name: i for i, name in enumerate(layout.columns)}
        return replace(layout, columns=tuple(names), matrices=tuple(layout.matrices[position[n]] for n in names))

    # prediction --------------------------------------------------------------------------------------------------

    def linear_predictors(self, X: Any, offset: Any = None) -> NDArray[np.float64]:
        """Return the outputs ``(N, C)`` of rows, in the order of ``output_names_``; arguments as in ``fit``."""
        return self._linear_predictors(X, offset)

    def predict(self, X: Any, offset: Any = None) -> NDArray[np.float64]:
        """Return the mean of the target in each row; the median where it has no finite mean, with a warning.

        Args:
            X: ``(N, D)`` rows, or a dictionary of tables as at the fit.
            offset: Added to the outputs, as in ``fit``.

        Returns:
            ``(N,)``, or ``(N, M)`` for several responses; of levels and classes the probabilities ``(N, K)``.
        """
        likelihood, f = self._likelihood(), torch.from_numpy(self._linear_predictors(X, offset))
        places = likelihood.locations(f.shape[-1])
        mean = finite_mean(likelihood.mean(f).numpy(), None if places is None else f[..., places].numpy)
        return mean[:, 0] if mean.ndim == 2 and mean.shape[1] == 1 else mean

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None) -> float:
        """Return the mean log-likelihood per row, larger being better, whatever the likelihood.

        Args:
            X: ``(N, D)`` rows.
            y: Targets; None for the column that the formula names.
            sample_weight: ``(N,)`` weights.
            offset: Added to the outputs.

        Returns:
            The mean.
        """
        check_is_fitted(self)
        X, index = plain_rows(X)
        f = torch.from_numpy(self._linear_predictors(X, offset))
        y, sample_weight = beside(index, y=y, sample_weight=sample_weight)
        check_columns(y, self._responses, "y")
        if self._formulas is not None:
            y = self._formulas.response(X, y)
        y, _ = level_codes(y, self._likelihood(), self.levels_)
        response, _ = check_target(y, f.shape[0], self._likelihood())
        loglik = -self._likelihood().nll(f, response)
        weights = check_weights(sample_weight, f.shape[0])
        return float(loglik.mean() if weights is None else (weights @ loglik) / weights.sum())

    def _output_offset(self, offset: Any, n_rows: int, n_outputs: int) -> Tensor | None:
        if offset is not None and n_outputs > 1 and np.ndim(offset) == 1:
            slopes = self._likelihood().default_columns(n_outputs)[1]
            if slopes.shape[1] == 1:
                column = check_offset(offset, n_rows, 1)
                return None if column is None else column @ slopes.mT
        return check_offset(offset, n_rows, n_outputs)

    def _spread_offset(self, parameter: str, values: Tensor, n_outputs: int) -> Tensor:
        if parameter != ALL:
            return values[:, None] * served_outputs(parameter, self._likelihood(), n_outputs)
        found = self._output_offset(values, len(values), n_outputs)
        assert found is not None
        return found

    @property
    def _mean_scale(self) -> str:  # type: ignore[override]
        """On which scale intervals of the mean are symmetric, so that they stay in its range."""
        likelihood = self._likelihood()
        c = len(self.intercept_)
        at = torch.zeros(1, c, dtype=torch.float64)
        mean = likelihood.mean(at)
        if mean.shape[-1] > c // len(likelihood.parameters):
            return "simplex"
        first, support = likelihood.parameters[0], likelihood.support
        if first.startswith("logit") or support in (UNIT_INTERVAL, OPEN_UNIT_INTERVAL):
            return "logit" if torch.allclose(likelihood.variance(at), mean * (1 - mean)) else "proportion"
        return "log" if first.startswith("log_") or support in (COUNT, POSITIVE, NONNEGATIVE) else "identity"

    # what the mixins ask for ------------------------------------------------------------------------------------------

    def _likelihood(self) -> Likelihood:
        given = self.likelihood
        if isinstance(given, str):
            if not hasattr(self, "_named"):
                check_is_fitted(self)
            return self._named
        if isinstance(given, type) and issubclass(given, Likelihood):
            raise InputError(f"likelihood is the class {given.__name__}; pass an instance, {given.__name__}().")
        found: Likelihood = as_likelihood(given)
        return found

    def _given_facts(self) -> list[tuple[str, str]]:
        likelihood = self._likelihood()
        given = [(name, getattr(likelihood, name, None)) for name in _GIVEN]
        return [(name.capitalize(), f"{value:g} (given)") for name, value in given if isinstance(value, int | float)]

    def _has_probabilities(self) -> bool:
        support = self._likelihood().support
        return support in (COUNT, UNIT_INTERVAL)

    @property
    def output_names_(self) -> list[str]:
        """Names of the outputs, ``(C,)``."""
        check_is_fitted(self)
        return list(self._layout.outputs)

    def _mean_names(self) -> list[str]:
        likelihood, c = self._likelihood(), len(self.intercept_)
        m = likelihood.mean(torch.zeros(1, c, dtype=torch.float64)).shape[-1]
        if m == 1:
            return ["mean"]
        if self.levels_ is not None and len(self.levels_) == m:
            return [f"P[{level}]" for level in self.levels_]
        return [f"{'P' if self._mean_scale == 'simplex' else 'mean'}[{i}]" for i in range(m)]

    def _title(self) -> str:
        return f"{type(self._likelihood()).__name__} regression, outputs {', '.join(self._layout.outputs)}"

    # saving ----------------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return the likelihood, the layout of the columns and the facts of the fitted model, ready for JSON."""
        check_is_fitted(self)
        return {
            "likelihood": to_description(self._likelihood()),
            "layout": self._layout.to_json(),
            "columns": self._columns,
            "levels": self.levels_,
            **super().metadata(),
        }

    @classmethod
    def from_state(cls, params: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> VectorGLM:
        """Rebuild a model of ``get_params``, ``state_dict`` and ``metadata``; it predicts the same bit for bit."""
        model = cls(from_description(metadata["likelihood"]), **params)
        model._columns = metadata["columns"]
        model.levels_ = metadata["levels"]
        model._restore(Layout.from_json(metadata["layout"]), tensors, metadata)
        return model
