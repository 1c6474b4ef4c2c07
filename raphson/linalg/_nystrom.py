"""Low-rank approximation of a positive semi-definite operator from products, and the preconditioner it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raphson._errors import IndefiniteError, InputError
from raphson.linalg._estimate import check_samples, multiply, random_columns
from raphson.linalg._low_rank import DiagonalPlusLowRank
from raphson.linalg._operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Nystrom:
    r"""The approximation :math:`\hat A = U \operatorname{diag}(\hat\lambda) U^\top \preceq A`.

    Attributes:
        eigenvalues: :math:`\hat\lambda`, ``(r,)``, descending, not negative.
        basis: ``U``, orthonormal, ``(n, r)``.

    Examples:
        >>> from raphson.linalg import Diagonal, nystrom
        >>> found = nystrom(Diagonal(torch.tensor([4.0, 1.0, 0.0])), 3)
        >>> found.eigenvalues.round(decimals=3), found.basis.shape
        (tensor([4., 1., 0.]), torch.Size([3, 3]))
    """

    eigenvalues: Tensor
    basis: Tensor

    def __repr__(self) -> str:
        n, rank = self.basis.shape
        return (
            f"<Nystrom approximation of {n} x {n}, rank {rank}, largest eigenvalue {float(self.eigenvalues.max()):.4g}>"
        )

    def operator(self, shift: float = 0.0) -> DiagonalPlusLowRank:
        """Return the approximation plus a multiple of the identity, ``(n, n)``."""
        diagonal = self.basis.new_full((self.basis.shape[0],), shift)
        return DiagonalPlusLowRank(diagonal, self.basis * self.eigenvalues.sqrt())

    def preconditioner(self, shift: float) -> DiagonalPlusLowRank:
        r"""Return the preconditioner of :math:`A + \mu I` for ``cg``, an approximate inverse up to a factor.

        .. math:: P^{-1} = (\hat\lambda_r + \mu)\, U (\hat\Lambda + \mu I)^{-1} U^\top + (I - U U^\top)

        With a rank of twice the effective dimension :math:`\operatorname{tr} A (A + \mu I)^{-1}` the expected condition
        number of the preconditioned system is below 28, whatever A is.

        Args:
            shift: :math:`\mu`, positive.

        Returns:
            The operator ``(n, n)``.

        Raises:
            InputError: The shift is not positive.
        """
        if not shift > 0:
            raise InputError(f"The shift is {shift:g}, but a Nystrom preconditioner is for A + shift I with shift > 0.")
        ratio = (self.eigenvalues[-1] + shift) / (self.eigenvalues + shift)
        ones = self.basis.new_ones(self.basis.shape[0])
        return DiagonalPlusLowRank(ones, self.basis * (1 - ratio).clamp_min(0.0).sqrt(), -1)


def nystrom(operator: LinearOperator, rank: int, *, generator: torch.Generator | None = None) -> Nystrom:
    r"""Return the randomized Nystrom approximation of a positive semi-definite operator.

    .. math:: \hat A = (A \Omega) (\Omega^\top A \Omega)^{+} (A \Omega)^\top

    for an orthonormal random :math:`\Omega` (n, r), with the shift of a few rounding errors that makes it stable.

    Args:
        operator: Positive semi-definite, ``(n, n)``; only its products are used.
        rank: ``r``, which is also the number of products.
        generator: Source of randomness; None for a fixed one.

    Returns:
        The approximation.

    Raises:
        InputError: The rank is not between 1 and ``n``.
        IndefiniteError: The operator has negative curvature on the sketch.

    References:
        Z. Frangella, J. A. Tropp and M. Udell (2023), Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl.
        44, 718-752, algorithms 2.1 and 5.1.

    Examples:
        >>> from raphson.linalg import Diagonal, nystrom
        >>> values = torch.cat([torch.tensor([3.0, 2.0], dtype=torch.float64), torch.zeros(98, dtype=torch.float64)])
        >>> nystrom(Diagonal(values), 2).eigenvalues
        tensor([3.0000, 2.0000], dtype=torch.float64)
    """
    check_samples(operator, rank, 1, "nystrom")
    n = operator.shape[-1]
    if rank > n:
        raise InputError(f"The rank is {rank}, but the operator is {n} x {n}: ask for at most {n}.")
    sketch = torch.linalg.qr(random_columns(operator, rank, generator, "normal"))[0]
    products = multiply(operator, sketch)
    norm = products.norm()
    shift = n**0.5 * torch.finfo(products.dtype).eps * norm
    if not bool(shift > 0):
        return Nystrom(products.new_zeros(rank), sketch)
    products = products + shift * sketch
    middle = sketch.mT @ products
    lower, info = torch.linalg.cholesky_ex((middle + middle.mT) / 2)
    if int(info):
        raise IndefiniteError(
            "The operator has negative curvature in the space of the sketch, so that it has no Nystrom approximation. "
            "Use a Gauss-Newton or expected Fisher matrix, or shift it by a positive constant."
        )
    factor = torch.linalg.solve_triangular(lower, products.mT, upper=False)
    basis, values, _ = torch.linalg.svd(factor.mT, full_matrices=False)
    return Nystrom((values.square() - shift).clamp_min(0.0), basis)
