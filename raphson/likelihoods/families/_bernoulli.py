r"""The Bernoulli likelihood: one or many yes-or-no labels per row, by the logit or another link."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._command import Command
from raphson.likelihoods._likelihood import Derivatives
from raphson.likelihoods._links import softplus
from raphson.likelihoods._special._binary_links import BINARY_LINKS
from raphson.likelihoods._support import UNIT_INTERVAL
from raphson.likelihoods._target_distribution import TargetDistribution, Univariate, to_array
from raphson.likelihoods._targets import check_columns, columns, like_outputs, refuse_outside, start_rows, weight_tensor
from raphson.likelihoods.composed._binary_family import BinaryFamily
from raphson.linalg import Diagonal

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Bernoulli(BinaryFamily):
    r"""Independent Bernoulli labels with logits as outputs; one label per row is binary logistic regression.

    .. math::
        \ell(f, y) = \sum_m v_m \left[ w_m y_m \log(1 + e^{-f_m}) + (1 - y_m) \log(1 + e^{f_m}) \right],

    with :math:`\sigma_m = 1 / (1 + e^{-f_m})`, gradient
    :math:`v_m [(1 - y_m)\,\sigma_m - w_m y_m (1 - \sigma_m)]` and a diagonal Hessian
    :math:`v_m (w_m y_m + 1 - y_m)\,\sigma_m (1 - \sigma_m)`: the definition of
    ``torch.nn.BCEWithLogitsLoss``, summed over the labels of a row. Soft labels between 0 and 1 are allowed.

    With another link the output is another function of the probability p of a positive label: its ``probit`` (p is
    the normal distribution function of ``f``), ``cloglog`` (:math:`1 - e^{-e^f}`), ``loglog`` (:math:`e^{-e^{-f}}`),
    ``cauchit``, ``log`` (relative risks; f must be negative) or ``identity`` (risk differences; f between 0 and 1).
    Then :math:`\ell = -y \log p - (1 - y) \log(1 - p)`, with both tails and their derivatives in closed forms that
    stay exact where a probability underflows.

    Shapes: outputs ``(..., M)``; targets ``(..., M)``, or ``(...,)`` where ``M = 1``.

    Args:
        pos_weight: ``w``, a scalar or ``(M,)``, the weight of positive labels; None means 1 each.
        label_weight: ``v``, a scalar or ``(M,)``, the weight of each label; None means 1 each.
        link: One of the names above, or ``"logit"``.

    Raises:
        InputError: A weight is negative or not finite, or has more than one axis; there is no such link, or it comes
            with ``pos_weight``.

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
    link: str = "logit"

    concave = True
    always_finite = True
    partition = "logistic"
    support = UNIT_INTERVAL
    commands = (Command("bernoulli", target="two"),)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return plain and weighted labels, and each other link."""
        half = torch.tensor([0.5], dtype=torch.float64)
        others = (cls(link=link) for link in cls.link_names[1:])
        return cls(), cls(torch.tensor([3.0], dtype=torch.float64), half), *others, cls(None, half, "probit")

    def __post_init__(self) -> None:
        if self._link is not BINARY_LINKS["logit"]:
            if self.pos_weight is not None:
                raise InputError("pos_weight goes with the logit link only; give weights to rows instead.")
            for name, value in (("partition", None), ("always_finite", False), ("concave", self._link.concave)):
                object.__setattr__(self, name, value)
        for name in ("pos_weight", "label_weight"):
            w = weight_tensor(name, getattr(self, name))
            object.__setattr__(self, name, w)
            if w is not None and (w.ndim > 1 or not bool(torch.isfinite(w).all() & (w >= 0).all())):
                raise InputError(f"{name} must be a finite non-negative number, or a vector with one per label.")

    def of_targets(self) -> Self:
        """Return the likelihood without weights of labels."""
        return self if self.pos_weight is None and self.label_weight is None else type(self)(link=self.link)

    @property
    def hessian_bound(self) -> float | None:
        """A quarter, times the largest ``label_weight``, times the largest ``pos_weight`` above 1; of logits only."""
        if self.link != "logit":
            return None
        positive = 1.0 if self.pos_weight is None else max(1.0, float(self.pos_weight.max()))
        return 0.25 * positive * (1.0 if self.label_weight is None else float(self.label_weight.max()))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> Diagonal:
        r"""Return a diagonal; of logits, without ``y``, :math:`v (w\sigma + 1 - \sigma)\,\sigma (1 - \sigma)`."""
        tails = self._link.tails(f)
        return Diagonal(sum(self._parts(f, tails.mean if y is None else y)) * tails.information)

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        """Return the labels, ``(..., M)`` in float64; None with a weight of labels or another link than the logit."""
        if self.pos_weight is not None or self.label_weight is not None or self.link != "logit":
            return None
        return columns(y, n_outputs).double()

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        r"""Return :math:`\sum_m \log(1 + e^{f_m})`, :math:`\sigma` and the diagonal :math:`\sigma (1 - \sigma)`."""
        p = torch.sigmoid(f)
        return Derivatives(softplus(f).sum(-1), p, Diagonal(torch.addcmul(p, p, p, value=-1.0)) if hessian else None)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw labels 0 or 1, ``(..., M)``, in the element type of ``f``."""
        return torch.bernoulli(self.mean(f), generator=generator)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return Bernoulli distributions of labels, ``(..., M)``; a target between 0 and 1 is refused."""
        from scipy import stats

        target = like_outputs(f, y)
        refuse_outside((target != 0) & (target != 1), target, "0 or 1 to have a distribution")
        label = to_array(target)
        return Univariate(stats.bernoulli(to_array(self.mean(f))), label, stats.bernoulli(label))

    def variance(self, f: Tensor) -> Tensor:
        """Return the variances of the labels, ``(..., M)``."""
        return self._link.tails(f).variance

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the outputs of the shares of positive labels, of at least half a row of each kind; weights count."""
        labels = start_rows(y, n_outputs)
        w = torch.ones_like(labels[:, :1]) if weights is None else weights.to(labels).reshape(-1, 1)
        positive, negative = ((w * part).sum(0) for part in self._parts(labels, labels))
        least = (0.5 * (positive + negative) / max(len(labels), 1)).clamp_min(torch.finfo(torch.float64).tiny)
        positive, negative = torch.maximum(positive, least), torch.maximum(negative, least)
        return self._output_at(positive, negative)

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first label outside [0, 1], and unless there are M labels and weights."""
        for name in ("pos_weight", "label_weight"):
            w = weight_tensor(name, getattr(self, name))
            object.__setattr__(self, name, w)
            if w is not None and w.numel() not in {1, n_outputs}:
                raise InputError(f"{name} has {w.numel()} entries but the model has {n_outputs} outputs.")
        check_columns(y, n_outputs, 1, self.support)

    def definition(self) -> Definition:
        """Return the formulas in the output, with the weights of the first label if there are any."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import positive, real, sympy

        y = real("y")
        p, w, v, q, d = positive("p w v q d")
        link = self._link
        first: dict[str, Any] = {}
        constants = {}
        for name, symbol in (("pos_weight", w), ("label_weight", v)):
            weight = getattr(self, name)
            if weight is not None:
                first[name] = weight.reshape(-1)[0]
                constants[symbol] = float(first[name])
        one = sympy.Integer(1)
        eta, pieces = link.formula(p, d)
        if first and self.link == "logit":
            # 1 - p as a symbol of its own keeps the weighted sums short
            pieces = (fm.Abbreviation(p, pieces[0].meaning, {eta: p * q}), fm.Abbreviation(q, 1 - p, {eta: -p * q}))
        else:
            q = one - p
        w, v = (symbol if symbol in constants else one for symbol in (w, v))
        averaged = "Without targets, the Fisher information averages the weight over labels drawn from the model."
        made = fm.Definition(
            likelihood=replace(self, **first),
            outputs=(eta,),
            targets=(y,),
            nll=-v * (w * y * sympy.log(p) + (1 - y) * sympy.log(q)),
            abbreviations=pieces,
            moments={y: p},
            constants=constants,
            example=((float(link.quantile(torch.tensor(0.6))),), 1.0),
            convexity=fm.STRICTLY_CONVEX,
            source=fm.GLM_BOOK + "section 4.4.",
            notes=() if w == 1 else (averaged,),
        )
        return self._at_link(made)

    def _parts(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # The weights v w y of the positive and v (1 - y) of the negative answer.
        y = like_outputs(f, y)
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
