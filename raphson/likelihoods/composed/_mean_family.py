"""What families of a positive mean share, whose second parameter is an output or follows from a given dispersion."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from raphson.likelihoods import _parameters
from raphson.likelihoods._closed_form import ClosedForm, Parts
from raphson.likelihoods._support import REAL, Support
from raphson.likelihoods.composed import _mean_link


@dataclass(frozen=True, eq=False)
class MeanFamily(ClosedForm[Parts]):
    """A likelihood with the log of a mean, or another link's output, and a second parameter.

    Attributes:
        dispersion: The dispersion, positive; None makes the second parameter an output.
        link: What the first output is of the mean, one of ``link_names``, of which the first is ``"log"``.
    """

    dispersion: float | None = None
    link: str = "log"

    second: ClassVar[str] = "log_shape"
    """Name of the second output, the logarithm of the dispersion or of its inverse."""

    concave_links: ClassVar[tuple[str, ...]] = ()
    """With which links the log-likelihood is concave where the dispersion is given."""

    def __post_init__(self) -> None:
        _parameters.check_number("dispersion", self.dispersion)
        _mean_link.check_link(self)
        concave = self.dispersion is not None and self.link in self.concave_links
        object.__setattr__(self, "concave", concave)
        if self.link != "log":
            _mean_link.use_link(self, replace(self, link="log"), concave=concave)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a learned and a fixed dispersion, and each other link."""
        return cls(), cls(0.3), *(cls(phi, link) for link in cls.link_names[1:] for phi in (None, 0.3))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The log mean, or what the link makes of it, and unless ``dispersion`` is given the second parameter."""
        mean = _mean_link.mean_name(self.link)
        return (mean, self.second) if self.dispersion is None else (mean,)

    @property
    def domains(self) -> tuple[Support, ...]:
        return (_mean_link.mean_domain(self), *(REAL for _ in self.parameters[1:]))

    def mean(self, f: Tensor) -> Tensor:
        return self._split(f)[0].exp()

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the mean and of the second parameter, ``(..., M)`` or a scalar."""
        fixed = None if self.dispersion is None else math.log(self.dispersion)
        return _parameters.split(f, fixed if fixed is None or self.second == "log_dispersion" else -fixed)
