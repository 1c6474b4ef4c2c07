r"""A fitted linear model: the optimum in the solver's coordinates, and the maps to what is reported.

The solver works with the standardized, linearly independent columns and coefficients relative to one output.
What a person reads are coefficients of the table's columns, relative to the class of their choice, or summing
to zero over classes. Both changes are linear, ``report = M coef A^T``, so estimates and covariance are
carried over by the same two matrices: M acts on outputs, A on columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from raphson._errors import InputError, NotEstimableError
from raphson.infer import Estimates, inverse_information, sandwich, small_sample_factor
from raphson.linalg import Dense, SymmetricOperator, check_dense_size
from raphson.linear import LinearObjective
from raphson.solve import Solution

CovarianceKind = Literal["observed", "expected", "sandwich"]
WeightMeaning = Literal["frequency", "sampling"]

_NULL_SPACE_ELEMENTS = 10**7
"""Directions that the data leave open are listed up to this many numbers; beyond, coefficients one by one."""


@dataclass(frozen=True)
class LinearFit:
    """The optimum of a linear objective and what it takes to report it.

    Attributes:
        objective: Objective on the kept columns, standardized, without a penalty's reference ambiguity.
        solution: What the solver returned.
        kept: Positions of the fitted columns among all D' (the intercept is column 0), ``(d,)``.
        order: Which reported output each of the objective's outputs is, ``(C,)``.
        null_basis: ``(D', r)`` basis of the combinations of columns that vanish on the data; r is 0 if none
            do.
        n_columns: D'.
        n_rows: Rows with positive weight.
    """

    objective: LinearObjective
    solution: Solution
    kept: Tensor
    order: Tensor
    null_basis: Tensor
    n_columns: int
    n_rows: int

    def to_columns(self, coef: Tensor) -> Tensor:
        """Turn coefficients of the solver's columns into those of the table's columns, a linear map.

        Over collinear columns they are spread to the smallest norm of the slopes; the intercept costs
        nothing, as in the limit of a vanishing ridge penalty.

        Args:
            coef: ``(m, d)``.

        Returns:
            ``(m, D')``.
        """
        table = self.objective.design.to_table(coef)
        basis = self.null_basis
        if self.kept.shape[0] < self.n_columns:
            wide = coef.new_zeros(coef.shape[0], self.n_columns)
            wide[:, self.kept] = table
            table = wide
        if basis.shape[1] == 0:
            return table
        first = int(self.objective.design.intercept)
        excess = torch.linalg.lstsq(basis[first:], table[:, first:].mT).solution
        spread: Tensor = table - (basis @ excess).mT
        return spread

    def column_map(self) -> Tensor:
        """Return the matrix of ``to_columns``, ``(D', d)``."""
        d = self.kept.shape[0]
        check_dense_size((self.n_columns, d), torch.float64, "coef_ and predictions, which need no covariance")
        return self.to_columns(torch.eye(d, dtype=torch.float64)).mT

    def output_map(self, reference: int | None) -> Tensor:
        """Return M, ``(C, C_free)``: from coefficients relative to the solver's reference to reported."""
        c = self.objective.n_outputs
        full = torch.zeros(c, c, dtype=torch.float64)
        full[self.order, torch.arange(c)] = 1.0
        full = full[:, self.objective.free_outputs]
        if self.objective.reference is None:
            return full
        return full - (full.mean(0) if reference is None else full[reference])

    def coefficients(self, reference: int | None) -> Tensor:
        """Return the coefficients of the table's columns, ``(C, D')``."""
        full = self.objective.coefficients(self.solution.theta)
        coef = torch.empty_like(full)
        coef[self.order] = full
        if self.objective.reference is not None:
            coef -= coef.mean(0) if reference is None else coef[reference].clone()
        return self.to_columns(coef)

    def estimable(self) -> Tensor:
        """Return which columns have a coefficient that the data determine, ``(D',)``."""
        if self.null_basis.shape[1] == 0:
            return torch.ones(self.n_columns, dtype=torch.bool)
        size = self.null_basis.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
        return ((self.null_basis / size).abs() < 1e-9).all(1)

    def estimates(
        self,
        labels: tuple[tuple[str, str], ...],
        reference: int | None,
        kind: CovarianceKind = "observed",
        groups: Tensor | None = None,
        correction: str | None = None,
        weights: WeightMeaning = "sampling",
    ) -> Estimates:
        """Return the reported coefficients, the reference's left out, with their covariance.

        Args:
            labels: ``(output, column)`` names of the reported coefficients, class by class.
            reference: Output whose coefficients are zero, or None for coefficients that sum to zero.
            kind: Which covariance.
            groups: ``(N,)`` cluster of each row, numbered from 0; only for the sandwich.
            correction: Small-sample factor of the sandwich, as ``infer.small_sample_factor`` names it.
            weights: Whether the sandwich takes weights as copies of rows or as sampling weights.

        Returns:
            Estimates in the order of ``labels``.
        """
        exact = self.objective.with_curvature(torch.float64)
        found, name = free_covariance(exact, self.solution, self.n_rows, kind, groups, correction, weights)
        c, d = exact.n_free, self.kept.shape[0]
        m = self.output_map(reference)
        if reference is not None:
            m = m[torch.arange(m.shape[0]) != reference]
        a = self.column_map()
        mapped = m @ (m @ found.reshape(c, -1)).view(-1, d, c, d)
        mapped = a @ mapped.permute(0, 2, 1, 3) @ a.mT
        p = m.shape[0] * self.n_columns
        values = self.to_columns(m @ self.solution.theta.view(-1, self.kept.shape[0]))
        return Estimates(
            values=values.reshape(-1),
            covariance=Dense(mapped.permute(0, 2, 1, 3).reshape(p, p)),
            labels=labels,
            kind=name,
            estimable=self.estimable().repeat(m.shape[0]),
            null_space=self._null_space(m.shape[0]),
        )

    def _null_space(self, n_outputs: int) -> Tensor | None:
        """Return the directions of reported coefficients that the data leave open, if few enough to hold."""
        d, r = self.null_basis.shape
        if r == 0 or n_outputs**2 * d * r > _NULL_SPACE_ELEMENTS:
            return None
        return torch.kron(torch.eye(n_outputs, dtype=torch.float64), self.null_basis.contiguous())

    def largest_move(self, step: Tensor) -> float:
        """Return the largest change that a step in the free coefficients makes to a linear predictor."""
        free = step.view(self.objective.n_free, -1)
        blocks = self.objective.design.blocks(self.objective.n_outputs)
        return max(float(block.predict(free).abs().max()) for block in blocks)

    def standardized(self, step: Tensor) -> Tensor:
        """Return a step in the free coefficients as coefficients of all standardized columns, ``(C D',)``."""
        wide = step.new_zeros(self.objective.n_outputs, self.n_columns)
        wide[:, self.kept] = self.output_map(None) @ step.view(self.objective.n_free, -1)
        return wide.reshape(-1)


class Inferable(Protocol):
    """An objective from which the covariance of its optimum can be had."""

    l2: float
    n_parameters: int
    total_weight: float

    def hessian(self, theta: Tensor, kind: Any = "observed") -> SymmetricOperator:
        """Return the Hessian in double precision."""

    def score_gram(self, theta: Tensor, *, squared_weights: bool = True) -> Tensor:
        """Return the sum of outer products of the rows' scores."""

    def group_scores(self, theta: Tensor, groups: Tensor, n_groups: int) -> Tensor:
        """Return the scores summed within clusters."""


def free_covariance(
    objective: Inferable,
    solution: Solution,
    n_rows: int,
    kind: CovarianceKind,
    groups: Tensor | None,
    correction: str | None,
    weights: WeightMeaning,
    labels: tuple[str, ...] | None = None,
) -> tuple[Tensor, str]:
    """Return the covariance of the solver's coefficients.

    Args:
        objective: The objective, with Hessians in double precision.
        solution: Its optimum.
        n_rows: Rows with positive weight.
        kind: Which covariance.
        groups: ``(N,)`` cluster of each row, numbered from 0; only for the sandwich.
        correction: Small-sample factor of the sandwich.
        weights: Whether the sandwich takes weights as copies of rows or as sampling weights.
        labels: Names of the coefficients for messages.

    Returns:
        ``(p, p)``, and its name.

    Raises:
        InputError: If there is no such kind, or it does not go with groups.
        NotEstimableError: If a penalty biases the coefficients.
    """
    if kind not in ("observed", "expected", "sandwich"):
        raise InputError(f"Unknown covariance kind '{kind}'; choose 'observed', 'expected' or 'sandwich'.")
    if kind != "sandwich":
        if groups is not None:
            raise InputError(f"groups make a clustered sandwich; pass kind='sandwich' with them, not '{kind}'.")
        if objective.l2 > 0:
            raise NotEstimableError(
                f"The fit is penalized (l2={objective.l2:g}): its coefficients are biased toward "
                f"zero and the inverse {kind} information is not their sampling covariance. Pass "
                "kind='sandwich' for the sampling covariance of the penalized estimates, or fit with "
                "l2=0 for classical standard errors."
            )
    theta, total, p = solution.theta, objective.total_weight, objective.n_parameters
    found = solution.hessian if kind != "expected" else None
    if found is None:
        found = objective.hessian(theta, "expected" if kind == "expected" else "observed")
    inverse = inverse_information(Dense(found.to_dense() * total, labels=labels))
    if kind != "sandwich":
        return inverse.to_dense(), f"{kind} information"
    n = total if weights == "frequency" else float(n_rows)
    correction = correction or "stata"
    if groups is None:
        meat = objective.score_gram(theta, squared_weights=weights == "sampling")
        factor, name = small_sample_factor(correction, n, p), f"sandwich ({correction})"
    else:
        n_groups = int(groups.max()) + 1
        scores = objective.group_scores(theta, groups, n_groups)
        meat = scores.mT @ scores
        factor = small_sample_factor(correction, n, p, n_groups)
        name = f"sandwich clustered in {n_groups} groups ({correction})"
    if objective.l2 > 0:
        name += " of the penalized estimates"
    return sandwich(inverse, Dense(meat), factor).to_dense(), name
