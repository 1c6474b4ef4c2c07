"""What a fitted estimator is judged by: its Hessian in coefficients of the table, its error bound, its rows."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Self

import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError, RaphsonWarning
from raphson.data import DenseDesign, SparseDesign
from raphson.diagnose import Subject, everywhere
from raphson.estimators._names import INTERCEPT
from raphson.estimators._summary import SummaryMixin
from raphson.estimators.fit._certificate import Certificate
from raphson.infer import label_name
from raphson.linalg import Dense, Diagonal, Implicit, KroneckerMatrix, Matrix, SymmetricOperator
from raphson.linear import OutputMap

_DENSE = 2000
"""Coefficients up to which the Hessian is formed."""

_SAME = 1e-9
"""Relative difference of log-likelihoods of the same rows in another order, and of threads, at most."""


class JudgedMixin(SummaryMixin):
    """Diagnosis and error certificate, for an estimator that supplies its likelihood."""

    def attach(self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None) -> Self:
        """Give a loaded model the rows it was fitted to, without fitting.

        What needs rows can then be had again: ``solution_.error_bound``, ``rp.diagnose``, robust covariances. Rows
        that are not those of the fit show by their number and log-likelihood, which is a ``RaphsonWarning``, and by
        the error bound: at other rows the coefficients are no optimum.

        Args:
            X: The table, as in ``fit``.
            y: The target, as in ``fit``.
            sample_weight: Weights, as in ``fit``.
            offset: Offsets, as in ``fit``.

        Returns:
            The estimator.

        Raises:
            InputError: The table does not have the columns and classes of the model.

        Examples:
            A model that was saved has its rows again, and with them robust standard errors.

            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.repeat([0.0, 1.0], 20)[:, None], np.repeat([1, 0, 1, 0], [2, 18, 10, 10])
            >>> model = rp.MultinomialLogisticRegression().fit(x, y)
            >>> import pickle
            >>> again = pickle.loads(pickle.dumps(model)).attach(x, y)
            >>> again.standard_errors("sandwich").equals(model.standard_errors("sandwich"))
            True
        """
        check_is_fitted(self)
        other: Any = clone(self)
        other.set_params(warm_start=True, max_iter=0, progress=False)
        for name in ("coef_", "intercept_", "classes_", "_layout", "_named"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no iterations
            other.fit(X, y, sample_weight, offset)
        if other._layout.labels != self._layout.labels:
            odd = next((name for name in other._layout.labels if name not in self._layout.labels), None)
            what = "other columns or classes" if odd is None else f"'{label_name(odd)}'"
            raise InputError(f"The rows do not belong to this model: they have {what}, which it was not fitted with.")
        known = self.__dict__.get("loglik_")  # a pickle has it only if it was asked for
        same = known is None or math.isclose(other.loglik_, known, rel_tol=_SAME, abs_tol=_SAME)
        if other.n_rows_ != self.n_rows_ or not same:
            values = ("", "") if known is None else (f" of log-likelihood {other.loglik_:.10g}", f" of {known:.10g}")
            warnings.warn(
                "These are not the rows that the model was fitted to: "
                f"{other.n_rows_} rows{values[0]}, and not {self.n_rows_}{values[1]}.",
                RaphsonWarning,
                stacklevel=2,
            )
        self._fitted, self._training, self._kept_kind = other._fitted, other._training, None
        certificate = Certificate(self._require_fit(), self._training_rows(), self._coefficients())
        self.solution_ = replace(self.solution_, certify=certificate)
        return self

    def diagnosed(self) -> Subject:
        """Return what ``rp.diagnose`` judges: the Hessian of the penalized average loss at the coefficients."""
        check_is_fitted(self)
        fitted, rows = self._require_fit(), self._training_rows()
        layout, likelihood, l2 = fitted.layout, self._likelihood(), fitted.objective.l2
        here, relative = layout.output_map, likelihood.differences_only and layout.is_relative
        if relative:
            here = OutputMap.own(here.n_outputs, here.n_columns, here.intercept)
        build = DenseDesign if isinstance(rows.x, Tensor) else SparseDesign
        raw = rows.objective(build(rows.x, intercept=here.intercept), likelihood, here, l2)
        hessian = raw.hessian(here.collapse(self._coefficients()))
        columns = [INTERCEPT] * here.intercept + list(layout.columns)
        labels = layout.parameter_names
        expand = None
        if relative:
            labels = tuple(label_name((output, column)) for output in layout.outputs for column in columns)
            expand = _contrasts(here.n_outputs, len(columns))
        matrix = raw.ridge.diagonal.new_zeros((here.n_parameters,) * 2) if here.n_parameters <= _DENSE else None
        operator: SymmetricOperator = hessian
        penalty: SymmetricOperator | None = None
        if matrix is not None:
            operator = Dense(_projected(hessian.to_dense(), expand), labels=labels)
            if l2:
                raw.ridge.add_to(matrix)
                penalty = Dense(_projected(matrix, expand))
        elif expand is not None:
            operator = Implicit(lambda v: expand.rmv(hessian.mv(expand.mv(v))), expand.shape[1], torch.float64)
        constant = l2
        if raw.ridge.centered and not relative:
            constant = l2 * min(float(torch.linalg.eigvalsh(q)[0]) for q in raw.ridge.matrices)
        free = tuple(name for name, fixed in zip(labels, here.is_intercept.tolist(), strict=True) if fixed)
        regular = not fitted.null_basis.shape[1] and fitted.objective.n_parameters == operator.shape[-1]
        title = f"Hessian of {self._title()}"
        return Subject(
            operator=operator,
            title=title + (" (Jeffreys' penalty aside)" if fitted.jeffreys else ""),
            everywhere=everywhere(
                likelihood,
                linear=True,
                constant=max(constant, 0.0),
                free=free,
                where="coefficients that sum to zero" if relative else "coefficients",
            ),
            congruent=fitted.objective.hessian(fitted.solution.theta) if regular and matrix is not None else None,
            penalty=penalty,
            expand=None if expand is None else expand.mv,
            labels=labels,
            constant_hessian=likelihood.self_concordance == 0,
        )


def _contrasts(n_outputs: int, n_columns: int) -> KroneckerMatrix:
    """Return the map from orthonormal contrasts of classes to all classes, column by column, ``(C D', (C - 1) D')``."""
    eye = torch.eye(n_outputs, dtype=torch.float64)
    basis = torch.linalg.qr((eye - 1.0 / n_outputs)[:, :-1])[0]
    return KroneckerMatrix((Matrix(basis), Diagonal(torch.ones(n_columns, dtype=torch.float64))))


def _projected(matrix: Tensor, contrasts: KroneckerMatrix | None) -> Tensor:
    """Return ``Z^T A Z`` for ``Z`` the contrasts of every column, or A itself."""
    return matrix if contrasts is None else contrasts.rmm(contrasts.rmm(matrix).mT)
