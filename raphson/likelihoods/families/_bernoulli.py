r"""The Bernoulli likelihood with a logit link: one or many yes-or-no labels per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._support import UNIT_INTERVAL
from raphson.likelihoods._targets import like_outputs, output_columns, refuse_outside
from raphson.linalg import Diagonal


def _softplus(f: Tensor) -> Tensor:
    # torch.nn.functional.softplus turns linear at 20, which costs half of the digits of a double.
    return torch.logaddexp(f, f.new_zeros(()))


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
        """Return the negative log-likelihood summed over labels, ``(...,)``.

        Args:
            f: Logits ``(..., M)``.
            y: Labels in [0, 1].

        Returns:
            One value per row.
        """
        positive, negative = self._parts(f, like_outputs(f, y))
        return (positive * _softplus(-f) + negative * _softplus(f)).sum(-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the gradient, ``(..., M)``, without cancellation at saturated labels.

        Args:
            f: Logits ``(..., M)``.
            y: Labels in [0, 1].

        Returns:
            The gradient.
        """
        positive, negative = self._parts(f, like_outputs(f, y))
        return negative * torch.sigmoid(f) - positive * torch.sigmoid(-f)

    def hessian(self, f: Tensor, y: Tensor) -> Diagonal:
        """Return the observed Hessian, a batched diagonal ``(..., M, M)``.

        Args:
            f: Logits ``(..., M)``.
            y: Labels in [0, 1]; without ``pos_weight`` they do not matter.

        Returns:
            The operator.
        """
        positive, negative = self._parts(f, like_outputs(f, y))
        return Diagonal((positive + negative) * self.variance(f))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return the expected information, a batched diagonal ``(..., M, M)``.

        Args:
            f: Logits ``(..., M)``.
            y: Targets whose weights to use: then it equals ``hessian(f, y)``.

        Returns:
            Without ``y``, the expectation over labels drawn from the model:
            :math:`v (w \sigma + 1 - \sigma)\,\sigma (1 - \sigma)`.
        """
        return self.hessian(f, torch.sigmoid(f) if y is None else y)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        """Return the labels, ``(..., M)`` in float64; None with ``pos_weight`` or ``label_weight``."""
        if self.pos_weight is not None or self.label_weight is not None:
            return None
        return output_columns(y, n_outputs).double()

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`\sum_m \log(1 + e^{f_m})` with its gradient and Hessian.

        Args:
            f: Logits ``(..., M)``.
            hessian: Whether the Hessian is wanted.

        Returns:
            The value ``(...,)``, :math:`\sigma` and :math:`\operatorname{diag}(\sigma (1 - \sigma))`.
        """
        p = torch.sigmoid(f)
        return Derivatives(_softplus(f).sum(-1), p, Diagonal(torch.addcmul(p, p, p, value=-1.0)) if hessian else None)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw labels 0 or 1, ``(..., M)``, in the element type of ``f``.

        Args:
            f: Logits ``(..., M)``.
            generator: Source of randomness, on the device of ``f``.

        Returns:
            The labels.
        """
        return torch.bernoulli(torch.sigmoid(f), generator=generator)

    def mean(self, f: Tensor) -> Tensor:
        """Return the probabilities of a positive label, ``(..., M)``."""
        return torch.sigmoid(f)

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the labels, ``(..., M)``."""
        return torch.sigmoid(f) * torch.sigmoid(-f)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logits of the shares of positive labels, at least half a row of each kind.

        Args:
            y: Labels ``(N, M)``, or ``(N,)`` where ``M = 1``.
            n_outputs: ``M``.
            weights: ``(N,)`` example weights; None means 1 each.

        Returns:
            Outputs ``(M,)``: with both kinds present, those that fit all targets alike; ``pos_weight`` counts.
        """
        labels = output_columns(y, n_outputs).double().reshape(-1, n_outputs)
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
        labels = output_columns(y, n_outputs)
        refuse_outside(~self.support.contains(labels), labels, self.support.description)

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one evaluation of the two sigmoids.

        Args:
            f: Logits ``(..., M)``.
            y: Labels in [0, 1].
            hessian: ``"observed"`` or ``"expected"``, equal at given targets, or None for no Hessian.

        Returns:
            The three, each as its own method gives it.
        """
        positive, negative = self._parts(f, like_outputs(f, y))
        up, down = torch.sigmoid(f), torch.sigmoid(-f)
        nll = (positive * _softplus(-f) + negative * _softplus(f)).sum(-1)
        curvature = None if hessian is None else Diagonal((positive + negative) * (up * down))
        return Derivatives(nll, negative * up - positive * down, curvature)

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
