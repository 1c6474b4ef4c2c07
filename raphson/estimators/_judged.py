"""What a fitted estimator is judged by: its Hessian in coefficients of the table, its error bound, its rows."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError
from raphson.data import DenseDesign, SparseDesign
from raphson.diagnose import ErrorBound, Subject, everywhere
from raphson.estimators._names import INTERCEPT
from raphson.estimators._summary import SummaryMixin
from raphson.estimators.fit._certificate import certify
from raphson.infer import label_name
from raphson.likelihoods import Likelihood
from raphson.linalg import Dense, Implicit, SymmetricOperator
from raphson.linear import OutputMap

_DENSE = 2000
"""Coefficients up to which the Hessian is formed."""


class JudgedMixin(SummaryMixin):
    """Diagnosis and error certificate, for an estimator that supplies its likelihood."""

    _error_bound: ErrorBound | None = None

    def _likelihood(self) -> Likelihood:
        raise NotImplementedError

    def _coefficients(self) -> Tensor:
        """Return the reported coefficients ``(C, D')``."""
        ones = int(self._layout.output_map.intercept)
        slopes, intercepts = torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_)
        return torch.cat([intercepts[:, None][:, :ones], slopes], 1)

    def _certify(self) -> ErrorBound:
        if self._error_bound is None:
            self._error_bound = certify(self._require_fit(), self._training_rows(), self._coefficients())
        return self._error_bound

    def attach(self, X: Any, y: Any = None, sample_weight: Any = None, offset: Any = None) -> Self:
        """Give a loaded model the rows it was fitted to, without fitting.

        What needs rows can then be had again: ``solution_.error_bound``, ``rp.diagnose``, robust covariances. Whether
        the rows are those of the fit is what the error bound shows: at other rows the coefficients are no optimum.

        Args:
            X: The table, as in ``fit``.
            y: The target, as in ``fit``.
            sample_weight: Weights, as in ``fit``.
            offset: Offsets, as in ``fit``.

        Returns:
            The estimator.

        Raises:
            InputError: The table does not have the columns and classes of the model.
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
        self._fitted, self._training, self._error_bound = other._fitted, other._training, None
        object.__setattr__(self.solution_, "certify", self._certify)
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
        expand, contrasts = None, None
        if relative:
            labels = tuple(label_name((output, column)) for output in layout.outputs for column in columns)
            contrasts = _contrasts(here.n_outputs)
            expand = _Expand(contrasts, len(columns))
        matrix = raw.ridge.diagonal.new_zeros((here.n_parameters,) * 2) if here.n_parameters <= _DENSE else None
        operator: SymmetricOperator = hessian
        penalty: SymmetricOperator | None = None
        if matrix is not None:
            operator = Dense(_projected(hessian.to_dense(), contrasts, len(columns)), labels=labels)
            if l2:
                raw.ridge.add_to(matrix)
                penalty = Dense(_projected(matrix, contrasts, len(columns)))
        elif expand is not None:
            operator = Implicit(
                lambda v: expand.adjoint(hessian.mv(expand(v).reshape(-1))),
                (here.n_outputs - 1) * len(columns),
                torch.float64,
            )
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
            expand=expand,
            labels=labels,
            constant_hessian=likelihood.self_concordance == 0,
        )


class _Expand:
    """From coefficients of orthonormal contrasts of classes ``(C - 1) D'`` to those of all classes, and back."""

    def __init__(self, contrasts: Tensor, n_columns: int) -> None:
        self._contrasts, self._n = contrasts, n_columns

    def __call__(self, vector: Tensor) -> Tensor:
        return (self._contrasts @ vector.view(-1, self._n)).reshape(-1)

    def adjoint(self, vector: Tensor) -> Tensor:
        return (self._contrasts.mT @ vector.view(-1, self._n)).reshape(-1)


def _contrasts(n_outputs: int) -> Tensor:
    """Return an orthonormal basis of vectors that sum to zero, ``(C, C - 1)``."""
    eye = torch.eye(n_outputs, dtype=torch.float64)
    found: Tensor = torch.linalg.qr((eye - 1.0 / n_outputs)[:, :-1])[0]
    return found


def _projected(matrix: Tensor, contrasts: Tensor | None, n_columns: int) -> Tensor:
    """Return ``Z^T A Z`` for ``Z`` the contrasts of every column, or A itself."""
    if contrasts is None:
        return matrix
    c, k = contrasts.shape
    found = torch.einsum("ak,aibj,bl->kilj", contrasts, matrix.view(c, n_columns, c, n_columns), contrasts)
    return found.reshape(k * n_columns, k * n_columns)
