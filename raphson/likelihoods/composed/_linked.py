r"""Any likelihood composed with elementwise maps of its parameters: the chain rule, written once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._links import IDENTITY, Link, Mapped, as_link
from raphson.likelihoods._parameters import product
from raphson.likelihoods._support import Support
from raphson.likelihoods._target_distribution import TargetDistribution
from raphson.likelihoods._targets import like_outputs
from raphson.likelihoods._units import times_power
from raphson.likelihoods.composed._wrapper import Wrapper
from raphson.linalg import (
    Dense,
    Diagonal,
    EqualBlocks,
    LinearOperator,
    Scaled,
    SymmetricOperator,
    congruence,
    is_near,
    plus_diagonal,
    scaled_rows,
)

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Linked(Wrapper):
    r"""A likelihood :math:`\ell_0(\theta, y)` whose parameters are maps of the outputs, :math:`\theta_c = h_c(f_c)`.

    .. math::
        \ell(f, y) = \ell_0(h(f), y), \qquad
        \nabla\ell = h' \odot \nabla\ell_0, \qquad
        \nabla^2\ell = \operatorname{diag}(h')\, \nabla^2\ell_0\, \operatorname{diag}(h')
            + \operatorname{diag}(h'' \odot \nabla\ell_0).

    A link maps the **output to the parameter**: ``Linked(Gaussian(), "exp")`` has the mean :math:`e^f`. The parameter
    is the base's own: that of ``Bernoulli()`` is a logit, not a probability. The links of generalized linear models
    are arguments of the families: ``Bernoulli(link="probit")``, ``Gamma(link="inverse")``. The
    Fisher information is :math:`\operatorname{diag}(h')\, F_0 \operatorname{diag}(h')`: the last term vanishes
    in expectation because the score :math:`\nabla\ell_0` has mean zero. Where the base weights its targets
    (``pos_weight``) the weighted score has not, and the same congruence is the information of the score,
    weighted in the same way: positive semi-definite, without the last term.

    The Hessian keeps the structure of the base's (diagonal, blocks of equal size, diagonal plus low rank). It is
    concave for certain only where the base is and every link is the identity; ``concave`` says no more.
    Outputs that no finite parameter belongs to (``exp`` that overflows, the ``log`` of a negative number) have
    an infinite value.

    Shapes: outputs ``(..., C)`` and targets as the base has them. ``mean``, ``variance`` and ``sample`` are
    those of the target, and so of the base at :math:`h(f)`.

    Args:
        base: The likelihood in its own parameters.
        links: The map of each of ``base.parameters``, in their order and the same for every response, or one for
            all outputs. Names: ``identity``, ``log``, ``softplus``, ``exp``, ``sigmoid``, ``logit``, ``square``,
            ``inverse``, ``normal_cdf``, ``cloglog_inverse``; or ``Link`` objects.

    Raises:
        InputError: A link is not known, or there is not one for each parameter.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., section 2.5.

    Examples:
        At f = log 2 a Gaussian with mean exp(f) and y = 3 has gradient (2 - 3) 2 and Hessian 2 * 2 + (2 - 3) 2.

        >>> import torch
        >>> from raphson.likelihoods import Gaussian, Linked
        >>> f, y = torch.tensor([[2.0]], dtype=torch.float64).log(), torch.tensor([[3.0]])
        >>> lik = Linked(Gaussian(), "exp")
        >>> lik.gradient(f, y).round(decimals=12)
        tensor([[-2.]], dtype=torch.float64)
        >>> lik.hessian(f, y).to_dense().round(decimals=12)
        tensor([[[2.]]], dtype=torch.float64)
        >>> lik.parameters
        ('log_mean',)
    """

    base: Likelihood
    links: str | Link | Sequence[str | Link]

    has_units = False

    def __post_init__(self) -> None:
        names = self.base.parameters
        count = 1 if isinstance(self.links, str | Link) else len(self.links)
        if count not in {1, len(names)}:
            raise InputError(
                f"{type(self.base).__name__} has the parameters {', '.join(names)}, but {count} links were given: "
                "give one for each, in this order, or a single one for all."
            )
        _ = self.maps  # an unknown name is refused now

    @property
    def concave(self) -> bool:  # type: ignore[override]
        """Whether the base is and every link is the identity."""
        return self.base.concave and self._is_identity

    def definition(self) -> Definition:
        """Return the base's formulas with its parameters as maps of the outputs."""
        from raphson.likelihoods.composed._linked_formula import linked_formula

        base = self.base.definition()
        return linked_formula(replace(self, base=base.likelihood), self.maps, base)

    def of_targets(self) -> Linked:
        """Return the base's, with the same links."""
        base = self.base.of_targets()
        return self if base is self.base else replace(self, base=base)

    @property
    def maps(self) -> tuple[Link, ...]:
        """The links as objects: one for all outputs, or one for each parameter of a response."""
        given = (self.links,) if isinstance(self.links, str | Link) else tuple(self.links)
        maps = tuple(as_link(link) for link in given)
        return maps[:1] if all(link is maps[0] for link in maps) else maps

    @property
    def _is_identity(self) -> bool:
        return all(link is IDENTITY for link in self.maps)

    @property
    def _each(self) -> tuple[Link, ...]:
        # one for each parameter
        return self.maps if len(self.maps) > 1 else self.maps * len(self.base.parameters)

    @property
    def parameters(self) -> tuple[str, ...]:
        """What the outputs are: ``log_scale`` where the link of ``scale`` is ``exp``."""
        return tuple(link.parameter_name(name) for link, name in zip(self._each, self.base.parameters, strict=True))

    @property
    def domains(self) -> tuple[Support, ...]:
        """Where each output must lie: where its map is in the domain of the base."""
        domains = zip(self._each, self.base.domains, strict=True)
        return tuple(_preimage(link, domain) for link, domain in domains)

    @property
    def hessian_bound(self) -> float | None:
        """The base's if every link is the identity."""
        return self.base.hessian_bound if self._is_identity else None

    def output_names(self, n_outputs: int) -> tuple[str, ...]:
        """Return the base's names, each as ``parameters`` has it."""
        maps, names = self.maps, self.base.output_names(n_outputs)
        return tuple(maps[c % len(maps)].parameter_name(name) for c, name in enumerate(names))

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the outputs whose maps are the base's start, or a neutral value where there is none."""
        theta = self.base.start(y, n_outputs, weights)
        maps = self.maps
        f = torch.stack([maps[c % len(maps)].inverse(value) for c, value in enumerate(theta.unbind())])
        neutral = torch.tensor([maps[c % len(maps)].neutral for c in range(n_outputs)]).to(f)
        return torch.where(torch.isfinite(f) & torch.isfinite(self._theta(f)), f, neutral)

    def check_outputs(self, f: Tensor) -> None:
        """Raise ``InputError`` for the first output outside its domain, or whose map the base refuses."""
        Likelihood.check_outputs(self, f)
        self.base.check_outputs(self._theta(f))

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the base's value at the maps of ``f``, ``(...,)``; infinite where a map is not finite."""
        theta = self._theta(f)
        return self._finite_only(theta, self.base.nll(*self._seen(f, theta, y)))

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``h'`` times the base's gradient, ``(..., C)``."""
        at = self._inside(f, y)
        return _no_nan(product(at.first, at.base.gradient(*at.seen)))

    def hessian(self, f: Tensor, y: Tensor) -> SymmetricOperator:
        """Return the observed Hessian by the chain rule, in the structure of the base's."""
        at = self._inside(f, y)
        return self._curvature(f, y, at, at.base.gradient(*at.seen), at.base.hessian(*at.seen))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> SymmetricOperator:
        """Return ``diag(h') F diag(h')`` with the base's information ``F``, in its structure."""
        at = self._inside(f)
        return congruence(at.base.fisher(at.theta, y), at.first)

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> LinearOperator:
        """Return ``diag(h') S`` with the base's factor ``S``."""
        at = self._inside(f)
        return scaled_rows(at.base.fisher_factor(at.theta, y), at.first)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the links and of the base."""
        at = self._inside(f, y)
        # the information in the units of a residual may overflow
        apart = hessian == "expected" and self.base.in_units(at.theta) is not None
        value, gradient, curvature = at.base.derivatives(*at.seen, None if apart else hessian)
        if curvature is not None and hessian == "observed":
            curvature = self._curvature(f, y, at, gradient, curvature)
        elif curvature is not None:
            curvature = congruence(curvature, at.first)
        value = self.nll(f, y) if at.rescaled else self._finite_only(self._theta(f), value)
        gradient = _no_nan(product(at.first, gradient))
        return Derivatives(value, gradient, self.fisher(f, y) if apart else curvature)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one target per example from the base at the maps of ``f``."""
        return self.base.sample(self._theta(f), generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the mean of the target."""
        return self.base.mean(self._theta(f))

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return what the base predicts at the maps of ``f``."""
        return self.base.distribution(self._theta(f), y)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variance of the target."""
        return self.base.variance(self._theta(f))

    def _curvature(
        self, f: Tensor, y: Tensor, at: _Inside, gradient: Tensor, hessian: SymmetricOperator
    ) -> SymmetricOperator:
        found = plus_diagonal(congruence(hessian, at.first), product(at.second, gradient))
        power = self.maps[0].power
        own = None if power is None else self.base.power_curvature(at.theta, y, power)
        if own is None:
            return _or_infinite(found)
        first = f[..., :: len(self.base.parameters)]
        return _with_first(found, own / first / first)

    def _inside(self, f: Tensor, y: Tensor | None = None) -> _Inside:
        """Return parameters, targets and maps for the base, in units of its scale where that is tiny or huge."""
        mapped = self._at(f)
        theta, target = (mapped.value, None) if y is None else self._seen(f, mapped.value, y)
        units = self.base.in_units(theta, target)
        seen = is_near(theta) and torch.func.debug_unwrap(theta) is theta
        if units is None or seen and not bool(units.target.any()):
            return _Inside(self.base, theta, target, mapped.first, mapped.second, False)
        first, second = (times_power(part, units.gradient) for part in mapped[1:])
        if target is not None:
            target = times_power(like_outputs(units.target, target), units.target)
        return _Inside(units.likelihood, units.f, target, first, second, True)

    def _seen(self, f: Tensor, theta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return parameters and targets for the base: locations at zero and what is left of the targets.

        The exponential of 1e-20 is 1, and of a target of 1 the residual is then zero.
        """
        places = self.base.locations(f.shape[-1])
        if places is None:
            return theta, y
        maps = [self.maps[c % len(self.maps)] for c in range(f.shape[-1])[places]]
        if all(link.residual is None for link in maps):
            return theta, y
        values, at = f[..., places], theta[..., places]
        target = like_outputs(at, y)

        def left(link: Link, c: slice) -> Tensor:
            column = target[..., c]
            found = column - at[..., c] if link.residual is None else link.residual(values[..., c], column)
            # where a parameter of this output, or of another one, is no number, the base is evaluated elsewhere
            return torch.where(torch.isfinite(found), found, column - at[..., c])

        same = all(link is maps[0] for link in maps)
        columns = [slice(None)] if same else [slice(c, c + 1) for c in range(len(maps))]
        rest = torch.cat([left(link, c) for link, c in zip(maps, columns, strict=False)], -1)
        located = torch.zeros(f.shape[-1], dtype=torch.bool, device=f.device)
        located[places] = True
        return torch.where(located, 0.0, theta), rest

    def _finite_only(self, theta: Tensor, nll: Tensor) -> Tensor:
        return torch.where(self._are_numbers(theta), nll, torch.inf)

    def _are_numbers(self, theta: Tensor) -> Tensor:
        """Return whether all parameters are finite and, where zero is outside the domain, have all their digits."""
        found, apart = torch.isfinite(theta), self._apart_from_zero
        if any(apart):
            least = torch.finfo(theta.dtype).tiny
            bounds = [least * apart[c % len(apart)] for c in range(theta.shape[-1])]
            found = found & (theta.abs() >= torch.tensor(bounds, dtype=theta.dtype, device=theta.device))
        return found.all(-1)

    @functools.cached_property
    def _apart_from_zero(self) -> tuple[bool, ...]:
        zero = torch.zeros((), device="cpu")
        return tuple(not bool(domain.contains(zero)) for domain in self.base.domains)

    def _theta(self, f: Tensor) -> Tensor:
        return _by_column([link.function for link in self.maps], f)

    def _at(self, f: Tensor) -> Mapped:
        """Return the maps, flat where one of them is not finite: the value is infinite there."""
        if len(self.maps) == 1:
            at = self.maps[0].at(f)
        else:
            parts = [link.at(column) for link, column in zip(self.maps, _columns(f, len(self.maps)), strict=True)]
            at = Mapped(*(_join([part[i] for part in parts]) for i in range(3)))
        if all(link.power is not None or link is IDENTITY for link in self.maps):
            return at
        derivatives = torch.isfinite(at.first) & torch.isfinite(at.second)
        finite = derivatives.all(-1, keepdim=True) & self._are_numbers(at.value).unsqueeze(-1)
        return Mapped(
            *(torch.where(finite, part, instead) for part, instead in zip(at, (_INSTEAD, 0.0, 0.0), strict=True))
        )


_INSTEAD = 0.5
"""A parameter at which the base is evaluated in place of one that overflows."""


class _Inside(NamedTuple):
    # the base and its arguments, and the derivatives of the maps, in units of the scale if rescaled
    base: Likelihood
    theta: Tensor
    y: Tensor | None
    first: Tensor
    second: Tensor
    rescaled: bool

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        assert self.y is not None
        return self.theta, self.y


def _or_infinite(operator: SymmetricOperator) -> SymmetricOperator:
    """Return entries that are infinite where two terms of the chain rule overflow in opposite directions."""
    if isinstance(operator, Scaled):
        return replace(operator, operator=_or_infinite(operator.operator))
    if isinstance(operator, Diagonal):
        return replace(operator, values=_no_nan(operator.values))
    if isinstance(operator, Dense):
        return replace(operator, matrix=_no_nan(operator.matrix))
    return replace(operator, blocks=_no_nan(operator.blocks)) if isinstance(operator, EqualBlocks) else operator


def _no_nan(x: Tensor) -> Tensor:
    return x.nan_to_num(torch.inf, torch.inf, -torch.inf)


def _with_first(operator: SymmetricOperator, values: Tensor) -> SymmetricOperator:
    """Return a Hessian with another second derivative in the first parameter of each response."""
    if isinstance(operator, Diagonal):
        return Diagonal(values)
    assert isinstance(operator, EqualBlocks)
    place = torch.zeros(operator.blocks.shape[-2:], dtype=torch.bool, device=values.device)
    place[0, 0] = True
    return EqualBlocks(torch.where(place, values[..., None, None], operator.blocks))


def _by_column(functions: list[Callable[[Tensor], Tensor]], f: Tensor) -> Tensor:
    if len(functions) == 1:
        return functions[0](f)
    return _join([function(column) for function, column in zip(functions, _columns(f, len(functions)), strict=True)])


def _columns(f: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return outputs ``(..., M k)`` as ``k`` tensors ``(..., M)``, one for each parameter."""
    if f.shape[-1] % k:
        raise InputError(
            f"The outputs have {f.shape[-1]} columns, but each response has {k} parameters: the number of "
            "columns must be a multiple of it."
        )
    return f.reshape(*f.shape[:-1], f.shape[-1] // k, k).unbind(-1)


def _join(columns: list[Tensor]) -> Tensor:
    # parameters vary slowest, as the transposed outputs of a linear model are laid out
    return torch.stack(columns).movedim(0, -1).flatten(-2)


def _preimage(link: Link, domain: Support) -> Support:
    if link is IDENTITY:
        return domain
    return Support(
        f"{link.domain.description} whose {link.name.replace('_', ' ')} is {domain.description}",
        lambda f: link.domain.contains(f) & domain.contains(link.function(f)),
    )
