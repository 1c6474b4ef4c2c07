"""What a stochastic estimator returns, and the random vectors it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.linalg._entry import HALF
from raphson.linalg._operator import LinearOperator

_SEED = 0
"""Of the generator that takes the place of one that is not given: the same call gives the same numbers."""


@dataclass(frozen=True)
class Estimate:
    """A number, or a tensor of numbers, with its error.

    Attributes:
        value: The estimate, a scalar or ``(n,)``.
        standard_error: Its standard error from the spread of the samples, in the shape of ``value``; zero where the
            number is exact up to rounding.
        method: What made it.
        products: Number of products with the operator.
        df: Degrees of freedom of the standard error, for intervals; 0 where the number is exact.

    Examples:
        >>> from raphson.linalg import Diagonal, trace
        >>> found = trace(Diagonal(torch.arange(4.0)), samples=4)
        >>> found.value, found.products
        (tensor(6.), 4)
    """

    value: Tensor
    standard_error: Tensor
    method: str
    products: int
    df: int

    def interval(self, level: float = 0.95) -> Tensor:
        """Return an interval around the value by Student's t with ``df`` degrees of freedom.

        Args:
            level: Its coverage, between 0 and 1.

        Returns:
            Lower and upper bounds, ``(..., 2)``.

        Raises:
            InputError: The level is no probability.
        """
        if not 0 < level < 1:
            raise InputError(f"level is {level:g}, but a coverage lies between 0 and 1, such as 0.95.")
        half = self.standard_error * student_quantile(level, self.df)
        return torch.stack([self.value - half, self.value + half], -1)

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        source = f"({self.method}, {self.products} products)"
        if self.value.ndim:
            largest = float(self.standard_error.max())
            return f"{tuple(self.value.shape)} numbers, largest standard error {largest:.3g} {source}"
        return f"{float(self.value):.8g} with standard error {float(self.standard_error):.2g} {source}"


def student_quantile(level: float, df: int) -> float:
    """Return half the width, in standard errors, of a two-sided interval of this coverage; 0 where all is exact."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2)) if df > 0 else 0.0


def degrees_of_freedom(k: int) -> int:
    """Return those of the standard error of ``k`` samples.

    Samples are quadratic forms in random vectors, mostly few large squares: their mean and spread are small together.
    With half the degrees of freedom intervals cover what they say for chi-squared samples of two degrees and more.
    """
    return max(1, (k - 1) // 2)


def exact(value: Tensor, products: int) -> Estimate:
    """Return a number that was not sampled."""
    return Estimate(value, torch.zeros_like(value), "exact", products, 0)


def averaged(samples: Tensor, method: str, products: int, offset: Tensor | float = 0.0) -> Estimate:
    """Return the mean of independent samples ``(..., k)`` plus a known number."""
    k = samples.shape[-1]
    return Estimate(samples.mean(-1) + offset, samples.std(-1) / k**0.5, method, products, degrees_of_freedom(k))


def check_samples(operator: object, samples: int, least: int, method: str) -> None:
    """Refuse what no estimator can work with; ``least`` is the fewest samples that a method has a standard error of.

    Raises:
        InputError: It is no operator, a batch or not square, or there are too few products.
    """
    if not isinstance(operator, LinearOperator):
        what = " Wrap a matrix as rp.Dense(matrix)." if hasattr(operator, "shape") else ""
        raise InputError(f"An estimate is of an operator, and this is a {type(operator).__name__}.{what}")
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(
            f"An estimate is of one square operator (n, n), and this has shape {shape}: take the elements of a batch "
            "one by one, and of a rectangular operator J the product J^T J."
        )
    if samples < least:
        raise InputError(
            f"samples is {samples}, but '{method}' needs at least {least} products to know its error: raise samples."
        )


def random_columns(
    operator: LinearOperator, k: int, generator: torch.Generator | None, kind: Literal["signs", "normal"]
) -> Tensor:
    """Return independent signs or standard normal numbers ``(n, k)`` for an operator, on its device and of its type.

    They are drawn where the generator lives, None for a fixed one; of half precision in single.
    """
    if generator is None:
        generator = torch.Generator(operator.device).manual_seed(_SEED)
    n, dtype = operator.shape[-1], torch.float32 if operator.dtype in HALF else operator.dtype
    if kind == "signs":
        drawn = torch.randint(2, (n, k), generator=generator, device=generator.device).mul_(2).sub_(1).to(dtype)
    else:
        drawn = torch.randn(n, k, dtype=dtype, device=generator.device, generator=generator)
    return drawn.to(operator.device)


def multiply(operator: LinearOperator, columns: Tensor, *, transposed: bool = False) -> Tensor:
    """Return the products with columns ``(n, k)``, in single precision where the operator has half."""
    cast = columns.to(operator.dtype)
    return (operator.rmm(cast) if transposed else operator.mm(cast)).to(columns.dtype)
