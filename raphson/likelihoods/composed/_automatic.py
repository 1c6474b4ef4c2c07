r"""A likelihood from its value alone, by automatic differentiation of rows that do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._support import REAL, Support
from raphson.likelihoods._target_distribution import to_array
from raphson.likelihoods._targets import columns, refuse_outside
from raphson.likelihoods.composed._sampled import Sampled
from raphson.likelihoods.composed._start import fit_constant_outputs
from raphson.linalg import Diagonal, EqualBlocks, SymmetricOperator

T = TypeVar("T")
Rows = Callable[[Tensor, Tensor], Tensor]
"""A value per row, ``(n,)``, of outputs ``(n, k)`` and targets ``(n, ...)``; no row sees another."""

# numbers in one tensor of a differentiated graph: a graph of a hundred operations then takes 200 MB
_CHUNK = 2**18
# rows that a starting value is found on
_START_ROWS = 2000


class Predictions(NamedTuple):
    """What a model predicts at outputs ``(n, k)``; each part may be missing.

    Attributes:
        sample: Targets ``(n, ...)``, from outputs and a generator.
        mean: Mean of the target, ``(n, ...)``.
        variance: Variance of the target, elementwise, shaped like the mean.
        fisher: Information ``(n, k, k)``.
    """

    sample: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    mean: Callable[[Tensor], Tensor] | None = None
    variance: Callable[[Tensor], Tensor] | None = None
    fisher: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class AutomaticLikelihood(Likelihood):
    r"""A likelihood that is known by its value: gradient and Hessian by torch's automatic differentiation.

    ``as_likelihood`` makes one from a function of one example or from a family of ``torch.distributions``.
    With ``names``, ``k`` of them, it is a sum over responses :math:`m` of
    :math:`\ell(f_{m1}, \dots, f_{mk}; y_m)` and its Hessian has ``M`` blocks ``k x k``; without, a row of any
    ``C`` outputs is one example with one block ``C x C``. Rows go through in chunks, so that memory is bounded.
    Derivatives have no truncation error; they are as precise as torch's functions, of which trigamma (the second
    derivative of ``lgamma``) has relative errors up to 5e-10, and in the tails as stable as the value is written.

    The Fisher information is ``predictions.fisher`` if there is one. Otherwise it is the mean of
    :math:`g g^\top` over ``draws`` targets sampled from the model at each row, with a fixed seed: the same
    outputs give the same matrix. Its relative standard error at one row is :math:`\sqrt{\kappa / n}` for ``n``
    draws, :math:`\kappa + 1` the kurtosis of the score; for a Gaussian score and 256 draws that is 8.8 percent
    on the diagonal, and :math:`\sqrt N` times less in a mean over ``N`` rows, whose draws are independent.

    Args:
        value: The negative log-likelihood of rows, ``(n,)``, at outputs ``(n, k)`` and targets ``(n, ...)``.
        names: Names of the ``k`` outputs of a response; None means that a row is one response of any size.
        limits: Where each of ``names`` must lie; outside, the value is infinite. None means anywhere.
        targets: Where each number of a target must lie.
        predictions: Sampling, mean, variance and Fisher information.
        draws: Targets per row where the Fisher information is by sampling.
        concave: Whether the value is convex in the outputs, for every target; the caller's word for it.
        title: What messages call it.

    Raises:
        InputError: ``draws`` is not positive, or there is not one of ``limits`` for each name.

    Examples:
        >>> import torch
        >>> from raphson.likelihoods import AutomaticLikelihood
        >>> lik = AutomaticLikelihood(lambda f, y: f[:, 0].exp() - y * f[:, 0], names=("log_mean",), concave=True)
        >>> f, y = torch.zeros(1, 1), torch.tensor([3.0])
        >>> lik.gradient(f, y), lik.hessian(f, y).to_dense()
        (tensor([[-2.]]), tensor([[[1.]]]))
    """

    value: Rows
    names: tuple[str, ...] | None = None
    limits: tuple[Support, ...] | None = None
    targets: Support = REAL
    predictions: Predictions = Predictions()
    draws: int = 256
    concave: bool = False
    title: str = "This likelihood"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}, but the Fisher information needs at least one draw per row.")
        if self.limits is not None and len(self.limits) != len(self.names or ("",)):
            raise InputError(
                f"There are {len(self.limits)} domains for {len(self.names or ('',))} parameters: give one for each."
            )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return none: it is made from code."""
        return ()

    @property
    def support(self) -> Support:  # type: ignore[override]
        """The support given as ``targets``."""
        return self.targets

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names given, or ``output``."""
        return ("output",) if self.names is None else self.names

    @property
    def domains(self) -> tuple[Support, ...]:
        """The limits given."""
        return (REAL,) * len(self.parameters) if self.limits is None else self.limits

    def n_outputs(self, y: Tensor) -> int:
        """Return one set of named outputs for each response; without names, which only the function knows, refuse.

        Raises:
            InputError: The outputs have no names.
        """
        if self.names is None:
            raise InputError(
                f"{self.title} does not say how many outputs it takes: name those of one response, "
                "as_likelihood(nll, parameters=('location', 'log_scale'))."
            )
        return Likelihood.n_outputs(self, y)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return outputs in the domain, common to all rows, by Newton steps on up to 2000 targets."""
        f = torch.tensor(self._neutral, dtype=torch.float64, device=y.device)
        f = f.repeat(n_outputs // len(self._neutral))
        every = slice(None, None, -(-len(y) // _START_ROWS) or 1)
        return fit_constant_outputs(self, f, y[every], None if weights is None else weights[every])

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the value summed over responses, ``(...,)``; infinite outside the domain or where it is nan."""
        rows, targets = self._rows(f, y)
        return self._summed(self._inside(rows, targets), f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient by reverse mode, ``(..., C)``."""
        return _gradient_rows(self._inside, *self._rows(f, y)).to(f.dtype).reshape(f.shape)

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the observed Hessian, reverse over reverse: one block per response."""
        return self._operator(hessian_rows(self._inside, *self._rows(f, y)), f)

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the information, in closed form or from sampled scores as the class says: positive semi-definite."""
        rows = self._split(f)
        known = self.predictions.fisher
        return self._operator(self._sampled_fisher(rows) if known is None else known(rows), f)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian; the observed Hessian shares its graph with the other two."""
        if hessian != "observed":
            return Likelihood.derivatives(self, f, y, hessian)
        parts = _in_chunks(lambda r, t: _to_second_order(self._inside, r, t), *self._rows(f, y))
        value, gradient, blocks = (_joined([part[i] for part in parts]) for i in range(3))
        return Derivatives(self._summed(value, f), gradient.to(f.dtype).reshape(f.shape), self._operator(blocks, f))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one target per response, ``(..., M)``, or ``(..., *shape)`` where the outputs have no names."""
        rows = self._split(f.detach())
        return self._join(self._need("sample")(rows, generator), f)

    def mean(self, f: Tensor) -> Tensor:
        """Return the mean of the target, shaped like a sample."""
        return self._join(self._need("mean")(self._split(f)), f)

    def distribution(self, f: Tensor, y: Tensor) -> Sampled:
        """Return what 1000 draws from the model say of the target."""
        self._need("sample")
        target = to_array(y if self.names is None else columns(y, f.shape[-1], len(self.names)))
        return Sampled(lambda generator: self.sample(f, generator), target, self.title, f.device)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance of the target, shaped like a sample."""
        return self._join(self._need("variance")(self._split(f)), f)

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first row outside the support, or a wrong number of outputs."""
        if self.names is not None:
            responses = self._responses(n_outputs)
            y = columns(y, responses) if responses > 1 else y
        refuse_outside(~self.targets.contains(y), y, self.targets.description)

    @property
    def _neutral(self) -> list[float]:
        return [_interior(domain) for domain in self.domains]

    def _inside(self, rows: Tensor, y: Tensor) -> Tensor:
        """Return the value of rows, infinite outside the domain, where the function is not evaluated."""
        if self.limits is None:
            return self.value(rows, y)
        limited = zip(self.limits, rows.unbind(-1), strict=True)
        inside = torch.stack([limit.contains(column) for limit, column in limited], -1).all(-1)
        safe = torch.where(inside.unsqueeze(-1), rows, rows.new_tensor(self._neutral))
        return torch.where(inside, self.value(safe, y), torch.inf)

    def _responses(self, c: int) -> int:
        k = c if self.names is None else len(self.names)
        if c % k:
            raise InputError(
                f"The model has {c} outputs, but each response has the {k} parameters "
                f"{', '.join(self.parameters)}: the number of outputs must be a multiple of {k}."
            )
        return c // k

    def _split(self, f: Tensor) -> Tensor:
        return f.reshape(-1, f.shape[-1] // self._responses(f.shape[-1]))

    def _rows(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        rows, leading, m = self._split(f), f.shape[:-1], self._responses(f.shape[-1])
        y = y.to(f.dtype) if y.is_floating_point() else y
        if self.names is not None and m == 1 and y.shape == f.shape[:-1] + (1,):
            y = y.squeeze(-1)
        if y.shape[: len(leading)] != leading or (m > 1 and y.shape != (*leading, m)):
            raise InputError(
                f"The targets have shape {tuple(y.shape)} but the outputs have shape {tuple(f.shape)}: "
                f"give {'one target' if m == 1 else f'{m} targets'} per row of the outputs."
            )
        return rows, y.reshape(rows.shape[0], *y.shape[len(leading) + (m > 1) :])

    def _summed(self, value: Tensor, f: Tensor) -> Tensor:
        value = value.to(f.dtype)
        value = torch.where(torch.isnan(value), torch.inf, value)
        return value.reshape(*f.shape[:-1], -1).sum(-1)

    def _join(self, values: Tensor, f: Tensor) -> Tensor:
        shape = values.shape[1:] if self.names is None or values.ndim > 1 else ()
        return values.reshape(*f.shape[:-1], *(shape or (self._responses(f.shape[-1]),)))

    def _operator(self, blocks: Tensor, f: Tensor) -> SymmetricOperator:
        blocks = blocks.to(f.dtype)
        if blocks.shape[-1] == 1:
            return Diagonal(blocks.reshape(f.shape))
        return EqualBlocks(blocks.reshape(*f.shape[:-1], -1, *blocks.shape[-2:]))

    def _need(self, part: str) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] | None = getattr(self.predictions, part)
        if function is None:
            raise InputError(
                f"{self.title} is known by its value only, and that does not give its {part}: use as_likelihood of a "
                f"function with {part}=."
            )
        return function

    def _sampled_fisher(self, rows: Tensor) -> Tensor:
        if self.predictions.sample is None:
            raise InputError(
                f"{self.title} is known by its value only, which does not give its Fisher information: use the "
                "observed Hessian, or as_likelihood of a function with sample= (an average over sampled targets) or "
                "fisher= (a closed form)."
            )
        generator = torch.Generator(rows.device).manual_seed(0)
        per_pass = min(self.draws, max(1, _CHUNK // max(rows.numel(), 1)))
        total = rows.new_zeros(*rows.shape, rows.shape[-1])
        for first in range(0, self.draws, per_pass):
            count = min(per_pass, self.draws - first)
            repeated = rows.detach().repeat(count, 1)
            y = self.predictions.sample(repeated, generator)
            g = _gradient_rows(self._inside, repeated, y).reshape(count, *rows.shape)
            total += torch.einsum("sni,snj->nij", g, g)
        return total / self.draws


def hessian_rows(value: Rows, f: Tensor, y: Tensor) -> Tensor:
    """Return the second derivatives ``(n, k, k)`` of a value per row of ``f`` ``(n, k)``, in chunks of rows."""
    return _joined([parts[2] for parts in _in_chunks(lambda r, t: _to_second_order(value, r, t), f, y)])


def _gradient_rows(value: Rows, f: Tensor, y: Tensor) -> Tensor:
    return _joined(_in_chunks(lambda r, t: _gradient(value, r, t), f, y))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gradient(value: Rows, f: Tensor, y: Tensor) -> Tensor:
    # no row sees another, so the gradient of the sum holds that of every row
    gradient: Tensor = torch.func.grad(lambda x: value(x, y).sum())(f)
    return gradient


def _to_second_order(value: Rows, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value ``(n,)``, gradient ``(n, k)`` and Hessian ``(n, k, k)`` of rows, from one graph."""

    def first_order(x: Tensor) -> tuple[Tensor, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            each = value(x, y)
            return each.sum(), each

        gradient, each = torch.func.grad(total, has_aux=True)(x)
        return gradient, each

    differentiated: Any = torch.func.vjp(first_order, f, has_aux=True)
    gradient, vjp, each = differentiated
    basis = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    return each, gradient, torch.stack([vjp(unit.expand_as(f))[0] for unit in basis], -2)


def _in_chunks(function: Callable[[Tensor, Tensor], T], f: Tensor, y: Tensor) -> list[T]:
    size = max(1, _CHUNK // max(f.shape[-1], 1))
    if len(f) <= size:
        return [function(f, y)]
    return [function(a, b) for a, b in zip(torch.split(f, size), torch.split(y, size), strict=True)]


def _interior(domain: Support) -> float:
    """Return a number inside a domain, away from its ends."""
    candidates = torch.tensor([0.0, 0.5, -0.5, 1.5, 10.5, 100.5], dtype=torch.float64)
    around = domain.contains(candidates - 0.25) & domain.contains(candidates + 0.25)
    return float(candidates[around][0]) if bool(around.any()) else 0.0
