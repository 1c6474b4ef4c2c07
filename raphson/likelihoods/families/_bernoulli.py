r"""The Bernoulli likelihood with a logit link: one or many yes-or-no labels per row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._links import softplus
from raphson.likelihoods._support import UNIT_INTERVAL
from raphson.likelihoods._targets import check_columns, columns, like_outputs, start_rows
from raphson.linalg import Diagonal

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Bernoulli(Likelihood):
    r"""Independent Bernoulli labels with logits as outputs; one label per row is binary logistic regression.

    .. math::
        \ell(f, y) = \sum_m v_m \left[ w_m y_m \log(1 + e^{-f_m}) + (1 - y_m) \log(1 + e^{f_m}) \right],

    with :math:`\sigma_m = 1 / (1 + e^{-f_m})`, gradient
    :math:`v_m [(1 - y_m)\,\sigma_m - w_m y_m (1 - \sigma_m)]` and a diagonal Hessian
    :math:`v_m (w_m y_m + 1 - y_m)\,\sigma_m (1 - \sigma_m)`: the definition of
    ``torch.nn.BCEWithLogitsLoss``, summed over the labels of a row. Soft labels between 0 and 1 are allowed.

    Shapes: outputs ``(..., M)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        pos_weight: ``w``, a scalar or ``(M,)``, the weight of positive labels; None means 1 each.
        label_weight: ``v``, a scalar or ``(M,)``, the weight of each label; None means 1 each.

    Raises:
        InputError: A weight is negative or not finite, or has more than one axis.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., section 4.4.

    Examples:
        At logit 0 the gradient is 1/2 - y and the Hessian is 1/4.

        >>> import torch
        >>> from raphson.likelihoods import Bernoulli
        >>> f, y = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
        >>> Bernoulli().gradient(f, y)
        tensor([[ 0.5000, -0.5000]])
        >>> Bernoulli().hessian(f, y).to_dense()
        tensor([[[0.2500, 0.0000],
                 [0.0000, 0.2500]]])
    """

    pos_weight: Tensor | None = None
    label_weight: Tensor | None = None

    concave = True
    always_finite = True
    partition = "logistic"
    support = UNIT_INTERVAL
    commands = (Command("bernoulli", target="two"),)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return plain and weighted labels."""
        return cls(), cls(torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of each response."""
        return ("logit",)

    def __post_init__(self) -> None:
        for name, w in (("pos_weight", self.pos_weight), ("label_weight", self.label_weight)):
            if w is not None and (w.ndim > 1 or not bool(torch.isfinite(w).all() & (w >= 0).all())):
                raise InputError(f"{name} must be a finite non-negative number, or a vector with one per label.")

    @property
    def hessian_bound(self) -> float:
        """A quarter, times the largest ``label_weight``, times the largest ``pos_weight`` above 1."""
        positive = 1.0 if self.pos_weight is None else max(1.0, float(self.pos_weight.max()))
        return 0.25 * positive * (1.0 if self.label_weight is None else float(self.label_weight.max()))

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood summed over labels, ``(...,)``."""
        positive, negative = self._parts(f, like_outputs(f, y))
        return (positive * softplus(-f) + negative * softplus(f)).sum(-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., M)``, without cancellation at saturated labels."""
        positive, negative = self._parts(f, like_outputs(f, y))
        return negative * torch.sigmoid(f) - positive * torch.sigmoid(-f)

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        """Return the observed Hessian, a batched diagonal ``(..., M, M)``."""
        positive, negative = self._parts(f, like_outputs(f, y))
        return Diagonal((positive + negative) * self.variance(f))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return a diagonal; without ``y``, the mean :math:`v (w \sigma + 1 - \sigma)\,\sigma (1 - \sigma)`."""
        return self.hessian(f, torch.sigmoid(f) if y is None else y)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        """Return the labels, ``(..., M)`` in float64; None with ``pos_weight`` or ``label_weight``."""
        if self.pos_weight is not None or self.label_weight is not None:
            return None
        return columns(y, n_outputs).double()

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`\sum_m \log(1 + e^{f_m})`, :math:`\sigma` and the diagonal :math:`\sigma (1 - \sigma)`."""
        p = torch.sigmoid(f)
        return Derivatives(softplus(f).sum(-1), p, Diagonal(torch.addcmul(p, p, p, value=-1.0)) if hessian else None)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw labels 0 or 1, ``(..., M)``, in the element type of ``f``."""
        return torch.bernoulli(torch.sigmoid(f), generator=generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the probabilities of a positive label, ``(..., M)``."""
        return torch.sigmoid(f)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the labels, ``(..., M)``."""
        return torch.sigmoid(f) * torch.sigmoid(-f)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logits of the shares of positive labels, of at least half a row of each kind; weights count."""
        labels = start_rows(y, n_outputs)
        w = torch.ones_like(labels[:, :1]) if weights is None else weights.to(labels).reshape(-1, 1)
        positive, negative = ((w * part).sum(0) for part in self._parts(labels, labels))
        least = (0.5 * (positive + negative) / max(len(labels), 1)).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.maximum(positive, least).log() - torch.maximum(negative, least).log()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise for the first row outside the support.

        Args:
            y: Labels ``(..., M)``, or ``(...,)`` where ``M = 1``.
            n_outputs: Number of labels ``M``.

        Raises:
            InputError: A label is not in [0, 1], or the number of labels or of weights is not ``M``.
        """
        for name, w in (("pos_weight", self.pos_weight), ("label_weight", self.label_weight)):
            if w is not None and w.numel() not in {1, n_outputs}:
                raise InputError(f"{name} has {w.numel()} entries but the model has {n_outputs} outputs.")
        check_columns(y, n_outputs, 1, self.support)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the two sigmoids."""
        positive, negative = self._parts(f, like_outputs(f, y))
        up, down = torch.sigmoid(f), torch.sigmoid(-f)
        nll = (positive * softplus(-f) + negative * softplus(f)).sum(-1)
        curvature = None if hessian is None else Diagonal((positive + negative) * (up * down))
        return Derivatives(nll, negative * up - positive * down, curvature)

    def definition(self) -> Definition:
        """Return the formulas in the logit, with the weights of the first label if there are any."""
        from raphson.likelihoods.formulas import (
            GLM_BOOK,
            STRICTLY_CONVEX,
            Abbreviation,
            Definition,
            logistic,
            positive,
            real,
            sympy,
        )

        eta, y = real("eta y")
        p, w, v, q = positive("p w v q")
        first: dict[str, Any] = {}
        constants = {}
        for name, symbol in (("pos_weight", w), ("label_weight", v)):
            weight = getattr(self, name)
            if weight is not None:
                first[name] = weight.reshape(-1)[0]
                constants[symbol] = float(first[name])
        one = sympy.Integer(1)
        pieces: tuple[Abbreviation, ...] = (logistic(p, eta),)
        if first:
            # 1 - p as a symbol of its own keeps the weighted sums short
            pieces = (Abbreviation(p, pieces[0].meaning, {eta: p * q}), Abbreviation(q, 1 - p, {eta: -p * q}))
        else:
            q = one - p
        w, v = (symbol if symbol in constants else one for symbol in (w, v))
        averaged = "Without targets, the Fisher information averages the weight over labels drawn from the model."
        return Definition(
            likelihood=replace(self, **first),
            outputs=(eta,),
            targets=(y,),
            nll=-v * (w * y * sympy.log(p) + (1 - y) * sympy.log(q)),
            abbreviations=pieces,
            moments={y: p},
            constants=constants,
            example=((0.4,), 1.0),
            convexity=STRICTLY_CONVEX,
            source=GLM_BOOK + "section 4.4.",
            notes=() if w == 1 else (averaged,),
        )

    def _parts(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # The weights v w y of the positive and v (1 - y) of the negative answer.
        positive, negative = y, 1 - y
        if self.pos_weight is not None:
            positive = positive * self._spread(self.pos_weight, f)
        if self.label_weight is not None:
            v = self._spread(self.label_weight, f)
            positive, negative = positive * v, negative * v
        return positive, negative

    @staticmethod
    def _spread(w: Tensor, f: Tensor) -> Tensor:
        if w.numel() not in {1, f.shape[-1]}:
            raise InputError(f"A weight has {w.numel()} entries but the model has {f.shape[-1]} outputs.")
        return w.to(f)
