"""A diagonal plus or minus a low-rank product: the output Hessian of the softmax, a low-rank precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._basic import Dense, Diagonal
from raphson.linalg._cholesky import rounding, solve_symmetric
from raphson.linalg._matrix import Matrix, SideBySide, spectral_factor
from raphson.linalg._operator import Eigh, LinearOperator, SlogDet, SymmetricOperator, columnwise, per_batch
from raphson.linalg._size import check_dense_size


@dataclass(frozen=True, eq=False)
class DiagonalPlusLowRank(SymmetricOperator):
    r"""A diagonal plus or minus a symmetric product, :math:`D \pm U U^\top`.

    Solves and determinants go by the Woodbury identity and the matrix determinant lemma, with the capacitance
    :math:`C = I \pm U^\top D^{-1} U` of size r x r (Hager 1989, "Updating the inverse of a matrix"), one step
    of iterative refinement for the solve, and the dense form for those batch elements where ``D`` has a zero
    or ``C`` is singular to working precision. The Hessian of the softmax, ``diag(p) - p p^T``, is singular.

    Args:
        diag: The diagonal of ``D``, ``(*batch, n)``, of any sign.
        low_rank: ``U``, ``(*batch, n, r)``.
        sign: +1 or -1.
        labels: Names of the ``n`` parameters.

    Raises:
        InputError: If the sign is not +1 or -1, or the shapes disagree.

    >>> p = torch.tensor([0.5, 0.25, 0.25])
    >>> DiagonalPlusLowRank(p, p.unsqueeze(-1), -1).mv(torch.ones(3))
    tensor([0., 0., 0.])
    """

    _part = "diag"
    diag: Tensor
    low_rank: Tensor
    sign: int = 1

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise InputError(f"The sign of DiagonalPlusLowRank is +1 or -1, and got {self.sign}.")
        if self.low_rank.shape[:-1] != self.diag.shape:
            raise InputError(
                f"DiagonalPlusLowRank needs diag (*batch, n) and low_rank (*batch, n, r), and got "
                f"{tuple(self.diag.shape)} and {tuple(self.low_rank.shape)}."
            )

    @property
    def shape(self) -> torch.Size:
        """Shape ``(*batch, n, n)``."""
        return torch.Size((*self.diag.shape, self.diag.shape[-1]))

    def mv(self, v: Tensor) -> Tensor:
        """Return ``A v`` for ``v`` of shape ``(*batch, n)``."""
        if self.low_rank.shape[-1] == 1 and v.shape == self.diag.shape:
            # Elementwise operations keep the strides of a transposed batch, which a product would copy.
            u = self.low_rank.squeeze(-1)
            return torch.addcmul(self.diag * v, u, (u * v).sum(-1, keepdim=True), value=self.sign)
        return self.mm(v.unsqueeze(-1)).squeeze(-1)

    def mm(self, v: Tensor) -> Tensor:
        """Return ``A V`` for ``V`` of shape ``(*batch, n, k)``."""
        return self.diag.unsqueeze(-1) * v + self.sign * (self.low_rank @ (self.low_rank.mT @ v))

    def to_dense(self) -> Tensor:
        """Return the ``(*batch, n, n)`` tensor."""
        check_dense_size(self.shape, self.dtype, "its products mv and mm, solve or slogdet")
        return torch.diag_embed(self.diag) + self.sign * (self.low_rank @ self.low_rank.mT)

    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(*batch, n)``."""
        return self.diag + self.sign * self.low_rank.square().sum(-1)

    def _terms(self) -> Tensor:
        """Return ``|D|`` plus the diagonal of ``U U^T``, ``(*batch, n)``: what is left of them has their digits."""
        return self.diag.abs() + self.low_rank.square().sum(-1)

    def eigh(self) -> Eigh:
        """Return the eigen-decomposition of the dense form, eigenvalues ascending."""
        return Dense(self.to_dense()).eigh()

    def slogdet(self) -> SlogDet:
        """Return the sign and the log absolute value of the determinant."""
        capacitance, _, regular = self._capacitance()
        small = Dense(capacitance).slogdet()
        large = Diagonal(self.diag).slogdet()
        result = SlogDet(small.sign * large.sign, small.logabsdet + large.logabsdet)
        if bool(regular.all()):
            return result
        exact = Dense(self._at(~regular).to_dense()).slogdet()
        return SlogDet(
            result.sign.masked_scatter(~regular, exact.sign),
            result.logabsdet.masked_scatter(~regular, exact.logabsdet),
        )

    def shift(self, c: float | Tensor) -> DiagonalPlusLowRank:
        """Return ``A + c I``, for a number or one ``c`` per batch element."""
        return replace(self, diag=self.diag + per_batch(c, self).squeeze(-1))

    def solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 b``; ``IndefiniteError`` if singular to working precision."""
        return columnwise(self, self._solve, b)

    def factor(self) -> LinearOperator:
        """Return ``S`` with ``S S^T = A``: ``[D^(1/2) U]`` if plus and ``D >= 0``, else by eigenvalues."""
        if self.sign == 1 and bool((self.diag >= 0).all()):
            return SideBySide((Diagonal(self.diag.sqrt()), Matrix(self.low_rank)))
        return spectral_factor(self)

    def _capacitance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``C``, ``D^-1 U`` and, by batch element, whether ``C`` and ``D`` can be inverted.

        ``C`` is known to about ``sqrt(n) eps (1 + ||U^T D^-1 U||)``, so an eigenvalue below that is noise.
        """
        n, r = self.low_rank.shape[-2:]
        nonzero = self.diag != 0
        scaled = self.low_rank / torch.where(nonzero, self.diag, 1.0).unsqueeze(-1)
        product = self.low_rank.mT @ scaled
        capacitance = torch.eye(r, dtype=self.dtype, device=self.device) + self.sign * product
        eigenvalues = capacitance.squeeze(-1) if r == 1 else torch.linalg.eigvalsh(capacitance)
        magnitude = 1 + (self.low_rank * scaled).abs().sum((-1, -2))
        noise = rounding(n, self.dtype) * magnitude
        return capacitance, scaled, nonzero.all(-1) & (eigenvalues.abs() > noise.unsqueeze(-1)).all(-1)

    def _solve(self, b: Tensor) -> Tensor:
        """Return ``A^-1 B`` for columns ``(*batch, n, k)``."""
        capacitance, scaled, regular = self._capacitance()
        if not bool(regular.all()):
            return self._solve_apart(b, regular)
        factors, pivots = torch.linalg.lu_factor(capacitance)

        def woodbury(rhs: Tensor) -> Tensor:
            inner: Tensor = torch.linalg.lu_solve(factors, pivots, scaled.mT @ rhs)
            return rhs / self.diag.unsqueeze(-1) - self.sign * (scaled @ inner)

        x = woodbury(b)
        return x + woodbury(b - self.mm(x))

    def _solve_apart(self, b: Tensor, regular: Tensor) -> Tensor:
        """Return ``A^-1 B``, by the identity for the regular batch elements and densely for the others."""
        if regular.ndim == 0:
            return self._at(~regular)._solve_densely(b.unsqueeze(0)).squeeze(0)
        x = b.expand(*regular.shape, *b.shape[-2:]).clone()
        x[~regular] = self._at(~regular)._solve_densely(x[~regular])
        x[regular] = self._at(regular)._solve(x[regular])
        return x

    def _at(self, mask: Tensor) -> DiagonalPlusLowRank:
        """Return the batch elements under a mask, ``(count, n, n)``."""
        return replace(self, diag=self.diag[mask], low_rank=self.low_rank[mask])

    def _solve_densely(self, b: Tensor) -> Tensor:
        """Return ``A^-1 B`` from the dense form, whose diagonal may be a small difference of large terms."""
        return solve_symmetric(self.to_dense(), b, labels=self.labels, terms=self._terms())
