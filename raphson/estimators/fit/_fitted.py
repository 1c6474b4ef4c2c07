"""A fitted linear model: the optimum in the solver's coordinates, and the linear map to what is reported.

The solver works with standardized, linearly independent columns and, for classes, coefficients relative to the most
frequent one. What a person reads are parameters of the table's columns, relative to the class of their choice, or
summing to zero over classes. The change is linear, so estimates and covariance are carried over by one map.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from raphson.estimators.fit._jeffreys import JeffreysObjective
from raphson.estimators.fit._orthogonal import OrthogonalColumns
from raphson.estimators.fit._sum_to_zero import centered
from raphson.estimators.fit._wide import OwnColumns
from raphson.estimators.input._layout import Layout
from raphson.infer import of_root
from raphson.linalg import SERIAL_ENTRIES, DiagonalPlusLowRank
from raphson.linear import LinearObjective, OutputMap, RowSpace
from raphson.solve import Solution

_NULL_SPACE_ELEMENTS = 10**7
"""Directions that the data leave open are listed up to this many numbers; beyond, coefficients one by one."""


@dataclass(frozen=True)
class Fitted:
    """The optimum of a linear objective and what it takes to report it.

    Attributes:
        objective: Objective on the fitted columns, standardized.
        solution: What the solver returned.
        layout: The reported parameters: columns, outputs and how they act.
        kept: Positions of the fitted columns among all D' (the ones are column 0) where the reported map is uniform;
            else the place of each of the solver's parameters among those of the layout's map.
        null_basis: Combinations that the data leave open: of columns ``(D', r)`` where the reported map is uniform,
            else of parameters ``(P, r)``; r is 0 if there are none.
        n_rows: Rows with positive weight.
        jeffreys: Whether the likelihood is penalized by Jeffreys' prior.
        row_space: The span of the rows, where the fit was made in it.
        orthogonal: The orthogonal columns that were fitted, where the table's nearly depend on each other.
        limit: The fit of the limiting model, where some coefficients are infinite and others are not.
        rows: Of such a limit: its rows among all, bool ``(N,)``.
        diverging: Of such a limit: parameters without a finite estimate, bool ``(P,)``. ``kept`` and ``null_basis`` are
            then those of a map that is not uniform.
        recession: Of such a limit: the directions of recession ``(P, r)``, the first of ``null_basis``.
        shown: Of such a limit whose coefficients are reported as summing to zero: the layout of those, ``layout`` being
            relative to a class.
    """

    objective: LinearObjective
    solution: Solution
    layout: Layout
    kept: Tensor
    null_basis: Tensor | OwnColumns
    n_rows: int
    jeffreys: bool = False
    row_space: RowSpace | None = None
    orthogonal: OrthogonalColumns | None = None
    limit: Fitted | None = None
    rows: Tensor | None = None
    diverging: Tensor | None = None
    recession: Tensor | None = None
    shown: Layout | None = None

    @property
    def problem(self) -> LinearObjective | JeffreysObjective:
        """What is minimized, with its penalty."""
        return JeffreysObjective(self.objective) if self.jeffreys else self.objective

    @property
    def _by_columns(self) -> bool:
        """Whether ``kept`` and ``null_basis`` speak of columns, not of parameters."""
        return self.layout.output_map.is_uniform and self.diverging is None

    @property
    def _outputs(self) -> Tensor | None:
        """From the solver's outputs to those reported, ``(R, q)``, for a uniform map; None where they are the same."""
        return _between(self.objective.output_map, self.layout.output_map)

    def to_parameters(self, theta: Tensor, *, standardized: bool = False) -> Tensor:
        """Return all reported parameters ``(m, P)`` in the order of the layout's map, of the solver's ``(m, p)``.

        Over combinations that the data leave open they are spread to the smallest norm of the slopes; the intercepts
        cost nothing, as in the limit of a vanishing ridge penalty. Those of ``standardized`` columns are not spread.
        """
        known = self.orthogonal
        if known is not None:
            table = known.to_standardized(theta) if standardized else known.to_table(theta)
        else:
            table = theta if standardized else self.objective.to_table(theta)
        report = self.layout.output_map
        if self._by_columns:
            outputs, d = self._outputs, self.objective.design.n_columns
            if outputs is None:
                table = table.view(-1, d)
            elif theta.shape[0] == 1:
                table = _reported(self.objective.output_map, report, table)
            else:
                table = (outputs @ table.view(theta.shape[0], -1, d)).flatten(0, 1)
        n = self.null_basis.shape[0]
        if self.kept.shape[0] < n:
            wide = table.new_zeros(table.shape[0], n)
            wide[:, self.kept] = table
            table = wide
        if self.null_basis.shape[1] and not standardized:
            table = table - _spread(self.null_basis, table.mT, ~report.is_intercept[:n]).mT
        return table.reshape(theta.shape[0], -1)

    def coefficients(self, theta: Tensor | None = None) -> Tensor:
        """Return the coefficients of all outputs for the table's columns, ``(C, D')``, of ``theta`` or the optimum."""
        theta = self.solution.theta if theta is None else theta
        coef = self.layout.output_map.expand(self.to_parameters(theta[None])[0])
        return coef if self.shown is None else coef - coef.mean(0)

    def reported(self, theta: Tensor) -> Tensor:
        """Return reported parameters in the order of their labels, ``(m, P)``, of the solver's ``(m, p)``."""
        return self._as_shown(self.to_parameters(theta))

    @property
    def shown_layout(self) -> Layout:
        """The layout of what is reported."""
        return self.shown or self.layout

    def _as_shown(self, parameters: Tensor) -> Tensor:
        """Turn parameters ``(m, P)`` of the layout's map into those reported, in the order of their labels."""
        if self.shown is not None:
            parameters = centered(parameters.contiguous(), self.layout)
        return parameters[:, self.shown_layout.order]

    def covariance(self, free: DiagonalPlusLowRank) -> DiagonalPlusLowRank:
        """Return the covariance of the reported parameters ``(P, P)`` from that of the solver's, ``R R^T``."""
        return of_root(self.reported(free.low_rank.mT.contiguous()).mT)

    @property
    def estimable(self) -> Tensor | None:
        """Which reported parameters the data determine, bool ``(P,)``; None for all, or as ``null_space`` says."""
        if self.diverging is not None:
            return ~self.diverging[self.shown_layout.order]
        q = self.layout.output_map.basis.shape[1]
        if isinstance(self.null_basis, OwnColumns):
            known = ~self.null_basis.involved
            return known.repeat(q) if self._by_columns else known[self.layout.order]
        if self.null_basis.shape[1] == 0 or not self._by_columns:
            return None
        size = self.null_basis.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
        return ((self.null_basis / size).abs() < 1e-9).all(1).repeat(q)

    @property
    def null_space(self) -> Tensor | None:
        """The directions of reported parameters that the data leave open, ``(P, r)``, if few enough to hold."""
        (d, r), report = self.null_basis.shape, self.layout.output_map
        if r == 0:
            return None
        q = report.basis.shape[1] if self._by_columns else 1
        by_entry = self._by_columns or isinstance(self.null_basis, OwnColumns)
        if by_entry and q * q * d * r > _NULL_SPACE_ELEMENTS:
            return None  # ``estimable`` says it coefficient by coefficient
        return self._as_shown(self.open_parameters.mT).mT

    @property
    def open_parameters(self) -> Tensor:
        """Combinations of the parameters of the layout's map that the data leave open, ``(P, r)``."""
        null = self.null_basis
        basis = null.to_dense() if isinstance(null, OwnColumns) else null
        if not self._by_columns:
            return basis
        q = self.layout.output_map.basis.shape[1]
        # kron does not take a single column with the stride that a factorization gives it
        basis = basis.clone(memory_format=torch.contiguous_format)
        return torch.kron(torch.eye(q, dtype=torch.float64), basis)

    def largest_move(self, step: Tensor) -> float:
        """Return the largest change that a step in the solver's parameters makes to an output, in its units."""
        return self.objective.largest_move(step, in_units=True)

    def standardized_map(self) -> Tensor:
        """Return the matrix ``(P, p)`` from the solver's parameters to the reported ones of standardized columns."""
        eye = torch.eye(self.objective.n_parameters, dtype=torch.float64)
        return self.to_parameters(eye, standardized=True)[:, self.layout.order].mT

    def standardized(self, step: Tensor) -> Tensor:
        """Return a step in the solver's parameters as reported ones of standardized columns, ``(P,)``."""
        return self.to_parameters(step[None], standardized=True)[0][self.layout.order]

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Names of the solver's parameters where they are among those reported; None elsewhere."""
        names = self.layout.parameter_names
        if not self._by_columns:
            return tuple(names[i] for i in self.kept.tolist())
        if self._outputs is not None:
            return None
        d = self.layout.output_map.n_columns
        return tuple(names[k * d + j] for k in range(len(names) // d) for j in self.kept.tolist())


@functools.lru_cache(maxsize=32)
def _between(solver: OutputMap, report: OutputMap) -> Tensor | None:
    if solver.basis is report.basis or torch.equal(solver.basis, report.basis):
        return None
    if report.left_out is None:
        return solver.basis - solver.basis.mean(0)
    return report.relative_to_left_out(solver.basis)


def _reported(solver: OutputMap, report: OutputMap, table: Tensor) -> Tensor:
    """Return the coefficients of reported outputs ``(R, d)`` from the solver's, ``q d`` of them, without a product."""
    coef = solver.expand(table.reshape(-1))
    if report.left_out is None:
        if coef.dtype == torch.float64 and coef.numel() <= SERIAL_ENTRIES:
            few = coef.numpy()  # whose calls take half of the time of PyTorch's
            return torch.from_numpy(few - few.sum(0) / len(few))
        # in place, since new memory takes as long again, unless it is the memory of what was given
        return torch.sub(coef, coef.mean(0), out=None if solver.is_plain else coef)
    return report.relative_to_left_out(coef)


def _spread(null: Tensor | OwnColumns, table: Tensor, slopes: Tensor) -> Tensor:
    """Return the combination ``(D, m)`` of null directions that is nearest to the slopes of a table ``(D, m)``."""
    if isinstance(null, OwnColumns):
        return null.times(null.excess(table, slopes))
    found: Tensor = null @ torch.linalg.lstsq(null[slopes], table[slopes]).solution
    return found
