"""What the two estimators share: a fit of checked rows, what is published of it, and what is kept when it is saved."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import IndefiniteError, InputError, NotEstimableError, RaphsonWarning, TooLargeError
from raphson.estimators._names import INTERCEPT
from raphson.estimators._report import ReportMixin
from raphson.estimators.fit._certificate import Certificate
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.fit._examine import examine
from raphson.estimators.fit._fit import fit, null_predictors
from raphson.estimators.fit._limit_fit import far_coefficients
from raphson.estimators.fit._options import FitOptions
from raphson.estimators.input._formulas import Formulas
from raphson.estimators.input._layout import Layout
from raphson.estimators.input._overflow import refuse_overflow
from raphson.estimators.input._rows import Rows
from raphson.estimators.input._validate import are_numbered
from raphson.estimators.separation._collinear import Collinearity
from raphson.estimators.separation._divergence import Divergence
from raphson.infer import Estimates, covariance_root, of_root
from raphson.likelihoods import Likelihood
from raphson.solve import Solution, Status

_COVARIANCE_COEFFICIENTS = 3000
"""The covariance is saved with the model up to this many coefficients (72 MB)."""

_BLOCK_OUTPUTS = 2**18
"""Outputs of the rows whose log-likelihood is computed at a time: they stay in the cache (2 MB)."""

_FRACTIONAL = (
    "Weights that are not whole numbers count no rows: the sandwich, the default here, takes them as sampling weights; "
    "observed and expected information would take them as counts."
)

_SOLUTION = ("value", "gradient_norm", "iterations", "method")
_FACTS = ("loglik_", "loglik_null_", "df_model_", "df_null_", "n_obs_", "n_rows_", "n_iter_", "n_features_in_")


class LinearEstimator(ReportMixin, BaseEstimator):
    """A linear model behind scikit-learn's interface; an estimator supplies arguments, layout and predictions."""

    fit_intercept: bool
    separation_: Any
    collinearity_: Collinearity | None
    n_iter_: int

    def _fit_rows(self, rows: Rows, likelihood: Likelihood, layout: Layout, start: Tensor | None) -> None:
        """Fit checked rows, perhaps from an earlier fit's coefficients, and set a fitted estimator's attributes."""
        if layout.output_map.intercept and not are_numbered(layout.columns) and INTERCEPT in layout.columns:
            raise InputError(f"A column is called '{INTERCEPT}', which is the name of the intercept; rename it.")
        self._layout = layout
        refuse_overflow(rows, likelihood, layout.outputs)
        options = FitOptions.of(self)
        fitted, collinearity = fit(rows, likelihood, layout, options, start)
        fitted, self.separation_, self._refusal = examine(fitted, rows, options)
        self.collinearity_ = collinearity
        self._fitted, self._training = fitted, rows
        self._estimates_cache: dict[Any, Estimates] = {}
        self._only_penalized = self._kept_kind = None
        self._saved_notes: list[str] = []
        for name in ("loglik_", "loglik_null_"):  # those of an earlier fit
            self.__dict__.pop(name, None)
        objective, solution = fitted.objective, fitted.solution
        at, ones = far_coefficients(fitted), int(layout.output_map.intercept)
        coef = at.numpy()
        self.coef_ = coef[:, ones:].copy()
        self.intercept_ = coef[:, 0].copy() if ones else np.zeros(len(coef))
        self.solution_ = replace(solution, certify=Certificate(fitted, rows, at))
        self._penalty = objective.l2
        self.n_obs_, self.n_rows_ = objective.total_weight, fitted.n_rows
        self._fractional = rows.are_weights_fractional
        self.df_model_ = objective.n_parameters
        self.df_null_ = int(self._null_intercepts().shape[1])
        self.n_iter_ = solution.iterations

    def _coefficients_before(self, shape: tuple[int, int]) -> Tensor | None:
        """Return the coefficients ``(C, D')`` of the last fit, if they have this shape."""
        if not hasattr(self, "coef_") or self.coef_.shape != shape:
            return None
        return self._coefficients()

    def _null_intercepts(self) -> Tensor:
        """Return the constraint matrix ``(C, r)`` of the intercepts of the model without columns."""
        raise NotImplementedError

    # log-likelihoods ----------------------------------------------------------------------------------------------

    @cached_property
    def loglik_(self) -> float:  # type: ignore[override]
        """Log-likelihood at the fit with all constants, summed over weighted rows; computed when first asked for.

        Infinite where the targets are fitted exactly and a spread about them was to be estimated.
        """
        if self._is_unbounded():
            return math.inf
        return self._loglik(self._training_rows(), self._training_outputs)

    @cached_property
    def loglik_null_(self) -> float:  # type: ignore[override]
        """Log-likelihood of the model with offsets and intercepts alone; computed when first asked for."""
        rows = self._training_rows()
        if self._is_unbounded() and rows.offset is None and bool((rows.y == rows.y[:1]).all()):
            return math.inf  # which fits equal targets exactly, too
        return self._loglik_null()

    def _is_unbounded(self) -> bool:
        return isinstance(self.separation_, Divergence) and self.separation_.unbounded

    def _loglik_null(self) -> float:
        rows = self._training_rows()
        f = null_predictors(rows, self._likelihood(), len(self.intercept_), self._null_intercepts())

        def outputs(part: slice) -> Tensor:
            n = rows.y[part].shape[0]
            return f.expand(n, -1) if rows.offset is None else f + rows.offset[part]

        return self._loglik(rows, outputs)

    def _loglik(self, rows: Rows, outputs: Callable[[slice], Tensor]) -> float:
        """Return the log-likelihood of rows, a block at a time: all at once would take memory of the table's size."""
        likelihood, total = self._likelihood(), 0.0
        size = max(1, _BLOCK_OUTPUTS // max(1, len(self.intercept_)))
        for start in range(0, rows.y.shape[0], size):
            part = slice(start, start + size)
            nll = likelihood.nll(outputs(part), rows.y[part])
            total += float(nll.sum() if rows.weights is None else rows.weights[part] @ nll)
        return -total

    # names ----------------------------------------------------------------------------------------------------------

    @property
    def _names(self) -> list[str]:
        return list(self._layout.columns)

    def _notes(self) -> list[str]:
        notes = [*self._saved_notes, *self._layout.sharing()]
        if self._formulas is not None and self._formulas.note:
            notes.append(self._formulas.note)
        if self._fractional:
            notes.append(_FRACTIONAL)
        if self.collinearity_ is not None:
            notes += self.collinearity_.sentences()
        if self.separation_ is not None:
            notes.append(self.separation_.sentence())
        return list(dict.fromkeys(notes))

    # saving: numbers and names, no rows and no code -------------------------------------------------------------------

    def _kept(self) -> tuple[CovarianceKind | None, Estimates | None, list[str]]:
        """Return what a summary needs and nobody can compute without the rows.

        Returns:
            The kind of the covariance that it shows, the estimates with it, None where there is none or it is too
            large, and what the summary says of them.
        """
        if self._layout.output_map.n_parameters > _COVARIANCE_COEFFICIENTS:
            return None, None, []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RaphsonWarning)  # the summary warns, of a fit or of a copy
                found, note = self._shown_estimates()
        except (NotEstimableError, IndefiniteError, TooLargeError):
            return None, None, []
        notes = [note, self._only_penalized_note()]
        kind = next(key[0] for key, known in self._estimates_cache.items() if known is found)
        return kind, found, [text for text in notes if text is not None]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the fitted model, the covariance among them where it can be had and held."""
        check_is_fitted(self)
        state = {"coef": torch.from_numpy(self.coef_), "intercept": torch.from_numpy(self.intercept_)}
        _, found, _ = self._kept()
        if found is not None:
            root = covariance_root(found.covariance)
            if root.shape[1] > root.shape[0]:
                root = torch.linalg.qr(root.mT, mode="r").R.mT
            state["covariance_root"] = torch.nn.functional.pad(root, (0, root.shape[0] - root.shape[1])).contiguous()
            state["estimable"] = found.estimable
            if found.null_space is not None:
                state["null_space"] = found.null_space.contiguous()
        return state

    def metadata(self) -> dict[str, Any]:
        """Return the names and facts of the fitted model, ready for JSON."""
        check_is_fitted(self)
        solution = self.solution_
        kind, found, notes = self._kept()
        return {
            "names": self._names,
            "named": hasattr(self, "feature_names_in_"),
            "facts": {name: getattr(self, name) for name in _FACTS},
            "solution": {
                "status": solution.status.name,
                **{name: getattr(solution, name) for name in _SOLUTION},
            },
            "refusal": self._refusal,
            "notes": [*self._notes(), *notes],
            "ridge": self._penalty,
            "fractional": self._fractional,
            "covariance": None if found is None else {"kind": kind, "name": found.kind},
            "formulas": None if self._formulas is None else self._formulas.to_json(),
        }

    def _restore(self, layout: Layout, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Fill an unfitted estimator with what ``state_dict`` and ``metadata`` returned.

        Raises:
            InputError: If they do not belong together.
        """
        shape = len(layout.outputs), len(layout.columns)
        if tuple(tensors["coef"].shape) != shape:
            what = "classes" if self._axis_names[0] == "class" else "outputs"
            raise InputError(
                f"The saved coefficients have shape {tuple(tensors['coef'].shape)}, but the model has "
                f"{shape[0]} {what} and {shape[1]} columns; the files do not belong together."
            )
        self._layout = layout
        self.coef_, self.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
        for name in _FACTS:
            setattr(self, name, facts["facts"][name])
        if facts["named"]:
            self.feature_names_in_ = np.array(self._names, dtype=object)
        known = facts["solution"]
        at = {name: known[name] for name in _SOLUTION}
        self.solution_ = Solution(torch.zeros(0), Status[known["status"]], **at)
        self._refusal, self._saved_notes, self._penalty = facts["refusal"], facts["notes"], facts["ridge"]
        self._fractional, formulas = facts["fractional"], facts["formulas"]
        self._formulas = None if formulas is None else Formulas.from_json(formulas)
        self.separation_ = self.collinearity_ = None
        self._fitted = self._training = None
        self._estimates_cache = {}
        named = facts["covariance"]
        self._kept_kind = None if named is None else named["kind"]
        if named is not None:
            self._estimates_cache[self._kept_kind, None, "sampling"] = Estimates(
                values=self._reported(),
                covariance=of_root(tensors["covariance_root"]),
                labels=layout.labels,
                kind=named["name"],
                estimable=tensors["estimable"],
                null_space=tensors.get("null_space"),
                axis_names=self._axis_names,
            )

    def __getstate__(self) -> dict[str, Any]:
        # neither the user's rows nor the solver's working state belong in a pickle; what a summary says of them does
        known: dict[str, Any] = {}
        if getattr(self, "_training", None) is not None:
            kind, _, notes = self._kept()
            known.update({"_kept_kind": kind, "_saved_notes": [*self._saved_notes, *notes], "_only_penalized": None})
            known.update({name: getattr(self, name) for name in ("loglik_", "loglik_null_")})
        state: dict[str, Any] = dict(super().__getstate__())
        if "_training" in state:
            solution = replace(self.solution_, hessian=None, last_step=None, certify=None)
            state.update(_training=None, _fitted=None, solution_=solution, **known)
        return state

    # copies in this process share rows and fit, which nothing writes to

    def __copy__(self) -> Self:
        return self._copied(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._copied(lambda value: copy.deepcopy(value, memo))

    def _copied(self, of: Callable[[Any], Any]) -> Self:
        made = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            made.__dict__[name] = value if name in ("_fitted", "_training", "solution_") else of(value)
        made.__dict__["_estimates_cache"] = dict(self.__dict__.get("_estimates_cache", {}))
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
