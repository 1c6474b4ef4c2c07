"""A fitted linear model whose outputs share coefficients: the optimum, and the map to what is reported."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson._errors import CollinearityWarning
from raphson.data import DenseDesign, Design
from raphson.estimators.fit._fitting import FitOptions, shown_progress
from raphson.estimators.fit._linear_fit import CovarianceKind, WeightMeaning, free_covariance
from raphson.estimators.fit._scoring import solve_scoring
from raphson.estimators.input._layout import Layout
from raphson.estimators.input._rows import Rows
from raphson.estimators.separation._collinear import Collinearity, find_collinear
from raphson.infer import Estimates, label_name
from raphson.likelihoods import Likelihood
from raphson.linalg import Dense
from raphson.linear import ConstrainedObjective, Constraints, solved
from raphson.solve import Solution

_NULL = 1e-9
"""Singular values below this share of the largest mark combinations of parameters that leave every output unchanged."""


@dataclass(frozen=True)
class ConstrainedFit:
    """The optimum of a constrained objective and what it takes to report it.

    Attributes:
        objective: Objective on standardized columns.
        solution: What the solver returned.
        layout: Columns, outputs and their constraints.
        null_basis: ``(P, r)`` combinations of the table's parameters, in the order of ``constraints``, that leave
            every output unchanged; r is 0 if there are none.
        n_rows: Rows with positive weight.
    """

    objective: ConstrainedObjective
    solution: Solution
    layout: Layout
    null_basis: Tensor
    n_rows: int

    def to_parameters(self, theta: Tensor) -> Tensor:
        """Turn free parameters into all those of the table's columns, a linear map.

        Over combinations that the data leave open they are spread to the smallest norm of the slopes.

        Args:
            theta: ``(m, p)``.

        Returns:
            ``(m, P)``.
        """
        table = self.objective.to_table(theta)
        basis = self.null_basis
        if basis.shape[1] == 0:
            return table
        first = _n_intercepts(self.objective.constraints)
        excess = torch.linalg.lstsq(basis[first:], table[:, first:].mT).solution
        spread: Tensor = table - (basis @ excess).mT
        return spread

    def coefficients(self, reference: int | None = None) -> Tensor:
        """Return the coefficients of all outputs for the table's columns, ``(C, D')``, the intercept first."""
        return self.objective.constraints.expand(self.to_parameters(self.solution.theta[None])[0])

    def largest_move(self, step: Tensor) -> float:
        """Return the largest change that a step in the free parameters makes to an output."""
        return self.objective.largest_move(step)

    def standardized(self, step: Tensor) -> Tensor:
        """Return a step in the free parameters as reported parameters of standardized columns, ``(P,)``."""
        return self.objective.full(step)[self.layout.order]

    def estimates(
        self,
        labels: tuple[tuple[str, str], ...],
        reference: int | None = None,
        kind: CovarianceKind = "observed",
        groups: Tensor | None = None,
        correction: str | None = None,
        weights: WeightMeaning = "sampling",
    ) -> Estimates:
        """Return the reported parameters with their covariance.

        Args:
            labels: ``(output, column)`` names of the parameters in the layout's order.
            reference: Not used: a reference is a constraint here.
            kind: Which covariance.
            groups: ``(N,)`` cluster of each row, numbered from 0; only for the sandwich.
            correction: Small-sample factor of the sandwich, as ``infer.small_sample_factor`` names it.
            weights: Whether the sandwich takes weights as copies of rows or as sampling weights.

        Returns:
            Estimates in the order of ``labels``.
        """
        order = self.layout.order
        named = [label_name(labels[i]) for i in order.argsort().tolist()]
        free = named if self.objective.kept is None else [named[i] for i in self.objective.kept.tolist()]
        covariance, name = free_covariance(
            self.objective, self.solution, self.n_rows, kind, groups, correction, weights, tuple(free)
        )
        a = self.to_parameters(torch.eye(covariance.shape[0], dtype=torch.float64)).mT[order]
        return Estimates(
            values=self.to_parameters(self.solution.theta[None])[0][order],
            covariance=Dense(a @ covariance @ a.mT),
            labels=labels,
            kind=name,
            null_space=self.null_basis[order] if self.null_basis.shape[1] else None,
        )


def fit_constrained(
    rows: Rows, y: Tensor, likelihood: Likelihood, layout: Layout, options: FitOptions, start: Tensor
) -> tuple[ConstrainedFit, Collinearity | None]:
    """Minimize the objective of a constrained linear model.

    Args:
        rows: The rows.
        y: Their targets.
        likelihood: The likelihood.
        layout: Columns, outputs and their constraints.
        options: How to fit.
        start: Coefficients of the table's columns to start from, ``(C, D')``.

    Returns:
        The fit, and what is collinear, or None where it was not looked for.
    """
    constraints = layout.constraints
    design = _design(rows, constraints)
    null, kept, collinearity = torch.zeros(constraints.n_parameters, 0, dtype=torch.float64), None, None
    if options.l2 == 0 and not design.is_well_conditioned():
        collinearity = find_collinear(rows.x, rows.weights, layout.columns, constraints.intercept)
        null = _null_parameters(constraints, collinearity.null_basis.double(), design.scale)
        if null.shape[1]:
            kept = _independent(null, _n_intercepts(constraints))
            warnings.warn(" ".join(collinearity.sentences()), CollinearityWarning, stacklevel=3)
        else:
            collinearity = None
    objective = ConstrainedObjective(
        design, likelihood, y, constraints, weights=rows.weights, offset=rows.offset, l2=options.l2, kept=kept
    )
    theta = _from_table(objective, start)
    with shown_progress(options.progress) as callback:
        solution = solve_scoring(
            objective, theta, solver=options.solver, tol=options.tol, max_iter=options.max_iter, callback=callback
        )
    return ConstrainedFit(objective, solution, layout, null, rows.y.shape[0]), collinearity


def _design(rows: Rows, constraints: Constraints) -> Design:
    """Return the standardized design; columns whose shift no intercept can make up for are only scaled."""
    n_columns = constraints.n_columns - constraints.intercept
    design = rows.design(torch.arange(n_columns), constraints.intercept)
    fixed = ~constraints.can_center()
    if not isinstance(design, DenseDesign) or not constraints.intercept or not bool(fixed.any()):
        return design
    scale = torch.where(fixed, torch.hypot(design.scale, design.center), design.scale)
    center = torch.where(fixed, 0.0, design.center)
    return DenseDesign(design.x, intercept=True, moments=(center, scale))


def _from_table(objective: ConstrainedObjective, coef: Tensor) -> Tensor:
    """Return the free parameters nearest to coefficients ``(C, D')`` of the table's columns."""
    constraints, design = objective.constraints, objective.design
    first = int(constraints.intercept)
    scaled = torch.cat([coef[:, :first], coef[:, first:] * design.scale], 1)
    if first:
        scaled[:, 0] += coef[:, 1:] @ design.center
    parts = [solved(g.matrix, scaled[:, g.columns]).reshape(-1) for g in constraints.groups]
    theta = torch.cat(parts)
    return theta if objective.kept is None else theta[objective.kept]


def _n_intercepts(constraints: Constraints) -> int:
    return constraints.shapes[0][0] if constraints.intercept else 0


def _null_parameters(constraints: Constraints, null: Tensor, scale: Tensor) -> Tensor:
    r"""Return the parameters ``(P, r)`` whose coefficients vanish on the data, for columns with a null space.

    The coefficients of every output, a row of :math:`B(\Theta)`, must lie in the null space of the design; that is one
    linear system in :math:`\Theta` and the weights of the null vectors.
    """
    if null.shape[1] == 0:
        return null.new_zeros(constraints.n_parameters, 0)
    size = torch.cat([scale.new_ones(int(constraints.intercept)), scale])
    # kron does not take a single column with the stride that qr gives it
    basis = torch.linalg.qr(null * size[:, None])[0].clone(memory_format=torch.contiguous_format)
    c, p = constraints.n_outputs, constraints.n_parameters
    expanded = constraints.expand(torch.eye(p, dtype=torch.float64)).reshape(p, -1).mT
    system = torch.cat([expanded, torch.kron(torch.eye(c, dtype=torch.float64), basis)], 1)
    _, values, vectors = torch.linalg.svd(system, full_matrices=True)
    rank = int((values > _NULL * values[0]).sum())
    found = vectors[rank:, :p].mT / constraints.per_parameter(size)[:, None]
    return torch.where(found.abs() > 1e-10 * found.abs().amax(0), found, 0.0)


def _independent(null: Tensor, n_intercepts: int) -> Tensor:
    """Return the parameters to fit: the intercepts, and of the slopes those that the null space does not need."""
    from scipy.linalg import qr

    scaled = null / null.abs().amax(0)
    order = torch.arange(null.shape[0] - 1, n_intercepts - 1, -1)
    _, pivots = qr(scaled[order].mT.numpy(), mode="r", pivoting=True)
    kept = torch.ones(null.shape[0], dtype=torch.bool)
    kept[order[torch.from_numpy(pivots[: null.shape[1]].copy()).long()]] = False
    return kept.nonzero()[:, 0]
