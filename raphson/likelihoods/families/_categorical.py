r"""The categorical likelihood with a softmax link: classes, class probabilities or class counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._extended import partition_mean
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._special._softmax import (
    Target,
    information,
    nll_and_split,
    one_hot_variance,
    residual,
    reuse,
    shift,
    softmax,
    split,
)
from raphson.likelihoods._special._softmax_factor import SoftmaxFactor
from raphson.likelihoods._target_distribution import ClassLabels, TargetDistribution, to_array
from raphson.likelihoods._targets import refuse_outside, weight_tensor
from raphson.likelihoods.families._bernoulli import Bernoulli
from raphson.linalg import DiagonalPlusLowRank, where_float64, widest_float

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    r"""Categorical distribution of a class, with logits as outputs (softmax link).

    .. math::
        \ell(f, y) = s \log \sum_k e^{f_k} - \sum_k t_k f_k, \qquad
        \nabla\ell = s\,p - t, \qquad
        \nabla^2\ell = s\,(\operatorname{diag}(p) - p p^\top), \qquad p = \operatorname{softmax}(f),

    with the target row :math:`t` and :math:`s = \sum_k t_k`. A class label :math:`y` stands for
    :math:`t_k = w_k\,[(1 - \epsilon)\,1(k = y) + \epsilon / K]`, a row of probabilities for
    :math:`t_k = w_k\,[(1 - \epsilon)\,y_k + \epsilon / K]`, with class weights :math:`w` and label smoothing
    :math:`\epsilon`: the definition of ``torch.nn.CrossEntropyLoss``. A row of counts that sums to :math:`n`
    gives the multinomial negative log-likelihood without its coefficient, :math:`\log n! - \sum_k \log y_k!`.

    Shapes: outputs ``(..., K)``, classes **last** (torch has them on axis 1); targets are integers ``(...,)``
    or floating-point rows ``(..., K)``. The Hessian is a diagonal minus a rank-one term, never ``K x K``.

    Args:
        class_weight: ``(K,)`` non-negative weights of the classes; None means 1 each.
        ignore_index: Label of rows that count nothing; only for integer targets.
        label_smoothing: ``epsilon`` in [0, 1].

    Raises:
        InputError: ``class_weight`` or ``label_smoothing`` is out of range.

    References:
        D. Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44, 197-200.

    Examples:
        At equal logits every class has probability 1/K, and the Hessian is I/K - 11^T/K^2.

        >>> import torch
        >>> from raphson.likelihoods import Categorical
        >>> f, y = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([2])
        >>> Categorical().gradient(f, y)
        tensor([[ 0.2500,  0.2500, -0.7500,  0.2500]], dtype=torch.float64)
        >>> expected = torch.eye(4, dtype=torch.float64) / 4 - torch.ones(4, 4, dtype=torch.float64) / 16
        >>> torch.equal(Categorical().hessian(f, y).to_dense()[0], expected)
        True
    """

    class_weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0

    concave = True
    always_finite = True
    partition = "softmax"
    differences_only = True

    def __post_init__(self) -> None:
        w = weight_tensor("class_weight", self.class_weight)
        object.__setattr__(self, "class_weight", w)
        if w is not None and (w.ndim != 1 or not bool(torch.isfinite(w).all() & (w >= 0).all())):
            raise InputError("class_weight must be a vector of finite non-negative numbers, one per class.")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise InputError(f"label_smoothing is {self.label_smoothing:g}, but it must lie between 0 and 1.")

    def of_targets(self) -> Self:
        """Return the likelihood without weights of classes and smoothing."""
        plain = self.class_weight is None and self.label_smoothing == 0.0
        return self if plain else type(self)(ignore_index=self.ignore_index)

    @property
    def hessian_bound(self) -> float:
        """Half the largest class weight (Bohning 1992, lemma 2), for labels and for rows of probabilities."""
        return 0.5 if self.class_weight is None else 0.5 * float(self.class_weight.max())

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood, ``(...,)``; zero where the target is ignored.

        A saturated prediction keeps its digits: the value is ``log1p`` of the odds against the label.
        """
        return nll_and_split(shift(f), self._target(f, y))[0]

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``s p - t``, with the strides of ``f``; ``p_y - 1`` is formed without cancellation."""
        target = self._target(f, y)
        part = split(shift(f), target)
        return residual(reuse(part.terms, "mul", target.scale / part.total), target, part)

    def hessian(self, f: Tensor, y: Tensor) -> DiagonalPlusLowRank:
        """Return ``s (diag p - p p^T)``; it depends on the target through its total weight only."""
        return information(softmax(f), self._target(f, y).scale, unit=self._unit_scale(y))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> DiagonalPlusLowRank:
        """Return ``diag p - p p^T`` times the weight of ``y``, or its mean over labels drawn from the model."""
        if y is not None:
            return self.hessian(f, y)
        p = softmax(f)
        return information(p, self._expected_scale(p), unit=False)

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> SoftmaxFactor:
        r"""Return :math:`S = \sqrt s \operatorname{diag}(\sqrt p)\, Q`, ``(..., K, K - 1)``, known by its products.

        The ``K - 1`` columns of :math:`Q` are an orthonormal basis of what is orthogonal to :math:`\sqrt p`.
        """
        p = softmax(f)
        scale = self._expected_scale(p) if y is None else self._target(f, y).scale
        return SoftmaxFactor(p, p.sqrt() if scale is None else (p * scale).sqrt())

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one label per row, ``(...,)`` integers from 0 to K - 1."""
        # The first of K exponential clocks with rates p rings at class k with probability p_k.
        clocks = torch.empty_like(f).exponential_(generator=generator)
        return shift(f.detach()).exp_().div_(clocks).argmax(-1)

    def mean(self, f: Tensor) -> Tensor:
        """Return the class probabilities ``p``, ``(..., K)``, the mean of the one-hot label."""
        return softmax(f)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return the distribution of labels, ``(...,)``, in the order of their numbers; ignored ones do not count.

        Raises:
            InputError: The targets are rows of probabilities.
        """
        if y.is_floating_point():
            raise InputError(
                "The targets are rows of class probabilities; residuals need one label per row, or Multinomial counts."
            )
        label = torch.where(y == self.ignore_index, -1, y).cpu().numpy()
        return ClassLabels(to_array(torch.log_softmax(f, -1)), label)

    def variance(self, f: Tensor) -> Tensor:
        """Return ``p (1 - p)``, ``(..., K)``, the variances of the entries of the one-hot label."""
        return one_hot_variance(softmax(f))

    def weight(self, y: Tensor) -> Tensor | None:
        """Return what each row adds to the denominator of a mean, as ``torch.nn.CrossEntropyLoss`` counts it.

        The class weight of a label and 0 where it is ignored, ``(...,)`` in float64, where the device has it, so that
        sums over many rows are exact; None, which means 1 each, for probability rows.
        """
        if y.is_floating_point():
            return None
        counts = y != self.ignore_index
        if self.class_weight is None:
            return counts.to(widest_float(y.device))
        return self.class_weight.to(y.device, widest_float(y.device))[y.long().masked_fill(~counts, 0)] * counts

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return plain, smoothed and weighted classes."""
        weights = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
        return cls(), cls(label_smoothing=0.1), cls(weights, label_smoothing=0.1)

    def default_columns(self, n_outputs: int) -> tuple[Tensor, Tensor]:
        """Return outputs relative to the first class, whose coefficients are zero."""
        relative = torch.eye(n_outputs, dtype=torch.float64)[:, 1:]
        return relative, relative

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of each class."""
        return ("logit",)

    def n_outputs(self, y: Tensor) -> int:
        """Return the number of classes: one more than the largest label, or the length of a row of probabilities."""
        return y.shape[-1] if y.is_floating_point() else int(y.max()) + 1

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the shares of the classes, each at least that of half a row.

        Class weights and label smoothing count. With every class present, no outputs common to all rows are better.
        """
        y = where_float64(y)
        examples = y.reshape(-1, n_outputs) if y.is_floating_point() else y.reshape(-1)
        w = torch.ones(len(examples), dtype=torch.float64, device=y.device)
        if weights is not None:
            w = weights.to(w).repeat_interleave(len(w) // max(len(weights), 1))
        if y.is_floating_point():
            totals = w @ examples.double()
        else:
            w = w * (examples != self.ignore_index)
            totals = w.new_zeros(n_outputs).index_add_(0, examples.long().masked_fill(w == 0, 0), w)
        totals = totals * (1 - self.label_smoothing) + totals.sum() * (self.label_smoothing / n_outputs)
        if self.class_weight is not None:
            totals = totals * self.class_weight.to(totals)
        size = totals.sum()
        if not bool(size > 0):
            return torch.zeros_like(totals)
        return (totals / size).clamp_min(0.5 / max(len(w), float(size))).log()

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first label that is no class, or row that has a negative or non-finite entry.

        Rows of another length than K, and another number of class weights, are refused, too.

        Raises:
            InputError: A label, a row or the number of weights is not as it must be.
        """
        if self.class_weight is not None and self.class_weight.shape[0] != n_outputs:
            raise InputError(
                f"class_weight has {len(self.class_weight)} entries, but the model has {n_outputs} classes: "
                "give one weight per class."
            )
        if not y.is_floating_point():
            ignored = f" or {self.ignore_index}, which is ignored"
            outside = ((y < 0) | (y >= n_outputs)) & (y != self.ignore_index)
            refuse_outside(outside, y, f"an integer from 0 to {n_outputs - 1}{ignored}")
            return
        if y.ndim == 0 or y.shape[-1] != n_outputs:
            raise InputError(
                f"Floating-point targets of shape {tuple(y.shape)} are read as rows of class probabilities, "
                f"but the model has {n_outputs} classes: give rows of {n_outputs}, or labels as integers."
            )
        refuse_outside(~(torch.isfinite(y) & (y >= 0)), y, "a finite non-negative probability or count")

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one pass over the exponentials."""
        target = self._target(f, y)
        nll, part = nll_and_split(shift(f), target)
        weighted = reuse(part.terms, "mul", target.scale / part.total)
        if hessian is None:
            return Derivatives(nll, residual(weighted, target, part), None)
        gradient = residual(weighted.clone(), target, part)
        weighted = reuse(weighted, "scatter", -1, part.one, target.scale * part.own / part.total)
        if self._unit_scale(y):
            curvature = DiagonalPlusLowRank(weighted, weighted.unsqueeze(-1), sign=-1)
        else:
            # A zero weight has a zero row; dividing by its root would make it nan.
            root = target.scale.clamp(min=torch.finfo(f.dtype).tiny).rsqrt()
            curvature = DiagonalPlusLowRank(weighted, (weighted * root).unsqueeze(-1), sign=-1)
        return Derivatives(nll, gradient, curvature)

    def of_difference(self) -> Bernoulli | None:
        """Return the Bernoulli likelihood of the first of two classes; None with class weights or smoothing."""
        return None if self.class_weight is not None or self.label_smoothing else Bernoulli()

    def statistic(self, y: Tensor, n_outputs: int) -> Tensor | None:
        """Return the one-hot labels, ``(..., K)``; None with weights, smoothing, ignored or soft targets."""
        if self.class_weight is not None or self.label_smoothing or y.is_floating_point():
            return None
        if bool((y == self.ignore_index).any()):
            return None
        # classes vary slowest, as the transposed outputs of a linear model are laid out
        onehot = torch.zeros(n_outputs, *y.shape, dtype=torch.float64, device=y.device)
        return onehot.scatter_(0, y.long().unsqueeze(0), 1.0).movedim(0, -1)

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        """Return ``s p - t`` in extended precision; None for labels with weights, smoothing or an ignored index."""
        if not y.is_floating_point():
            return super().extended_gradient(f, y)
        target = self._target(torch.from_numpy(f.astype(np.float64)), y)
        if target.dense is None or self.class_weight is not None or self.label_smoothing:
            return None
        dense = target.dense.numpy().astype(np.longdouble)
        found: NDArray[np.longdouble] = dense.sum(-1, keepdims=True) * partition_mean("softmax", f) - dense
        return found

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``s p``."""
        return softmax(f) * self._target(f, y).scale * 1.0001

    def log_partition(self, f: Tensor, *, hessian: bool = True) -> Derivatives:
        """Return the log-sum-exp of the logits, ``p`` and ``diag p - p p^T``; the last two share their memory."""
        largest = f.amax(-1, keepdim=True)
        terms = reuse(f - largest, "exp")
        total = terms.sum(-1, keepdim=True)
        p = reuse(terms, "div", total)
        value = (total.log() + largest).squeeze(-1)
        return Derivatives(value, p, DiagonalPlusLowRank(p, p.unsqueeze(-1), sign=-1) if hessian else None)

    def definition(self) -> Definition:
        """Return the formulas for three classes; what weights and smoothing make of the target is in its row t."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import factored, positive, softmax, sympy

        k, smoothing = 3, self.label_smoothing
        f, pieces = softmax(k)
        t = sympy.symbols(f"t_:{k}", real=True)
        z, *p = (piece.symbol for piece in pieces)
        plain = self.class_weight is None
        weight = None if self.class_weight is None else self.class_weight[:k]
        w = [1.0] * k if weight is None else weight.tolist()
        weights, epsilon = sympy.symbols(f"w_:{k}", positive=True), positive("epsilon")
        # the weight of the target and its mean over targets drawn from the model
        s, mean = (sympy.Integer(1),) * 2 if plain else positive("s m")
        constants = {}
        if not plain:
            shares = [(1 - epsilon) * share + epsilon / k if smoothing else share for share in p]
            pieces += (
                fm.Abbreviation(s, sympy.Add(*t), {}),
                fm.Abbreviation(mean, sympy.Add(*(a * b for a, b in zip(weights, shares, strict=True)))),
            )
            constants = dict(zip(weights, w, strict=True)) | ({epsilon: smoothing} if smoothing else {})

        def read(y: Tensor) -> Sequence[float]:
            return [w[i] * ((1 - smoothing) * (i == int(y)) + smoothing / k) for i in range(k)]

        words = "t_k = 1 for the class of the example, 0 for the others"
        if not plain or smoothing:
            words = "t_k = w_k ((1 - ε) [k is the class] + ε/K), with class weights w and label smoothing ε"
        general = "gradient p - t, Hessian diag(p) - p pᵀ."
        if not plain:
            general = "s = t_0 + ... + t_{K-1}: gradient s p - t, Hessian s (diag(p) - p pᵀ)."
        return fm.Definition(
            likelihood=replace(self, class_weight=weight),
            outputs=f,
            targets=t,
            nll=s * sympy.log(z) - sympy.Add(*(a * b for a, b in zip(t, f, strict=True))),
            abbreviations=pieces,
            expect=lambda entry: entry if plain else entry.subs(s, mean),
            constants=constants,
            read=read,
            example=((0.5, -0.3, 0.1), 2),
            convexity=fm.ONLY_CONVEX,
            source="D. Böhning (1992), Ann. Inst. Statist. Math. 44, 197-200.",
            target_words=words,
            notes=(f"Written out for K = 3 classes. For K classes{':' if plain else ','} {general}",),
            arrange=factored,
            joint=True,
        )

    def _unit_scale(self, y: Tensor) -> bool:
        # Every s is 0 or 1, so that s p and sqrt(s) p are one array.
        return self.class_weight is None and not y.is_floating_point()

    def _weights(self, f: Tensor) -> Tensor | None:
        return None if self.class_weight is None else self.class_weight.to(f)

    def _target(self, f: Tensor, y: Tensor) -> Target:
        w, k, eps = self._weights(f), f.shape[-1], self.label_smoothing
        # gather would accept a short y and broadcasting a long one.
        if y.shape != (f.shape if y.is_floating_point() else f.shape[:-1]):
            raise InputError(_shape_message(f, y))
        if y.is_floating_point():
            dense = y.to(f.dtype)
            dense = dense * (1 - eps) + eps / k if eps else dense
            dense = dense if w is None else dense * w
            return Target(dense.sum(-1, keepdim=True), dense=dense)
        ignored = (y == self.ignore_index).unsqueeze(-1)
        label = y.long().unsqueeze(-1).masked_fill(ignored, 0)
        counts = (~ignored).to(f.dtype)
        own = counts if w is None else w[label] * counts
        if not eps:
            return Target(own, label, own)
        own = own * (1 - eps)
        background = counts * (eps / k) if w is None else counts * w * (eps / k)
        total = counts * (eps if w is None else eps * w.mean())
        return Target(own + total, label, own, background)

    def _expected_scale(self, p: Tensor) -> Tensor | None:
        w = self._weights(p)
        if w is None:
            return None
        return (p * w).sum(-1, keepdim=True) * (1 - self.label_smoothing) + self.label_smoothing * w.mean()


def _shape_message(f: Tensor, y: Tensor) -> str:
    wanted = tuple(f.shape) if y.is_floating_point() else tuple(f.shape[:-1])
    kind = "class probabilities (floating point)" if y.is_floating_point() else "class labels (integers)"
    return (
        f"The logits have shape {tuple(f.shape)}, classes last, so {kind} must have shape {wanted}, "
        f"not {tuple(y.shape)}."
    )
