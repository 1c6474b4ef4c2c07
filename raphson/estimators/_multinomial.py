"""Multinomial (softmax) logistic regression with standard errors, behind scikit-learn's interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson.estimators import _state
from raphson.estimators._prediction import PredictionMixin
from raphson.estimators.fit._fitting import FitOptions, Progress, examine, fit_linear, null_loglik
from raphson.estimators.fit._linear_fit import LinearFit
from raphson.estimators.input._classes import (
    class_totals,
    class_weights,
    encode_classes,
    find_reference,
    most_frequent_last,
    shares_loglik,
)
from raphson.estimators.input._rows import Rows, make_rows
from raphson.estimators.input._validate import check_offset, check_table, check_target, check_weights, feature_names
from raphson.estimators.separation._collinear import INTERCEPT
from raphson.estimators.separation._separation import Separation, find_separation
from raphson.infer import Estimates
from raphson.likelihoods import Categorical


class MultinomialLogisticRegression(PredictionMixin, ClassifierMixin, BaseEstimator):
    r"""Multinomial logistic regression by exact Newton steps, with the inference that belongs to it.

    .. math::
        P(y = k \mid x) = \frac{e^{f_k}}{\sum_j e^{f_j}}, \quad f_k = b_k + x^T \beta_k, \qquad
        L = -\frac1W \sum_n w_n \log P(y_n \mid x_n) + \frac\lambda2 \sum_k \|\beta_k - \bar\beta\|^2 .

    The gradient is :math:`X (S - Y)^T / N` and the Hessian
    :math:`\frac1N \sum_n [\mathrm{diag}(p_n) - p_n p_n^T] \otimes x_n x_n^T`. Columns are standardized
    internally, which changes nothing but the rounding. Two classes are the case K = 2.

    Args:
        l2: Penalty :math:`\lambda` of the mean-scale objective, on slopes only and on their sum-to-zero form,
            so that predictions do not depend on the reference. scikit-learn's ``C`` is ``1 / (l2 * N)`` for
            three classes and more, and ``2 / (l2 * N)`` for two, where it penalizes the difference of the
            two.
        fit_intercept: Whether each class has an intercept.
        reference: Class whose coefficients are zero: ``"first"``, ``"last"`` or a label; None makes
            coefficients sum to zero over classes.
        solver: ``"auto"``, ``"newton"`` (dense Hessian), ``"newton-cg"`` (Hessian products),
            ``"gradient-descent"`` or ``"sgd"``.
        tol: Bound on the infinity norm of the gradient of the mean-scale objective.
        max_iter: Largest number of iterations (passes over the data for ``"sgd"``).
        class_weight: None, ``"balanced"`` or a dictionary from label to weight, multiplied into the sample
            weights.
        warm_start: Start from the previous fit's coefficients.
        progress: True shows the iterations of a long fit on the terminal; a function is called with every
            ``Step``.

    Attributes:
        coef_: ``(K, D)``, the reference's row zero.
        intercept_: ``(K,)``.
        classes_: ``(K,)`` labels.
        n_iter_: Iterations taken.
        loglik_: Log-likelihood at the fit (sum over weighted rows, without the penalty).
        loglik_null_: That of the model with intercepts alone.
        solution_: What the solver returned, with its status and history.
        separation_: What separates the classes, or None.
        collinearity_: What is linearly dependent among the columns, or None where it was not looked for.

    References:
        Bohning (1992), Multinomial logistic regression algorithm. Agresti (2013), Categorical Data Analysis,
        ch. 8.

    Examples:
        Two groups: the slope is the log odds ratio, its variance the sum of reciprocal counts.

        >>> import numpy as np
        >>> x = np.repeat([0.0, 0.0, 1.0, 1.0], [30, 10, 20, 40])[:, None]
        >>> y = np.repeat([0, 1, 0, 1], [30, 10, 20, 40])
        >>> model = MultinomialLogisticRegression().fit(x, y)
        >>> round(float(model.coef_[1, 0]), 6) == round(float(np.log(30 * 40 / (10 * 20))), 6)
        True
        >>> round(float(model.standard_errors().iloc[1]), 6) == round((1/30 + 1/10 + 1/20 + 1/40) ** 0.5, 6)
        True
    """

    _mean_scale = "simplex"

    def __init__(
        self,
        *,
        l2: float = 0.0,
        fit_intercept: bool = True,
        reference: Any = "first",
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int = 100,
        class_weight: Any = None,
        warm_start: bool = False,
        progress: Progress = False,
    ) -> None:
        self.l2 = l2
        self.fit_intercept = fit_intercept
        self.reference = reference
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.progress = progress

    # fitting ------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> MultinomialLogisticRegression:
        """Fit the model.

        Args:
            X: ``(N, D)`` frame, array, SciPy sparse matrix or tensor of numbers.
            y: ``(N,)`` class labels.
            sample_weight: ``(N,)`` weights; 3 means the same as three rows, 0 leaves a row out.
            offset: ``(N, K)`` added to the linear predictors, columns in the order of the sorted labels.

        Returns:
            The fitted estimator. An argument that cannot be used is an ``InputError`` that names the row,
            column or class.
        """
        options = FitOptions.of(self)
        table = check_table(self, X, reset=True)
        names = feature_names(X, table.shape[1])
        labels = check_target(y, table.shape[0])
        weights = check_weights(sample_weight, table.shape[0])
        classes, codes = encode_classes(labels, weights)
        find_reference(self.reference, classes)
        rows = make_rows(table, codes, weights, check_offset(offset, table.shape[0], len(classes)))
        rows = replace(rows, weights=class_weights(rows, classes, self.class_weight))
        start = self._coefficients_before(classes) if self.warm_start else None
        totals = class_totals(rows, len(classes))
        order, places = most_frequent_last(rows, totals)
        fitted, collinearity = fit_linear(
            rows,
            places,
            Categorical(),
            names,
            options,
            order=order,
            reference=len(classes) - 1,
            start=start,
        )

        def separating(direction: Tensor | None) -> Separation | None:
            texts = [str(c) for c in classes]
            found = rows.x, rows.y, len(classes), rows.weights, names, texts, options.fit_intercept
            return find_separation(*found, candidate=direction)

        fitted, separation, refusal = examine(fitted, separating)
        self.classes_, self._names = classes, names
        self.separation_, self.collinearity_ = separation, collinearity
        self._publish(fitted, rows, refusal, totals)
        return self

    def _coefficients_before(self, classes: NDArray[Any]) -> Tensor | None:
        """Return the coefficients ``(K, D')`` of the last fit, if it had the same classes and columns."""
        if not hasattr(self, "coef_") or not np.array_equal(self.classes_, classes):
            return None
        if self.coef_.shape[1] != self.n_features_in_:
            return None
        if self.fit_intercept:
            return torch.from_numpy(np.column_stack([self.intercept_, self.coef_]))
        return torch.from_numpy(self.coef_)

    def _publish(self, fitted: LinearFit, rows: Rows, refusal: str | None, totals: NDArray[Any]) -> None:
        """Set the attributes of a fitted estimator."""
        self._fitted, self._training, self._refusal = fitted, rows, refusal
        self._estimates_cache: dict[Any, Estimates] = {}
        self._saved_notes: list[str] = []
        objective, solution = fitted.objective, fitted.solution
        coef = fitted.coefficients(self._reference_output()).numpy()
        self.coef_ = coef[:, int(self.fit_intercept) :].copy()
        self.intercept_ = coef[:, 0].copy() if self.fit_intercept else np.zeros(len(coef))
        self.solution_ = solution
        self._penalty = objective.l2
        self.n_obs_ = objective.total_weight
        self.df_model_ = objective.n_parameters
        self.df_null_ = objective.n_free * int(objective.design.intercept)
        self.n_iter_ = solution.iterations
        self.loglik_ = -(solution.value - objective.penalty(solution.theta)) * objective.total_weight
        if rows.offset is None and self.fit_intercept:
            self.loglik_null_ = shares_loglik(totals)
        else:
            self.loglik_null_ = null_loglik(
                rows, Categorical(), len(self.classes_), intercept=objective.design.intercept
            )

    # prediction ---------------------------------------------------------------------------------------------

    def decision_function(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return linear predictors ``(N, K)``, or ``(N,)`` for two classes (second relative to first).

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to them.

        Returns:
            Linear predictors.
        """
        f = self._linear_predictors(X, offset)
        return f[:, 1] - f[:, 0] if f.shape[1] == 2 else f

    def predict_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return class probabilities ``(N, K)``, columns in the order of ``classes_``.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            Probabilities; rows sum to one.
        """
        return Categorical().mean(torch.from_numpy(self._linear_predictors(X, offset))).numpy()

    def predict_log_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return log class probabilities ``(N, K)``, finite where the probability underflows.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            Logarithms of ``predict_proba``.
        """
        return torch.log_softmax(torch.from_numpy(self._linear_predictors(X, offset)), 1).numpy()

    def predict(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return the most probable class of each row.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            ``(N,)`` labels.
        """
        best = self._best_outputs(X, offset)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    # names --------------------------------------------------------------------------------------------------

    def _likelihood(self) -> Categorical:
        return Categorical()

    def _output_names(self) -> list[str]:
        return [str(c) for c in self.classes_]

    def _reference_output(self) -> int | None:
        return find_reference(self.reference, self.classes_)

    def _column_names(self) -> list[str]:
        return [INTERCEPT, *self._names] if self.fit_intercept else list(self._names)

    def _coefficient_labels(self) -> tuple[tuple[str, str], ...]:
        reference = self._reference_output()
        outputs = [str(c) for k, c in enumerate(self.classes_) if k != reference]
        return tuple((output, column) for output in outputs for column in self._column_names())

    def _title(self) -> str:
        reference = self._reference_output()
        relative = "sum to zero over classes" if reference is None else f"relative to class {self.classes_[reference]}"
        return f"Multinomial logistic regression, {len(self.classes_)} classes, coefficients {relative}"

    def _notes(self) -> list[str]:
        notes = list(self._saved_notes)
        if self.collinearity_ is not None:
            notes += self.collinearity_.sentences()
        if self.separation_ is not None:
            notes.append(self.separation_.sentence())
        return notes

    # saving -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the fitted model, the covariance among them where it can be had and held."""
        check_is_fitted(self)
        return _state.state_dict(self)

    def metadata(self) -> dict[str, Any]:
        """Return the names, labels and facts of the fitted model, ready for JSON."""
        check_is_fitted(self)
        return {"classes": _state.class_labels(self.classes_), **_state.metadata(self)}

    @classmethod
    def from_state(
        cls, params: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> MultinomialLogisticRegression:
        """Rebuild a fitted model, which predicts bit for bit alike.

        Args:
            params: Constructor arguments, as ``get_params`` gives them.
            tensors: What ``state_dict`` returned.
            metadata: What ``metadata`` returned.

        Returns:
            The model, without the training rows. Parts that do not belong together are an ``InputError``.
        """
        model = cls(**params)
        model.classes_, model._names = _state.restore_classes(metadata["classes"]), metadata["names"]
        _state.restore(model, tensors, metadata, "classes")
        return model

    def __getstate__(self) -> dict[str, Any]:
        # neither the user's rows nor the solver's working state belong in a pickle
        state: dict[str, Any] = dict(super().__getstate__())
        if "_training" in state:
            solution = replace(self.solution_, hessian=None, last_step=None)
            state.update(_training=None, _fitted=None, solution_=solution)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
