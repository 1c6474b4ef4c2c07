"""Which columns of a table act on which outputs, and how: from what a user writes to constraint matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.estimators._names import INTERCEPT, listed
from raphson.infer import label_name
from raphson.likelihoods import Likelihood
from raphson.linear import Group, OutputMap, as_list, is_unit, matrix_rank

SHARED = "shared"
"""Name of coefficients that act on several outputs at once."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Columns of a table with their constraint matrices.

    Attributes:
        outputs: Names of the C outputs.
        columns: Names of the D columns.
        intercepts: Constraint matrix of the intercepts, ``(C, r_0)``; r_0 = 0 for none.
        matrices: Constraint matrices of the columns, D of shape ``(C, r)``.
    """

    outputs: tuple[str, ...]
    columns: tuple[str, ...]
    intercepts: Tensor
    matrices: tuple[Tensor, ...]

    @classmethod
    def of_classes(
        cls, outputs: Sequence[str], columns: Sequence[str], reference: int | None, intercept: bool
    ) -> Layout:
        """Return the layout in which every output, or every one but the reference, has coefficients of its own."""
        c, d = len(outputs), len(columns) + intercept
        own = OutputMap.own(c, d, intercept) if reference is None else OutputMap.relative(c, reference, d, intercept)
        found = cls(
            tuple(outputs), tuple(columns), own.basis[:, : None if intercept else 0], (own.basis,) * len(columns)
        )
        found.__dict__["output_map"] = own
        return found

    @cached_property
    def output_map(self) -> OutputMap:
        """How the reported parameters act on the outputs."""
        return OutputMap.of_columns(self.intercepts, self.matrices)

    @property
    def is_relative(self) -> bool:
        """Whether every output has its own coefficients, or every one but a reference: where only differences count.

        Without a reference they are then reported as summing to zero.
        """
        here = self.output_map
        return here.is_uniform and (here.is_plain or here.left_out is not None) and here.n_outputs > 1

    @cached_property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """Names ``(output, column)`` of the parameters in the order in which they are reported."""
        names = [INTERCEPT] * self.output_map.intercept + list(self.columns)
        shared = [SHARED] if len(self._shared) == 1 else [f"{SHARED}[{i}]" for i in range(len(self._shared))]
        outputs = [*self.outputs, *shared]
        found = []
        for i in self.order.tolist():
            output, column = self._places[i]
            # what merge_tables puts in front of a name is said by the output already
            found.append((outputs[output], names[column].removeprefix(f"{outputs[output]}: ")))
        return tuple(found)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters of the map, in its order."""
        return tuple(label_name(self.labels[i]) for i in self.order.argsort().tolist())

    @cached_property
    def order(self) -> Tensor:
        """Which of the parameters of the map each reported one is: output by output, the intercept first."""
        return torch.tensor(sorted(range(len(self._places)), key=lambda i: self._places[i]), dtype=torch.long)

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Output and column of each parameter of ``constraints``; shared coefficients count after the outputs."""
        found = []
        for group in self.output_map.groups:
            at = as_list(group.columns, self.output_map.n_columns)
            for direction in _directions(group):
                if is_unit(direction):
                    output = direction.index(1.0)
                else:
                    output = len(self.outputs) + self._shared.index(direction)
                found += [(output, position) for position in at]
        return found

    @cached_property
    def _shared(self) -> list[tuple[float, ...]]:
        """How each kind of shared coefficient acts on the outputs."""
        directions = [column for group in self.output_map.groups for column in _directions(group)]
        return list(dict.fromkeys(d for d in directions if not is_unit(d)))

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain values, each matrix once."""
        kinds: list[Tensor] = []
        kind_of = []
        for matrix in self.matrices:
            known = next((i for i, other in enumerate(kinds) if torch.equal(other, matrix)), len(kinds))
            kinds += [matrix] if known == len(kinds) else []
            kind_of.append(known)
        return {
            "outputs": list(self.outputs),
            "columns": list(self.columns),
            "intercepts": self.intercepts.tolist(),
            "matrices": [matrix.tolist() for matrix in kinds],
            "matrix_of_column": kind_of,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Layout:
        """Restore a layout from what ``to_json`` returned."""
        outputs = tuple(value["outputs"])
        kinds = [_matrix(rows, len(outputs)) for rows in value["matrices"]]
        matrices = tuple(kinds[i] for i in value["matrix_of_column"])
        return cls(outputs, tuple(value["columns"]), _matrix(value["intercepts"], len(outputs)), matrices)

    def sharing(self) -> list[str]:
        """Return sentences that say how shared coefficients enter the outputs."""
        found = []
        for i, direction in enumerate(self._shared):
            name = SHARED if len(self._shared) == 1 else f"{SHARED}[{i}]"
            if len(set(direction)) == 1:
                how = f"{direction[0]:+g} in every output"
            else:
                terms = zip(direction, self.outputs, strict=True)
                how = ", ".join(f"{factor:+g} in '{output}'" for factor, output in terms if factor)
            found.append(f"Coefficients of '{name}' enter with the factor {how}.")
        return found


def _matrix(rows: list[list[float]], n_outputs: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(n_outputs, -1)


def _directions(group: Group) -> list[tuple[float, ...]]:
    return [tuple(column) for column in group.matrix.mT.tolist()]


def make_layout(
    likelihood: Likelihood, n_outputs: int, columns: Sequence[str], constraints: Any, fit_intercept: bool
) -> Layout:
    """Return the layout of one table whose columns act as ``constraints`` say.

    Those are None for the default; what ``constraint_matrix`` takes, for all columns; or a dictionary from column name
    (``"(intercept)"`` for the intercepts) to that. Without ``fit_intercept`` the outputs that columns act on by default
    have no intercepts; parameters that are constant keep theirs.

    Raises:
        InputError: If a name or matrix does not fit.
    """
    outputs = likelihood.output_names(n_outputs)
    intercepts, slopes = likelihood.default_columns(n_outputs)
    given: dict[str, Any] = {}
    if isinstance(constraints, Mapping):
        given = dict(constraints)
        unknown = [name for name in given if name != INTERCEPT and name not in columns]
        if unknown:
            raise InputError(
                f"constraints name the column {unknown[0]!r}, which the table does not have; its columns are "
                f"{listed(list(columns), 20)}, and '{INTERCEPT}' stands for the intercepts."
            )
    elif constraints is not None:
        slopes = constraint_matrix(constraints, likelihood, n_outputs)
        if likelihood.differences_only and slopes.shape[1] == n_outputs:
            intercepts = slopes  # coefficients of all outputs, which then sum to zero
    if INTERCEPT in given:
        intercepts = constraint_matrix(given[INTERCEPT], likelihood, n_outputs)
    if not fit_intercept:
        kept = [i for i in range(intercepts.shape[1]) if not _spans(slopes, intercepts[:, i : i + 1])]
        intercepts = intercepts[:, kept]
    matrices = tuple(
        constraint_matrix(given[name], likelihood, n_outputs) if name in given else slopes for name in columns
    )
    return Layout(outputs, tuple(columns), intercepts, matrices)


def make_parameter_layout(
    likelihood: Likelihood, n_outputs: int, columns: Mapping[str, Sequence[str]], no_intercept: Sequence[str] = ()
) -> Layout:
    """Return the layout of a table in which every parameter or output has the columns named for it.

    One that is left out is constant. The columns are in the order of their first mention.
    """
    outputs = likelihood.output_names(n_outputs)
    acts: dict[str, Tensor] = {}
    for name, own in columns.items():
        served = served_outputs(name, likelihood, n_outputs)
        for column in own:
            acts[column] = acts.get(column, torch.zeros(n_outputs, dtype=torch.bool)) | served
    eye = torch.eye(n_outputs, dtype=torch.float64)
    constant = torch.ones(n_outputs, dtype=torch.bool)
    for name in no_intercept:
        constant &= ~served_outputs(name, likelihood, n_outputs)
    return Layout(outputs, tuple(acts), eye[:, constant], tuple(eye[:, mask] for mask in acts.values()))


def constraint_matrix(given: Any, likelihood: Likelihood, n_outputs: int) -> Tensor:
    """Return a constraint matrix ``(C, r)`` from what a user writes.

    ``"own"`` (each output its own coefficient), ``"parallel"`` (one for all), the name of a parameter or output, a list
    of such names, or an array ``(C, r)``.

    Raises:
        InputError: If a name is unknown, or the array has another shape, dependent columns or entries not finite.
    """
    eye = torch.eye(n_outputs, dtype=torch.float64)
    if isinstance(given, str) and given == "own":
        return eye
    if isinstance(given, str) and given == "parallel":
        default = likelihood.default_columns(n_outputs)[1]
        return default if default.shape[1] == 1 and bool((default != 0).all()) else eye.sum(1, keepdim=True)
    if isinstance(given, str):
        return eye[:, served_outputs(given, likelihood, n_outputs)]
    if isinstance(given, list | tuple) and given and all(isinstance(name, str) for name in given):
        masks = [served_outputs(name, likelihood, n_outputs) for name in given]
        return eye[:, torch.stack(masks).any(0)]
    try:
        array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"A constraint is 'own', 'parallel', the name of a parameter or a list of them, or a matrix of "
            f"{n_outputs} rows; got {given!r:.80}."
        ) from None
    matrix = torch.from_numpy(array[:, None].copy() if array.ndim == 1 else array.copy())
    if matrix.ndim != 2 or matrix.shape[0] != n_outputs or not bool(torch.isfinite(matrix).all()):
        raise InputError(
            f"A constraint matrix has one row for each of the {n_outputs} outputs and finite entries; this one has "
            f"shape {tuple(array.shape)}."
        )
    if matrix_rank(matrix) < matrix.shape[1]:
        raise InputError(
            f"The columns of a constraint matrix of shape {tuple(matrix.shape)} are linearly dependent, so that its "
            "coefficients are not determined; leave the superfluous ones out."
        )
    return matrix


def served_outputs(name: Any, likelihood: Likelihood, n_outputs: int) -> Tensor:
    """Return which outputs belong to a parameter, or are called so, bool ``(C,)``."""
    outputs, parameters = likelihood.output_names(n_outputs), likelihood.parameters
    found = torch.tensor([output == name for output in outputs])
    if not bool(found.any()) and n_outputs % len(parameters) == 0:
        found = torch.tensor([parameters[c % len(parameters)] == name for c in range(n_outputs)])
    if not bool(found.any()):
        known = list(dict.fromkeys([*parameters, *outputs]))
        raise InputError(f"{type(likelihood).__name__} has no parameter called {name!r}; it has {listed(known, 20)}.")
    return found


def _spans(matrix: Tensor, vector: Tensor) -> bool:
    return matrix_rank(torch.cat([matrix, vector], 1)) == matrix_rank(matrix)
