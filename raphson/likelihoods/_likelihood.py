r"""The contract between a likelihood and everything else: derivatives in output space.

A likelihood sees outputs ``f`` of shape ``(..., C)`` and targets ``y`` only, never ``X`` or parameters.
Leading dimensions are examples (and sequence positions); every method treats them in the same way, with no Python loop
over them, and works for any strides of ``f``. A likelihood is a frozen dataclass of numbers and tensors.

Arguments and results are documented here, once: the docstring of a member's method says what is particular to it.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._command import Command
from raphson.likelihoods._extended import ConcordanceTerm, partition_mean
from raphson.likelihoods._support import REAL, Support
from raphson.likelihoods._targets import check_columns
from raphson.linalg import LinearOperator, SymmetricOperator

if TYPE_CHECKING:
    from raphson.likelihoods._target_distribution import TargetDistribution
    from raphson.likelihoods._units import InUnits
    from raphson.likelihoods.formulas import Definition


class Derivatives(NamedTuple):
    """Value and derivatives of the negative log-likelihood in output space, computed together.

    Attributes:
        nll: ``(...,)``.
        gradient: ``(..., C)``.
        hessian: Batched operator ``(..., C, C)``: observed or expected, as asked for; None if not asked for.
    """

    nll: Tensor
    gradient: Tensor
    hessian: SymmetricOperator | None


class Likelihood(abc.ABC):
    r"""Negative log-likelihood :math:`\ell(f, y)` of a target ``y`` given outputs ``f``.

    ``nll`` includes its normalizing constant. ``hessian`` is the observed one,
    :math:`\partial^2\ell/\partial f^2` at the data; ``fisher`` is its expectation over ``y`` drawn from the
    model at ``f``.
    """

    concave: bool = False
    """Whether the log-likelihood is concave in ``f`` for every ``y``: no observed Hessian is indefinite."""

    differences_only: bool = False
    """Whether adding a number to all outputs changes nothing (softmax): coefficients then need a reference."""

    always_finite: bool = False
    """Whether ``nll`` is finite for every target wherever outputs are smaller than the root of the largest number."""

    has_units: ClassVar[bool] = False
    """Whether outputs are in the units of the targets, so that a gradient in them depends on the units as well."""

    support: ClassVar[Support] = REAL
    """Where each target must lie."""

    partition: Literal["softmax", "logistic", "exponential"] | None = None
    """Name of the function that ``log_partition`` computes, if it is one of these: compiled code knows them by it."""

    partition_multiple: float = 1.0
    """``log_partition`` is that function times this number."""

    link_names: ClassVar[tuple[str, ...]] = ()
    """Names that the argument ``link`` may have, the default first; none where there is no such argument."""

    commands: ClassVar[tuple[Command, ...]] = ()
    """Names of the family on the command line."""

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return members of the family that differ in more than numbers, the default first.

        ``explain`` starts from the first, the conformance tests try all of them at the outputs and targets of their
        ``definition``. Empty for a likelihood that is made from another or from code.
        """
        return (cls(),)

    def definition(self) -> Definition:
        """Return the formulas of one response, from which ``explain`` derives the rest; SymPy is imported only here.

        Raises:
            InputError: The likelihood is made from code, or its class does not give a definition.
        """
        raise InputError(
            f"{type(self).__name__} has no formula: it is made from code, or is a class of your own that does not say "
            "it in definition(). raphson's families have one."
        )

    def default_columns(self, n_outputs: int) -> tuple[Tensor, Tensor]:
        """Return how the intercepts and a column of a table act on the outputs of a linear model by default.

        Every output has an intercept; a column acts on the first parameter of every response, the others (scale,
        dispersion, precision) being constant, unless a member knows better.

        Args:
            n_outputs: ``C``.

        Returns:
            Constraint matrices of the intercepts ``(C, r_0)`` and of a column ``(C, r)``, float64.
        """
        eye = torch.eye(n_outputs, dtype=torch.float64)
        return eye, eye[:, :: len(self.parameters)]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the ``k`` outputs that belong to one response, in their order: ``C = M k``, parameters last."""
        return ("output",)

    def locations(self, n_outputs: int) -> slice | None:
        """Return which outputs the loss depends on only by the targets less them, in the order of the targets.

        What such an output is a map of is then subtracted from the target in the map's own way, without loss of digits.

        Args:
            n_outputs: ``C``.

        Returns:
            A slice of the outputs, one for each response; None where there are none.
        """
        return None

    def in_units(self, f: Tensor, y: Tensor | None = None) -> InUnits[Likelihood] | None:
        """Return the likelihood in units of its scale (at a target), or None where derivatives are in no units."""
        return None

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where each of ``parameters`` must lie; outside, ``nll`` is infinite."""
        return (REAL,) * len(self.parameters)

    def n_outputs(self, y: Tensor) -> int:
        """Return the number of outputs ``C`` that targets ``(N,)`` or ``(N, M)`` ask for."""
        return len(self.parameters) * (1 if y.ndim < 2 else y.shape[-1])

    def output_names(self, n_outputs: int) -> tuple[str, ...]:
        """Return a name for each output: the parameter, with the response's number where there are several."""
        m = n_outputs // len(self.parameters)
        return tuple(name if m == 1 else f"{name}[{i}]" for i in range(m) for name in self.parameters)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return start values of a fit: outputs ``(C,)`` in the domain, near the best ones common to all rows.

        Args:
            y: Targets.
            n_outputs: ``C``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            Zeros unless a member knows better (moments of the targets).
        """
        return torch.zeros(n_outputs, dtype=torch.float64, device=y.device)

    def second_given(self, first: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Return the second parameter, constant over rows, that suits a first one which differs between rows.

        Args:
            first: The first parameter of each response and row, ``(N, M)``.
            y: Targets.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            ``(M,)``, where a member knows it in closed form: its optimum, or a moment estimate; else None.
        """
        return None

    def check_outputs(self, f: Tensor) -> None:
        """Raise for the first output outside its domain.

        Args:
            f: Outputs ``(..., C)``.

        Raises:
            InputError: Naming the row, the parameter, the value and the domain.
        """
        names = self.output_names(f.shape[-1])
        for c, name in enumerate(names):
            domain = self.domains[c % len(self.domains)]
            values = f[..., c]
            bad = ~domain.contains(values)
            if bool(bad.any()):
                place = torch.nonzero(bad)[0].tolist()
                where = f"row {place[0]}" if place else "the only row"
                raise InputError(
                    f"The parameter '{name}' in {where} is {values[tuple(place)].item():g}, but it must be "
                    f"{domain.description} ({type(self).__name__}). Choose another parametrization or link, or "
                    "correct the outputs of the model.",
                    row=place[0] if place else None,
                )

    @property
    def hessian_bound(self) -> float | None:
        """A number b with observed Hessian <= b I for every ``f`` and ``y``, or None if there is none."""
        return None

    @property
    def self_concordance(self) -> float | None:
        r"""M with :math:`|D^3\ell[a, b, b]| \le M |a| D^2\ell[b, b]` for all ``f``, ``y`` and a, b; None if not known.

        :math:`|a|` is the largest absolute entry of a, or for ``differences_only`` its largest less its smallest: the
        generalized self-concordance of Bach (2010) and Sun and Tran-Dinh (2019) with :math:`\nu = 2`. 0 is quadratic.
        Softmax, logistic and exponential partition functions have third cumulants of that size, M = 1.
        """
        return None if self.partition is None else 1.0

    def concordance_terms(self, f: NDArray[np.float64], y: Tensor) -> tuple[ConcordanceTerm, ...]:
        """Return the terms of the loss of each row, where third derivatives are bounded near the outputs only.

        Args:
            f: Outputs ``(N, C)``.
            y: Targets.

        Returns:
            Terms whose sum is the loss, less what is linear in the outputs; none for a likelihood whose
            ``self_concordance`` holds everywhere, or of which nothing is known.
        """
        return ()

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Return what second derivatives are made of, before anything is subtracted: it bounds their rounding.

        Args:
            f: Outputs ``(N, C)``.
            y: Targets.

        Returns:
            ``(N, C)``; the Hessian of a row in absolute terms is at most the diagonal matrix of these.
        """
        if self.partition is None:
            return self.hessian(f, y).diagonal()
        return self.log_partition(f, hessian=False).gradient * 1.0001

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        """Return the gradient in extended precision, from which the error of a fit is bounded.

        Args:
            f: Outputs ``(N, C)``.
            y: Targets.

        Returns:
            ``(N, C)``, or None for a likelihood or targets for which it is not known.
        """
        t = None if self.partition is None else self.statistic(y, f.shape[-1])
        if t is None or self.partition is None:
            return None
        mean = partition_mean(self.partition, f) * np.longdouble(self.partition_multiple)
        found: NDArray[np.longdouble] = mean - t.reshape(f.shape).cpu().numpy()
        return found

    @abc.abstractmethod
    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood of each row.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.

        Returns:
            ``(...,)``; infinite where an output lies outside its domain.
        """

    @abc.abstractmethod
    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of ``nll`` in ``f``.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.

        Returns:
            ``(..., C)``.
        """

    @abc.abstractmethod
    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the observed Hessian of ``nll`` in ``f``.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.

        Returns:
            A batched operator ``(..., C, C)``.
        """

    @abc.abstractmethod
    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return the expected Hessian under the model at ``f``.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets; they matter only to a likelihood whose weight depends on them (``class_weight``,
                ``ignore_index``, ``pos_weight``, a number of trials). Given, the information is weighted as the loss
                at those targets is; left out, the weight is averaged over targets drawn from the model as well.

        Returns:
            A batched operator ``(..., C, C)``.
        """

    @abc.abstractmethod
    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one target per example from the model.

        Args:
            f: Outputs ``(..., C)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The targets; real-valued ones in the element type of ``f``.
        """

    @abc.abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """Return the mean of the target under the model at ``f``."""

    @abc.abstractmethod
    def variance(self, f: Tensor) -> Tensor:
        """Return the variance of the target under the model at ``f``, elementwise, shaped like ``mean``."""

    def of_targets(self) -> Likelihood:
        """Return the likelihood whose ``exp(-nll)`` is the density of targets: this one without weights or factors."""
        return self

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return the distribution of the targets under the model at ``f``, beside the targets seen.

        Residuals come from its means, variances, tail probabilities and deviances.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.

        Raises:
            InputError: The likelihood is made from code, or its class does not give a distribution.
        """
        raise InputError(
            f"{type(self).__name__} does not say how its targets are distributed, only how to draw them: residuals of "
            "kind 'quantile' are by simulation, the other kinds need the method distribution() of a class of your own."
        )

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row whose target lies outside the support.

        Args:
            y: Targets.
            n_outputs: ``C``.

        Raises:
            InputError: Naming the row, the target and the support; or the shape does not suit the number of outputs.
        """  # noqa: DOC502
        check_columns(y, n_outputs, len(self.parameters), self.support)

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return ``S`` of shape ``(..., C, r)`` with ``S S^T = fisher(f, y)``, in closed form if there is any."""
        return self.fisher(f, y).factor()

    def weight(self, y: Tensor) -> Tensor | None:
        """Return what each target adds to the denominator ``W`` of a mean, ``(...,)``; None means 1 each.

        Class weights count here and ignored targets count zero, which is what a weighted mean, torch's
        ``reduction="mean"`` and scikit-learn's ``class_weight`` all mean.
        """
        return None

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian at once; members share the work between the three.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.
            hessian: ``"observed"``, ``"expected"`` or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        curvature = None
        if hessian is not None:
            curvature = self.hessian(f, y) if hessian == "observed" else self.fisher(f, y)
        return Derivatives(self.nll(f, y), self.gradient(f, y), curvature)

    def power_curvature(self, f: Tensor, y: Tensor, power: float) -> Tensor | None:
        r"""Return the second derivative in an output of which the first parameter is a power, times its square.

        With :math:`f_1 = c \log\phi` it is :math:`c^2 \ell_{11} - c\,\ell_1`, whose terms may cancel.

        Args:
            f: Outputs ``(..., C)``.
            y: Targets.
            power: ``c``.

        Returns:
            ``(..., M)``, where a member knows it in closed form; None where the chain rule loses no digits.
        """
        return None

    def of_difference(self) -> Likelihood | None:
        """Return the likelihood in ``f_0 - f_1`` with targets ``y == 0``, if with two outputs only that matters."""
        return None

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        r"""Return :math:`t(y)`, ``(..., C)``, if :math:`\ell(f, y) = A(f) - t(y)^T f + c(y)` for these targets.

        Such a likelihood (an exponential family in its natural parameter) needs the targets of a linear model
        only through :math:`\sum_n w_n\, t(y_n) \otimes x_n`, once; the constant :math:`c(y)`,
        which no derivative sees, is left to ``nll``. None means that it is not of this form.
        """
        return None

    def negative_exponential(self, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return a and t of a loss ``a e^(-f) + t f`` of one output f, constants in f left out.

        Args:
            y: Targets ``(N,)`` or ``(N, 1)``.

        Returns:
            Two tensors ``(N,)`` in float64; None for losses that are not of this form.
        """
        return None

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        """Return :math:`A(f)` with its gradient and Hessian, for a likelihood that has a ``statistic``.

        Args:
            f: Outputs ``(..., C)``.
            hessian: Whether the Hessian is wanted.

        Returns:
            The value ``(...,)``, the gradient ``(..., C)`` (the mean of the statistic) and the Hessian.

        Raises:
            NotImplementedError: If the likelihood has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} is not an exponential family in its outputs.")
