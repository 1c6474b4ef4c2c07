"""Multinomial (softmax) logistic regression with standard errors, behind scikit-learn's interface."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import CollinearityWarning, InputError, SeparationWarning
from raphson.curvature._linear import LinearObjective
from raphson.data import DenseDesign, Design, SparseDesign
from raphson.glm import _state
from raphson.glm._collinear import INTERCEPT, Collinearity, find_collinear
from raphson.glm._inference import InferenceMixin
from raphson.glm._linear_fit import CovarianceKind, LinearFit
from raphson.glm._separation import find_separation
from raphson.glm._solvers import SOLVERS, solve
from raphson.glm._validate import as_tensor, check_offset, check_table, check_target, check_weights, feature_names
from raphson.infer import Estimates, MarginsResult, MeanInterval, binary_columns, margins, mean_interval
from raphson.likelihoods import Categorical
from raphson.solve import Status, Step, newton

_SUSPICIOUS_STEP = 1e-2
"""A Newton step at convergence that still changes some linear predictor by this much points to separation."""


@dataclass(frozen=True)
class _Training:
    """The rows a model was fitted to, for quantities that need them afterwards.

    Attributes:
        x: Table without the rows of zero weight.
        y: Class indices.
        weights: Positive weights or None.
        offset: ``(n, K)`` or None.
        kept: Boolean mask of the given rows that have positive weight.
        n_given: Rows given to ``fit``.
    """

    x: Any
    y: Tensor
    weights: Tensor | None
    offset: Tensor | None
    kept: np.ndarray[Any, Any]
    n_given: int


class MultinomialLogisticRegression(InferenceMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Multinomial logistic regression by exact Newton steps, with the inference that belongs to it.

    .. math::
        P(y = k \mid x) = \frac{e^{f_k}}{\sum_j e^{f_j}}, \quad f_k = b_k + x^T \beta_k, \qquad
        L = -\frac1W \sum_n w_n \log P(y_n \mid x_n) + \frac\lambda2 \sum_k \|\beta_k - \bar\beta\|^2 .

    The gradient is :math:`X (S - Y)^T / N` and the Hessian
    :math:`\frac1N \sum_n [\mathrm{diag}(p_n) - p_n p_n^T] \otimes x_n x_n^T`. Columns are standardized internally, which
    changes nothing but the rounding. Two classes are the case K = 2.

    Args:
        l2: Penalty :math:`\lambda` of the mean-scale objective, on slopes only and on their sum-to-zero form, so that
            predictions do not depend on the reference. scikit-learn's ``C`` is ``1 / (l2 * N)`` for three classes and
            more, and ``2 / (l2 * N)`` for two, where it penalizes the difference of the two.
        fit_intercept: Whether each class has an intercept.
        reference: Class whose coefficients are zero: ``"first"``, ``"last"`` or a label; None makes coefficients sum to
            zero over classes.
        solver: ``"auto"``, ``"newton"`` (dense Hessian), ``"newton-cg"`` (Hessian products), ``"gradient-descent"`` or
            ``"sgd"``.
        tol: Bound on the infinity norm of the gradient of the mean-scale objective.
        max_iter: Largest number of iterations (passes over the data for ``"sgd"``).
        class_weight: None, ``"balanced"`` or a dictionary from label to weight, multiplied into the sample weights.
        warm_start: Start from the previous fit's coefficients.
        progress: True shows the iterations of a long fit on the terminal; a function is called with every ``Step``.

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
        Bohning (1992), Multinomial logistic regression algorithm. Agresti (2013), Categorical Data Analysis, ch. 8.

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
        progress: bool | Callable[[Step], None] = False,
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

    # fitting ---------------------------------------------------------------------------------------------------------

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None
    ) -> MultinomialLogisticRegression:
        """Fit the model.

        Args:
            X: ``(N, D)`` frame, array, SciPy sparse matrix or tensor of numbers.
            y: ``(N,)`` class labels.
            sample_weight: ``(N,)`` weights; 3 means the same as three rows, 0 leaves a row out.
            offset: ``(N, K)`` added to the linear predictors, columns in the order of the sorted labels.

        Returns:
            The fitted estimator.

        Raises:
            InputError: If an argument cannot be used; the message names the row, column or class.
        """
        self._check_parameters()
        table = check_table(self, X, reset=True)
        names = feature_names(X, table.shape[1])
        labels = check_target(y, table.shape[0])
        training, classes = self._rows(table, labels, sample_weight, offset)
        previous = self._previous(classes) if self.warm_start else None
        self.classes_ = classes
        self._names = names
        self._reference_output()
        self._training = training
        self._estimates_cache: dict[Any, Any] = {}
        self.separation_ = None
        self.collinearity_: Collinearity | None = None

        n_columns = len(names) + self.fit_intercept
        kept, basis = torch.arange(n_columns), torch.zeros(n_columns, 0, dtype=torch.float64)
        if self.l2 == 0:
            self.collinearity_ = find_collinear(training.x, training.weights, names, self.fit_intercept)
            if self.collinearity_.nullity:
                kept, basis = _independent(self.collinearity_, n_columns, int(self.fit_intercept))
                warnings.warn(" ".join(self.collinearity_.sentences()), CollinearityWarning, stacklevel=2)
        order = _most_frequent_last(training, len(classes))
        objective = self._objective(training, kept, order)
        start = torch.zeros(objective.n_parameters, dtype=torch.float64)
        if previous is not None:
            start = objective.free(objective.design.from_table(previous[order][:, kept]))
        solution = solve(
            objective, start, solver=self.solver, tol=self.tol, max_iter=self.max_iter, callback=self._callback()
        )
        fitted = LinearFit(objective, solution, kept, order, basis, n_columns, int(training.kept.sum()))
        self._publish(*self._examine(fitted, training))
        return self

    def _check_parameters(self) -> None:
        if not (isinstance(self.l2, (int, float, np.number)) and math.isfinite(self.l2) and self.l2 >= 0):
            raise InputError(f"l2 must be a number that is not negative, got {self.l2!r}.")
        if self.solver not in SOLVERS:
            raise InputError(f"Unknown solver {self.solver!r}; choose one of {', '.join(SOLVERS)}.")
        if not self.tol > 0:
            raise InputError(f"tol must be positive, got {self.tol!r}.")
        if not (isinstance(self.max_iter, (int, np.integer)) and self.max_iter >= 0):
            raise InputError(f"max_iter must be a whole number that is not negative, got {self.max_iter!r}.")

    def _rows(self, table: Any, labels: Any, sample_weight: Any, offset: Any) -> tuple[_Training, Any]:
        n = table.shape[0]
        weights = check_weights(sample_weight, n)
        kept = np.ones(n, dtype=bool) if weights is None else (weights > 0).numpy()
        classes, codes = np.unique(labels, return_inverse=True)
        if not kept.all():
            present = np.unique(codes[kept])
            if len(present) < len(classes):
                absent = int(np.setdiff1d(np.arange(len(classes)), present)[0])
                raise InputError(
                    f"The class {_plain(classes[absent])} occurs only in rows of zero sample_weight (first in row "
                    f"{int(np.argmax(codes == absent))}), so nothing can be learned of it; give those rows weight, or "
                    "drop them before fitting."
                )
        if len(classes) < 2:
            raise InputError(
                f"The target has only one class, {_plain(classes[0])}; a classifier needs at least two. Were the other rows "
                "filtered out?"
            )
        o = check_offset(offset, n, len(classes))
        if not kept.all():
            table, codes = table[kept], codes[kept]
            weights = None if weights is None else weights[torch.from_numpy(kept)]
            o = None if o is None else o[torch.from_numpy(kept)]
        codes_t = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64))
        if self.class_weight is not None:
            per_class = compute_class_weight(self.class_weight, classes=np.arange(len(classes)), y=codes) if isinstance(
                self.class_weight, str
            ) else compute_class_weight(self.class_weight, classes=classes, y=classes[codes])
            extra = torch.from_numpy(np.asarray(per_class, dtype=np.float64))[codes_t]
            weights = extra if weights is None else weights * extra
        x = table if sp.issparse(table) else as_tensor(table)
        return _Training(x, codes_t, weights, o, kept, n), classes

    def _previous(self, classes: Any) -> Tensor | None:
        if not hasattr(self, "coef_") or not np.array_equal(self.classes_, classes):
            return None
        if self.coef_.shape[1] != self.n_features_in_:
            return None
        if self.fit_intercept:
            return torch.from_numpy(np.column_stack([self.intercept_, self.coef_]))
        return torch.from_numpy(self.coef_)

    def _objective(self, training: _Training, kept: Tensor, order: Tensor) -> LinearObjective:
        columns = kept[kept >= int(self.fit_intercept)] - int(self.fit_intercept)
        intercept = bool(self.fit_intercept)
        x = training.x
        everything = columns.shape[0] == x.shape[1]
        design: Design
        if sp.issparse(x):
            part = x if everything else x[:, columns.numpy()]
            design = SparseDesign(part, intercept=intercept, standardize=True)
        else:
            design = DenseDesign(x if everything else x[:, columns], intercept=intercept, standardize=True)
        return LinearObjective(
            design,
            Categorical(),
            torch.argsort(order)[training.y],
            n_outputs=order.shape[0],
            weights=training.weights,
            offset=None if training.offset is None else training.offset[:, order],
            l2=float(self.l2),
            reference=order.shape[0] - 1,
        )

    def _callback(self) -> Callable[[Step], None] | None:
        if callable(self.progress):
            return self.progress
        if not self.progress:
            return None
        from raphson.report import progress_line

        return progress_line()

    def _examine(self, fitted: LinearFit, training: _Training) -> tuple[LinearFit, str | None]:
        """Look for separation where the fit shows signs of it, and say whether classical inference can be had."""
        solution = fitted.solution
        if self.l2 == 0 and self._looks_separated(fitted):
            direction = None
            if solution.last_step is not None:
                moved = replace(fitted, solution=replace(solution, theta=solution.last_step))
                direction = moved.coefficients(None)
            self.separation_ = find_separation(
                training.x,
                training.y,
                len(self.classes_),
                training.weights,
                self._names,
                [str(c) for c in self.classes_],
                self.fit_intercept,
                candidate=direction,
            )
            if self.separation_ is not None:
                sentence = self.separation_.sentence()
                warnings.warn(sentence, SeparationWarning, stacklevel=3)
                return replace(fitted, solution=replace(solution, status=Status.DIVERGING)), sentence
        if not solution.converged:
            sentence = (
                f"{solution.status.sentence} (solver {solution.method}, {solution.iterations} iterations, gradient norm "
                f"{solution.gradient_norm:.1e}). Raise max_iter, loosen tol, or add a penalty (l2)."
            )
            warnings.warn(sentence, ConvergenceWarning, stacklevel=3)
            return fitted, "No standard errors: the fit did not converge. " + sentence
        return fitted, None

    def _looks_separated(self, fitted: LinearFit) -> bool:
        step = fitted.solution.last_step
        if step is None:
            return not fitted.solution.converged
        free = step.view(fitted.objective.n_free, -1)
        blocks = fitted.objective.design.blocks(len(self.classes_))
        return any(float(block.predict(free).abs().max()) > _SUSPICIOUS_STEP for block in blocks)

    def _publish(self, fitted: LinearFit, refusal: str | None) -> None:
        """Set the attributes of a fitted estimator."""
        self._fitted: LinearFit | None = fitted
        self._refusal = refusal
        objective = fitted.objective
        coef = fitted.coefficients(self._reference_output()).numpy()
        self.coef_ = coef[:, int(self.fit_intercept) :].copy()
        self.intercept_ = coef[:, 0].copy() if self.fit_intercept else np.zeros(len(coef))
        self.solution_ = fitted.solution
        self._penalty = objective.l2
        self._saved_notes: list[str] | None = None
        self.n_obs_ = objective.total_weight
        self.df_model_ = objective.n_parameters
        self.df_null_ = objective.n_free * int(objective.design.intercept)
        self.n_iter_ = fitted.solution.iterations
        theta = fitted.solution.theta
        self.loglik_ = -(fitted.solution.value - objective.penalty(theta)) * objective.total_weight
        self.loglik_null_ = self._null_loglik()

    def _null_loglik(self) -> float:
        rows, k = self._training, len(self.classes_)
        if rows.offset is None:
            counts = torch.bincount(rows.y, weights=rows.weights, minlength=k).double()
            if not self.fit_intercept:
                return -float(counts.sum()) * math.log(k)
            return float(torch.xlogy(counts, counts / counts.sum()).sum())
        empty = DenseDesign(torch.zeros(rows.y.shape[0], 0, dtype=torch.float64), intercept=bool(self.fit_intercept))
        null = LinearObjective(
            empty, Categorical(), rows.y, n_outputs=k, weights=rows.weights, offset=rows.offset, reference=0
        )
        start = torch.zeros(null.n_parameters, dtype=torch.float64)
        value = newton(null, start).value if self.fit_intercept else null.value(start)
        return -value * null.total_weight

    # prediction ------------------------------------------------------------------------------------------------------

    def decision_function(self, X: Any, offset: Any = None) -> np.ndarray[Any, Any]:
        """Return linear predictors ``(N, K)``, or ``(N,)`` for two classes (second relative to first).

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to them.

        Returns:
            Linear predictors.
        """
        f = self._predictors(X, offset)
        return f[:, 1] - f[:, 0] if f.shape[1] == 2 else f

    def _predictors(self, X: Any, offset: Any) -> np.ndarray[Any, Any]:
        check_is_fitted(self)
        table = check_table(self, X, reset=False)
        f = np.asarray(table @ self.coef_.T) + self.intercept_
        o = check_offset(offset, f.shape[0], f.shape[1])
        return f if o is None else f + o.numpy()

    def predict_proba(self, X: Any, offset: Any = None) -> np.ndarray[Any, Any]:
        """Return class probabilities ``(N, K)``, columns in the order of ``classes_``.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            Probabilities; rows sum to one.
        """
        return Categorical().mean(torch.from_numpy(self._predictors(X, offset))).numpy()

    def predict_log_proba(self, X: Any, offset: Any = None) -> np.ndarray[Any, Any]:
        """Return log class probabilities ``(N, K)``, finite where the probability underflows.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            Logarithms of ``predict_proba``.
        """
        return torch.log_softmax(torch.from_numpy(self._predictors(X, offset)), 1).numpy()

    def predict(self, X: Any, offset: Any = None) -> np.ndarray[Any, Any]:
        """Return the most probable class of each row.

        Args:
            X: ``(N, D)`` rows.
            offset: ``(N, K)`` added to the linear predictors.

        Returns:
            ``(N,)`` labels.
        """
        best = self._predictors(X, offset).argmax(1)
        return self.classes_[best]

    def predict_interval(
        self,
        X: Any,
        level: float = 0.95,
        offset: Any = None,
        kind: CovarianceKind = "observed",
        groups: Any = None,
        **options: Any,
    ) -> MeanInterval:
        """Return confidence intervals of the class probabilities, by the delta method on the logit scale.

        Args:
            X: ``(N, D)`` rows.
            level: Confidence level.
            offset: ``(N, K)`` added to the linear predictors.
            kind: Covariance, as in ``estimates``.
            groups: Clusters of the training rows, as in ``estimates``.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            Probabilities, standard errors and bounds, each ``(N, K)``; bounds stay within 0 and 1.
        """
        f = torch.from_numpy(self._predictors(X, offset))
        table = check_table(self, X, reset=False)
        rows = torch.from_numpy(table.toarray()) if sp.issparse(table) else as_tensor(table)
        covariance = self._all_coefficients(kind, groups, options).covariance
        return mean_interval(Categorical(), f, rows, covariance, level, scale="simplex")

    # margins ---------------------------------------------------------------------------------------------------------

    def margins(
        self,
        at: str = "overall",
        *,
        kind: CovarianceKind = "observed",
        groups: Any = None,
        discrete: bool = True,
        **options: Any,
    ) -> MarginsResult:
        """Return average marginal effects of each column on each class probability, with delta-method errors.

        Args:
            at: ``"overall"`` averages over the training rows; ``"mean"`` takes the mean row.
            kind: Covariance, as in ``estimates``.
            groups: Clusters, as in ``estimates``.
            discrete: Treat columns that hold 0 and 1 only as switches: the effect is the change from 0 to 1.
            **options: ``correction`` and ``weights`` of ``estimates``.

        Returns:
            Effects labeled (class, column).
        """
        check_is_fitted(self)
        rows = self._training_rows()
        x = torch.from_numpy(rows.x.toarray()) if sp.issparse(rows.x) else rows.x
        return margins(
            Categorical(),
            self._all_coefficients(kind, groups, options),
            x,
            mean_names=[str(c) for c in self.classes_],
            weights=rows.weights,
            offset=rows.offset,
            binary=binary_columns(x) if discrete else torch.zeros(x.shape[1], dtype=torch.bool),
            at=at,
        )

    def _all_coefficients(self, kind: CovarianceKind, groups: Any, options: dict[str, Any]) -> Estimates:
        """Return estimates of all K (D + 1) coefficients, summing to zero over classes, an absent intercept as zero."""
        self.estimates(kind, groups, **options)  # refuses what cannot be had, for the same reasons
        fitted = self._fitted
        if fitted is None:
            self._training_rows()
        assert fitted is not None
        codes = None if groups is None else self._group_codes(groups)
        labels = tuple((str(c), name) for c in self.classes_ for name in self._column_names())
        found = fitted.estimates(labels, None, kind, codes, **options)
        if self.fit_intercept:
            return found
        k, d = len(self.classes_), len(self._names)
        pad = torch.zeros(k, d + 1, k, d, dtype=torch.float64)
        index = torch.arange(d)
        for c in range(k):
            pad[c, index + 1, c, index] = 1.0
        padded = tuple((str(c), name) for c in self.classes_ for name in [INTERCEPT, *self._names])
        return found.transform(pad.view(k * (d + 1), k * d), padded)

    # names -----------------------------------------------------------------------------------------------------------

    def _reference_output(self) -> int | None:
        if self.reference is None:
            return None
        if isinstance(self.reference, str) and self.reference in ("first", "last"):
            return 0 if self.reference == "first" else len(self.classes_) - 1
        where = np.flatnonzero(self.classes_ == self.reference)
        if len(where) == 0:
            known = ", ".join(_plain(c) for c in self.classes_[:20])
            raise InputError(
                f"The reference {self.reference!r} is not a class of the target; choose 'first', 'last', None or one of "
                f"{known}."
            )
        return int(where[0])

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
        notes = list(self._saved_notes or ())
        if self.collinearity_ is not None:
            notes += self.collinearity_.sentences()
        if self.separation_ is not None:
            notes.append(self.separation_.sentence())
        return notes

    # saving ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the fitted model; the covariance is among them where it can be had and held."""
        check_is_fitted(self)
        return _state.state_dict(self)

    def metadata(self) -> dict[str, Any]:
        """Return the names, labels and facts of the fitted model, ready for JSON."""
        check_is_fitted(self)
        return _state.metadata(self)

    @classmethod
    def from_state(
        cls, params: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> MultinomialLogisticRegression:
        """Rebuild a fitted model from its parameters, ``state_dict`` and ``metadata``; it predicts bit for bit alike.

        Args:
            params: Constructor arguments, as ``get_params`` gives them.
            tensors: What ``state_dict`` returned.
            metadata: What ``metadata`` returned.

        Returns:
            The model, without the training rows.

        Raises:
            InputError: If the parts do not belong together.
        """
        model = cls(**params)
        _state.restore(model, tensors, metadata)
        return model

    def __getstate__(self) -> dict[str, Any]:
        # neither the user's rows nor the solver's working state belong in a pickle
        state: dict[str, Any] = dict(super().__getstate__())
        if "_training" in state:
            state.update(_training=None, _fitted=None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _most_frequent_last(training: _Training, n_classes: int) -> Tensor:
    """Return the classes with the most frequent one last, where the solver keeps its reference, ``(K,)``.

    Relative to it the Hessian is best conditioned; what is reported is changed to the user's reference afterwards.
    """
    counts = torch.bincount(training.y, weights=training.weights, minlength=n_classes)
    order = torch.arange(n_classes)
    most = int(counts.argmax())
    return torch.cat([order[:most], order[most + 1 :], order[most : most + 1]])


def _independent(collinearity: Collinearity, n_columns: int, first: int) -> tuple[Tensor, Tensor]:
    """Return the columns to fit, ``(rank,)``, and a basis of the combinations that vanish, ``(D', nullity)``.

    The intercept, where ``first`` is 1, is always fitted; of the others the late ones are left out.
    """
    from scipy.linalg import qr

    basis = collinearity.null_basis.double()
    scaled = basis / basis.abs().amax(0)
    # the null space can be solved for the columns left out: a pivoted QR picks them
    order = torch.arange(n_columns - 1, first - 1, -1)
    _, pivots = qr(scaled[order].mT.numpy(), mode="r", pivoting=True)
    dropped = order[torch.from_numpy(pivots[: basis.shape[1]].copy()).long()]
    kept = torch.ones(n_columns, dtype=torch.bool)
    kept[dropped] = False
    return kept.nonzero()[:, 0], basis


def _plain(label: Any) -> str:
    """Return a label as a person writes it, not as NumPy wraps it."""
    return repr(label.item() if hasattr(label, "item") else label)
