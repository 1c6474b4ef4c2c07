"""Whether output Hessians are positive definite: what theory says of a likelihood, and what a sample shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._average import compact, output_hessian, rows_in_chunks
from raphson.likelihoods._likelihood import Likelihood
from raphson.linalg import Diagonal, EqualBlocks, SymmetricOperator

Observed = Literal["positive definite", "indefinite or positive definite", "indefinite or singular", "indefinite"]


@dataclass(frozen=True)
class Definiteness:
    r"""What is known about the output Hessian of one response, for every output in the domain and every target.

    Formulas are text that SymPy reads: ``mu`` is the mean, ``s`` the standard deviation, and
    :math:`r = (y - \mu) / s` the standardized residual.

    Args:
        observed: The observed Hessian, over all targets.
        positive_where: Condition under which it is positive definite.
        determinant: Its determinant.
        expected_determinant: Determinant of the expected Hessian (Fisher information).
        sentence: The same in words, with the consequence.
        expected: The expected Hessian, over all outputs.
    """

    observed: Observed
    positive_where: str
    determinant: str
    expected_determinant: str
    sentence: str
    expected: Literal["positive definite"] = "positive definite"


@dataclass(frozen=True)
class OutputInertia:
    """Signs of the eigenvalues of output Hessians over a sample, per response; a matrix is counted once.

    Args:
        names: The outputs of each response.
        positive: Fraction of examples whose block is positive definite, ``(M,)``.
        singular: Fraction whose block is positive semi-definite and singular to working precision, ``(M,)``.
        indefinite: Fraction whose block has a negative eigenvalue, ``(M,)``.
        first_offending_row: For each response the first example that is not positive definite, or None.
        kind: ``"observed"`` or ``"expected"``.
        n_examples: Number of examples.
    """

    names: tuple[tuple[str, ...], ...]
    positive: Tensor
    singular: Tensor
    indefinite: Tensor
    first_offending_row: tuple[int | None, ...]
    kind: str
    n_examples: int

    @property
    def positive_definite(self) -> bool:
        """Whether every block of every example is positive definite."""
        return all(row is None for row in self.first_offending_row)

    def __str__(self) -> str:
        lines = [f"{self.kind} output Hessians of {self.n_examples} examples, positive definite in"]
        for m, row in enumerate(self.first_offending_row):
            where = "" if row is None else f" (the first that is not: row {row}; indefinite: {self.indefinite[m]:.1%})"
            lines.append(f"  {', '.join(self.names[m])}: {self.positive[m]:.1%}{where}")
        return "\n".join(lines)


def definiteness_at(likelihood: Likelihood, f: Tensor, y: Tensor, kind: str = "observed") -> OutputInertia:
    """Count the examples whose output Hessian is positive definite, response by response.

    Each block is first scaled to a diagonal of ones, which by Sylvester's law of inertia changes no sign and
    makes the answer independent of the units of outputs and targets; an eigenvalue within ``8 k eps`` of zero
    then counts as zero. Rows are taken in chunks, so that memory stays bounded.

    Args:
        likelihood: Any likelihood; without blocks per response, all outputs are one block.
        f: Outputs ``(..., C)``.
        y: Targets.
        kind: ``"observed"`` or ``"expected"``.

    Returns:
        Fractions per response and the first row that is not positive definite.

    Raises:
        InputError: There is no example, an output lies outside its domain, or a Hessian is not finite.

    Examples:
        In mean and scale the observed Hessian is indefinite at every target, in natural parameters at none.

        >>> import torch
        >>> from raphson.likelihoods import HeteroscedasticGaussian, definiteness_at
        >>> f, y = torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([0.0, 3.0])
        >>> print(definiteness_at(HeteroscedasticGaussian("mean_scale"), f, y))
        observed output Hessians of 2 examples, positive definite in
          mean, scale: 0.0% (the first that is not: row 0; indefinite: 100.0%)
        >>> definiteness_at(HeteroscedasticGaussian("natural"), f * torch.tensor([1.0, -1.0]), y).positive_definite
        True
    """
    counts: Tensor | None = None
    first: list[int | None] = []
    n = 0
    for rows_f, rows_y, _ in rows_in_chunks(f, y):
        blocks = _blocks(output_hessian(likelihood, rows_f, rows_y, kind), len(likelihood.parameters))
        infinite = ~torch.isfinite(blocks).flatten(1).all(1)
        if bool(infinite.any()):
            likelihood.check_outputs(f)
            raise InputError(
                f"The {kind} output Hessian in row {n + int(infinite.int().argmax())} is not finite: its outputs are "
                "so large or so small that it overflows. Rescale the targets, or use float64."
            )
        signs = _signs(blocks)
        if counts is None:
            first = [None] * signs.shape[-1]
            counts = torch.zeros(3, signs.shape[-1], dtype=torch.float64)
        counts += torch.stack([(signs == s).sum(0) for s in (1, 0, -1)]).cpu()
        for m, offending in enumerate((signs < 1).mT):
            if first[m] is None and bool(offending.any()):
                first[m] = n + int(offending.int().argmax())
        n += len(signs)
    if counts is None:
        raise InputError("There is no example to look at: give at least one row of outputs.")
    names = likelihood.output_names(f.shape[-1])
    k = len(names) // len(first)
    groups = tuple(names[i : i + k] for i in range(0, len(names), k))
    positive, singular, indefinite = counts / n
    return OutputInertia(groups, positive, singular, indefinite, tuple(first), kind, n)


def _blocks(operator: SymmetricOperator, k: int) -> Tensor:
    """Return output Hessians as ``(n, M, k, k)``, with one block for all outputs where they have no blocks."""
    structure, entries = compact(operator)
    if structure is Diagonal:
        return torch.diag_embed(entries.reshape(len(entries), -1, k))
    return entries if structure is EqualBlocks else entries.unsqueeze(1)


def _signs(blocks: Tensor) -> Tensor:
    """Return the sign of the smallest eigenvalue of blocks ``(n, M, k, k)``; 0 is within rounding."""
    diagonal = blocks.diagonal(dim1=-2, dim2=-1).abs()
    root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    smallest: Tensor = torch.linalg.eigvalsh(blocks * root.unsqueeze(-1) * root.unsqueeze(-2))[..., 0]
    level = 8 * blocks.shape[-1] * torch.finfo(blocks.dtype).eps
    return (smallest > level).int() - (smallest < -level).int()
