"""Curvature stored layer by layer, which can say what it stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raphson.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Eigh,
    EqualBlocks,
    Kronecker,
    KroneckerEigen,
    LinearOperator,
    Permuted,
    Scaled,
    SlogDet,
    Sum,
    SymmetricOperator,
)


@dataclass(frozen=True)
class KnownOrder:
    """Numbers of parameters that have been worked out.

    Attributes:
        index: The numbers, ``(P,)``.
    """

    index: Tensor

    def __call__(self) -> Tensor:
        """Return them."""
        return self.index


@dataclass(frozen=True)
class LayerReport:
    """What a layered operator stores; ``str`` gives it as a table.

    Attributes:
        rows: For each block its parameters, their number, the structure and the bytes it takes.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> objective = rp.Objective(torch.nn.Linear(2, 1), rp.Gaussian(), (torch.ones(4, 2), torch.zeros(4, 1)))
        >>> [row[:3] for row in rp.kfac(objective).report().rows]
        [('weight, bias', 3, 'Kronecker 1 x 3')]
    """

    rows: tuple[tuple[str, int, str, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(row[3] for row in self.rows)

    def __str__(self) -> str:
        """Return one line for each block, with a total."""
        lines = [("parameters", "number", "stored as", "bytes")]
        lines += [(names, f"{n:,}", what, f"{size:,}") for names, n, what, size in self.rows]
        lines.append(("all", f"{sum(row[1] for row in self.rows):,}", "", f"{self.nbytes:,}"))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines
        )


@dataclass(frozen=True, eq=False)
class LayerOperator(SymmetricOperator):
    """Block-diagonal curvature of a network, one block for each group of parameters.

    Args:
        blocks: The blocks, ``(n_i, n_i)``.
        names: For each block the parameters in it.
        exact: For each block whether it (or its diagonal) is exact by construction.
        order: Returns the parameter of each row of the blocks, one block after the other: many never ask.
        inputs: For each block which of its Kronecker factors is the average over inputs; None where there is none. Left
            out where nobody adds factors up.
        labels: Names of the ``P`` parameters.

    Examples:
        >>> import raphson as rp
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> factors = rp.kfac(rp.Objective(model, rp.Gaussian(), (torch.ones(4, 2), torch.zeros(4, 1))))
        >>> [tuple(block.shape) for block in factors.blocks], factors.shift(0.1).solve(torch.ones(13)).shape
        ([(9, 9), (4, 4)], torch.Size([13]))
    """

    blocks: tuple[SymmetricOperator, ...]
    names: tuple[str, ...]
    exact: tuple[bool, ...]
    order: Callable[[], Tensor]
    inputs: tuple[int | None, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        # the function that works out the order holds on to what was differentiated
        return {**self.__dict__, "order": KnownOrder(self.order())}

    @cached_property
    def index(self) -> Tensor | None:
        """The parameter of each row of the blocks, ``(P,)``; None where they are in order."""
        index = self.order().to(self.device)
        return None if torch.equal(index, torch.arange(index.shape[0], device=self.device)) else index

    @cached_property
    def operator(self) -> SymmetricOperator:
        """The same as an operator of ``raphson.linalg`` alone, which ``from_state_dict`` can load."""
        inner = BlockDiagonal(self.blocks, labels=self.labels if self.index is None else None)
        return inner if self.index is None else Permuted(inner, self.index, labels=self.labels)

    def report(self) -> LayerReport:
        """Return layer by layer what is stored and how large it is."""
        return LayerReport(
            tuple(
                (name, block.shape[-1], ("exact " if exact else "") + describe(block), nbytes(block))
                for name, block, exact in zip(self.names, self.blocks, self.exact, strict=True)
            )
        )

    @property
    def shape(self) -> torch.Size:
        """Shape ``(P, P)``."""
        n = sum(block.shape[-1] for block in self.blocks)
        return torch.Size((n, n))

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the products."""
        return self.blocks[0].dtype

    @property
    def device(self) -> torch.device:
        """Device on which the operator lives."""
        return self.blocks[0].device

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(P,)``."""
        return self.operator.mv(v)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(P, k)``."""
        return self.operator.mm(v)

    def to_dense(self) -> Tensor:
        """Return the ``(P, P)`` tensor."""
        return self.operator.to_dense()

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(P,)``."""
        return self.operator.diagonal()

    def trace(self) -> Tensor:
        """Return the sum of the blocks' traces."""
        return torch.stack([block.trace() for block in self.blocks]).sum()

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition, block by block."""
        return self.operator.eigh()

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        return self.operator.slogdet()

    def shift(self, c: float | Tensor) -> LayerOperator:
        """Return ``A + c I``."""
        return replace(self, blocks=tuple(block.shift(c) for block in self.blocks))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if a block is singular: ``shift`` it first."""
        return self.operator.solve(b)

    def power_mv(self, v: Tensor, p: float) -> Tensor:
        """Return ``A^p v``."""
        return self.operator.power_mv(v, p)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = A``."""
        return self.operator.factor()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of ``operator``, for ``from_state_dict(type(op.operator).__name__, ...)``."""
        return self.operator.state_dict()


def describe(block: SymmetricOperator) -> str:
    """Return the structure of a block in words."""
    if isinstance(block, Kronecker):
        return "Kronecker " + " x ".join(_size(op) for op in block.factors)
    if isinstance(block, KroneckerEigen):
        return "Kronecker eigenbasis " + " x ".join(_size(op) for op in block.eigenvectors)
    if isinstance(block, Sum):
        return " + ".join(describe(op) for op in block.operators)
    if isinstance(block, Scaled):
        return describe(block.operator)
    if isinstance(block, EqualBlocks):
        m, k = block.blocks.shape[-3:-1]
        return f"{m} blocks of {k}"
    if isinstance(block, BlockDiagonal):
        return f"{len(block.blocks)} of {describe(block.blocks[0])}"
    return {Dense: "block", Diagonal: "diagonal"}.get(type(block), type(block).__name__)


def nbytes(operator: LinearOperator) -> int:
    """Return the bytes that an operator's tensors take."""
    return sum(t.numel() * t.element_size() for t in operator.state_dict().values())


def _size(operator: LinearOperator) -> str:
    return f"{operator.shape[-1]}" + (" (diagonal)" if isinstance(operator, Diagonal) else "")
