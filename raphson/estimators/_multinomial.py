"""Multinomial (softmax) logistic regression with standard errors, behind scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators._base import LinearEstimator
from raphson.estimators.fit._options import Progress
from raphson.estimators.input._aligned import check_columns
from raphson.estimators.input._classes import (
    class_labels,
    class_totals,
    class_weights,
    encode_classes,
    known_codes,
    reference_position,
    restore_classes,
    shares_loglik,
)
from raphson.estimators.input._formulas import Formulas
from raphson.estimators.input._given import Given, beside, plain_rows
from raphson.estimators.input._layout import Layout
from raphson.estimators.input._validate import check_entries, check_weights, convert_table, feature_names
from raphson.likelihoods import Categorical


class MultinomialLogisticRegression(ClassifierMixin, LinearEstimator):
    r"""Multinomial logistic regression by exact Newton steps, with the inference that belongs to it.

    .. math::
        P(y = k \mid x) = \frac{e^{f_k}}{\sum_j e^{f_j}}, \quad f_k = b_k + x^T \beta_k, \qquad
        L = -\frac1W \sum_n w_n \log P(y_n \mid x_n) + \frac\lambda2 \sum_k \|\beta_k - \bar\beta\|^2 .

    The gradient is :math:`X (S - Y)^T / N` and the Hessian
    :math:`\frac1N \sum_n [\mathrm{diag}(p_n) - p_n p_n^T] \otimes x_n x_n^T`. Columns are standardized
    internally, which changes nothing but the rounding. Two classes are the case K = 2.

    Args:
        l2: Penalty :math:`\lambda` of the average loss, on slopes only and on their sum-to-zero form,
            so that predictions do not depend on the reference. scikit-learn's ``C`` is ``1 / (l2 * N)`` for
            three classes and more, and ``2 / (l2 * N)`` for two, where it penalizes the difference of the
            two.
        penalty: ``"ridge"``, of size ``l2``; or ``"jeffreys"``: the likelihood times the root of the determinant of
            the expected information, whose maximum is finite under separation and less biased (Firth 1993).
        fit_intercept: Whether each class has an intercept.
        formula: A formula such as ``"party ~ age + C(educ)"``, for a table with named columns; the left side names the
            target. Codings are learned in ``fit`` and kept for prediction.
        reference: Class whose coefficients are zero: ``"first"``, ``"last"`` or a label; None makes coefficients sum to
            zero over classes. Of a pandas categorical, first and last are in the order of its categories.
        solver: ``"auto"``, ``"newton"`` (dense Hessian), ``"newton-cg"`` (Hessian products),
            ``"gradient-descent"`` or ``"sgd"``.
        tol: Bound on the infinity norm of the gradient of the average loss.
        max_iter: Largest number of iterations (passes over the data for ``"sgd"``).
        class_weight: None, ``"balanced"`` or a dictionary from label to weight, multiplied into the sample
            weights.
        warm_start: Start from the previous fit's coefficients.
        progress: True shows the iterations of a long fit on the terminal; a function is called with every
            ``Step``.

    Attributes:
        coef_: ``(K, D)``, the reference's row zero. Under separation those with a finite estimate have it, and the
            others, whose estimate is infinite, the size at which the fit stopped: predictions are then near the limit.
            ``summary()`` and ``separation_`` say which.
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
        formula: Any = None,
        l2: float = 0.0,
        penalty: str = "ridge",
        fit_intercept: bool = True,
        reference: Any = "first",
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int = 100,
        class_weight: Any = None,
        warm_start: bool = False,
        progress: Progress = False,
    ) -> None:
        self.formula = formula
        self.l2 = l2
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.reference = reference
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.progress = progress

    # fitting ------------------------------------------------------------------------------------------------

    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None
    ) -> MultinomialLogisticRegression:
        """Fit the model.

        Args:
            X: ``(N, D)`` frame, array, SciPy sparse matrix or tensor of numbers; with ``formula`` a frame of raw
                columns, whose rows with missing values are left out and counted in the summary.
            y: ``(N,)`` class labels; None for the column that the formula names.
            sample_weight: ``(N,)`` weights; 3 means the same as three rows, 0 leaves a row out.
            offset: ``(N, K)`` added to the linear predictors, columns in the order of the sorted labels.

        Returns:
            The fitted estimator.

        Raises:
            InputError: If an argument cannot be used; the message names the row, column or class. Rows go together by
                position, and pandas objects whose row labels contradict it are refused.
        """
        if self.formula is not None and not isinstance(self.formula, str):
            raise InputError(f"formula must be a text such as 'party ~ age + C(educ)'; got {self.formula!r:.80}.")
        given = Given.of(self.formula, X, y, sample_weight, offset)
        if given.is_censored:
            raise InputError("Surv(time, event) holds censored times; classes have one column.")
        self._formulas = given.formulas
        table = convert_table(self, given.x, min_columns=self._min_columns)
        names = feature_names(given.x, table.shape[1])
        with given.naming_rows():
            weights = check_weights(given.sample_weight, table.shape[0])
            classes, codes = encode_classes(given.y, table.shape[0], weights)
            sums = check_entries(table, given.x, None if weights is not None else codes, len(classes))
        self._reference = reference_position(self.reference, classes, given.y)
        layout = self._make_layout(classes, names)
        check_columns(given.offset, layout.outputs, "offset")
        with given.naming_rows():
            whole = self._whole_offset(given.frame, given.offset, table.shape[0], len(classes))
        rows = given.rows(table, codes, weights, whole, sums)
        if self.class_weight is not None:
            rows = replace(rows, weights=class_weights(rows, classes, self.class_weight))
        start = None
        if self.warm_start and hasattr(self, "classes_") and np.array_equal(self.classes_, classes):
            start = self._coefficients_before((len(classes), len(names)))
        self._fit_rows(rows, Categorical(), layout, start)
        self.classes_: NDArray[Any] = classes
        return self

    def _make_layout(self, classes: NDArray[Any], names: Sequence[str]) -> Layout:
        """Return the layout in which every class but the reference has coefficients of its own."""
        without = self._formulas is not None and bool(self._formulas.without_intercept)
        intercept = bool(self.fit_intercept) and not without
        return Layout.of_classes([str(c) for c in classes], names, self._reference, intercept)

    def _spread_offset(self, parameter: str, values: Tensor, n_outputs: int) -> Tensor:
        if n_outputs != 2:
            raise InputError(
                f"offset(...) in a formula is one column, and there are {n_outputs} classes; pass offset=, one column "
                "per class, to fit and predict."
            )
        return torch.stack([torch.zeros_like(values), values], 1)

    def _null_intercepts(self) -> Tensor:
        eye = torch.eye(len(self.intercept_), dtype=torch.float64)
        return eye[:, 1:] if self._layout.output_map.intercept else eye[:, :0]

    def _loglik_null(self) -> float:
        rows = self._training_rows()
        if rows.offset is None and self._layout.output_map.intercept:
            return shares_loglik(class_totals(rows, len(self.classes_)))
        return super()._loglik_null()

    def _check_same_target(self, restricted: Any) -> None:
        if not isinstance(restricted, MultinomialLogisticRegression):
            raise InputError(
                f"The restricted model is a {type(restricted).__name__}, whose targets are not labels of classes; pass "
                "a MultinomialLogisticRegression."
            )
        if not np.array_equal(restricted.classes_, self.classes_):
            raise InputError("The two models do not have the same classes, so they are not nested.")
        super()._check_same_target(restricted)

    # prediction ---------------------------------------------------------------------------------------------

    def decision_function(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return linear predictors ``(N, K)`` of rows, or ``(N,)`` for two classes: second relative to first."""
        f = self._linear_predictors(X, offset)
        return f[:, 1] - f[:, 0] if f.shape[1] == 2 else f

    def predict_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return class probabilities ``(N, K)`` of rows, in the order of ``classes_``; offsets as in ``fit``."""
        return Categorical().mean(torch.from_numpy(self._linear_predictors(X, offset))).numpy()

    def predict_log_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return the logarithms of ``predict_proba``, finite where a probability underflows."""
        return torch.log_softmax(torch.from_numpy(self._linear_predictors(X, offset)), 1).numpy()

    def predict(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Return the label of the most probable class of each row, ``(N,)``."""
        best = self._best_outputs(X, offset)  # before classes_, which an unfitted estimator does not have
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None) -> float:
        """Return the share of rows whose label is predicted; a label that no row of the fit had is never.

        Args:
            X: ``(N, D)`` rows.
            y: ``(N,)`` labels; None for the column that the formula names.
            sample_weight: ``(N,)`` weights.
            offset: Added to the linear predictors, as in ``fit``.

        Returns:
            The share, weighted.

        Raises:
            InputError: If an argument cannot be used, or no label is one of the fit.
        """  # noqa: DOC502
        check_is_fitted(self)
        X, index = plain_rows(X)
        best = torch.from_numpy(self._best_outputs(X, offset))
        y, sample_weight = beside(index, y=y, sample_weight=sample_weight)
        if self._formulas is not None:
            y = self._formulas.response(X, y)
        right = (known_codes(y, self.classes_, len(best)) == best).double()
        weights = check_weights(sample_weight, len(best))
        return float(right.mean() if weights is None else (weights @ right) / weights.sum())

    # names --------------------------------------------------------------------------------------------------

    def _likelihood(self) -> Categorical:
        return Categorical()

    def _mean_names(self) -> list[str]:
        return list(self._layout.outputs)

    def _has_probabilities(self) -> bool:
        return True

    def _title(self) -> str:
        reference = self._reference
        relative = "sum to zero over classes" if reference is None else f"relative to class {self.classes_[reference]}"
        return f"Multinomial logistic regression, {len(self.classes_)} classes, coefficients {relative}"

    # saving -------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return the names, labels and facts of the fitted model, ready for JSON."""
        facts = super().metadata()
        return {"classes": class_labels(self.classes_), "reference_position": self._reference, **facts}

    @classmethod
    def from_state(
        cls, params: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> MultinomialLogisticRegression:
        """Rebuild a model of ``get_params``, ``state_dict`` and ``metadata``; it predicts the same bit for bit."""
        model = cls(**params)
        formulas, model._reference = metadata["formulas"], metadata["reference_position"]
        model._formulas = None if formulas is None else Formulas.from_json(formulas)
        model.classes_ = restore_classes(metadata["classes"])
        model._restore(model._make_layout(model.classes_, metadata["names"]), tensors, metadata)
        return model
