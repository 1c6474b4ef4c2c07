r"""The multinomial likelihood of counts with a softmax link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raphson._errors import InputError
from raphson.likelihoods._likelihood import Derivatives, Likelihood
from raphson.likelihoods._special._log_coefficient import log_coefficient
from raphson.likelihoods._special._softmax_factor import SoftmaxFactor
from raphson.likelihoods._support import COUNT
from raphson.likelihoods._target_distribution import ClassCounts, TargetDistribution, to_array
from raphson.likelihoods._targets import refuse_outside
from raphson.likelihoods.families._categorical import Categorical
from raphson.linalg import DiagonalPlusLowRank, in_float64

if TYPE_CHECKING:
    from raphson.likelihoods.formulas import Definition

# a row of counts is that many labels; only the coefficient is new
_LABELS = Categorical()


@dataclass(frozen=True, eq=False)
class Multinomial(Likelihood):
    r"""Counts of K classes in each row, with logits as outputs (softmax link).

    With :math:`n = \sum_k y_k` and :math:`p = \operatorname{softmax}(f)`,

    .. math::
        \ell(f, y) = \log\sum\nolimits_k e^{f_k}\, n - \sum_k y_k f_k - \log n! + \sum_k \log y_k!, \qquad
        \nabla\ell = n\,p - y, \qquad \nabla^2\ell = n\,(\operatorname{diag}(p) - p p^\top),

    convex in ``f``. Each row counts by its total: it is ``Categorical`` with n labels, and the coefficient.

    Shapes: outputs ``(..., K)``; targets ``(..., K)``, whole numbers of any type; totals may differ by row. The
    Hessian is a diagonal minus a rank-one term, never ``K x K``.

    The model alone does not say how many there are in a row: ``mean`` is the class probabilities, and ``sample``
    draws, ``variance`` and ``fisher(f)`` describe, a single one; ``fisher(f, y)`` counts the total of each row.

    References:
        P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., section 5.2.4.

    Examples:
        At equal logits, one each of three classes has probability 6 / 27.

        >>> import torch
        >>> from raphson.likelihoods import Multinomial
        >>> f, y = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1, 1, 1]])
        >>> (27 * Multinomial().nll(f, y).neg().exp()).round(decimals=12)
        tensor([6.], dtype=torch.float64)
        >>> Multinomial().hessian(f, y).diagonal()
        tensor([[0.6667, 0.6667, 0.6667]], dtype=torch.float64)
    """

    concave = True
    differences_only = True
    support = COUNT

    def default_columns(self, n_outputs: int) -> tuple[Tensor, Tensor]:
        """Return outputs relative to the first class, whose coefficients are zero."""
        return _LABELS.default_columns(n_outputs)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The logit of each class."""
        return ("logit",)

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood, ``(...,)``; infinite where a count is negative or not whole."""
        return _LABELS.nll(f, _counts(f, y)) - log_coefficient(y.movedim(-1, 0).contiguous()).to(f.dtype)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``n p - y``, ``(..., K)``, with the strides of ``f``."""
        return _LABELS.gradient(f, _counts(f, y))

    def hessian(self, f: Tensor, y: Tensor) -> DiagonalPlusLowRank:
        """Return ``n (diag p - p p^T)``; only the totals of the targets matter."""
        return _LABELS.hessian(f, _counts(f, y))

    def fisher(self, f: Tensor, y: Tensor | None = None) -> DiagonalPlusLowRank:
        """Return the Fisher information; without ``y``, that of a total of 1."""
        return _LABELS.fisher(f) if y is None else self.hessian(f, y)

    def fisher_factor(self, f: Tensor, y: Tensor | None = None) -> SoftmaxFactor:
        """Return the root of the Fisher information in closed form, ``(..., K, K - 1)``, known by its products."""
        return _LABELS.fisher_factor(f, None if y is None else _counts(f, y))

    def derivatives(self, f: Tensor, y: Tensor, hessian: str | None = "observed") -> Derivatives:
        """Return value, gradient and Hessian from one pass over the exponentials."""
        at = _LABELS.derivatives(f, _counts(f, y), hessian)
        return at._replace(nll=at.nll - log_coefficient(y.movedim(-1, 0).contiguous()).to(f.dtype))

    @property
    def self_concordance(self) -> float:
        """1, as of the softmax: a total multiplies second and third derivatives alike."""
        return 1.0

    def extended_gradient(self, f: NDArray[np.longdouble], y: Tensor) -> NDArray[np.longdouble] | None:
        """Return ``n p - y`` in extended precision."""
        return _LABELS.extended_gradient(f, y.double())

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Return ``n p``."""
        return _LABELS.curvature_terms(f, _counts(f, y))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a total of one per row: a 1 in its class, ``(..., K)``, in the element type of ``f``."""
        drawn = _LABELS.sample(f, generator).unsqueeze(-1)
        return torch.zeros_like(f).scatter_(-1, drawn, 1.0)

    def mean(self, f: Tensor) -> Tensor:
        """Return the class probabilities ``p``, ``(..., K)``."""
        return _LABELS.mean(f)

    def distribution(self, f: Tensor, y: Tensor) -> TargetDistribution:
        """Return the distribution of counts given their total, ``(..., K)``."""
        return ClassCounts(to_array(self.mean(f)), to_array(_counts(f, y)))

    def variance(self, f: Tensor) -> Tensor:
        """Return ``p (1 - p)``, ``(..., K)``, the variances of the counts at a total of one."""
        return _LABELS.variance(f)

    def check(self, y: Tensor, n_outputs: int) -> None:
        """Raise ``InputError`` for the first count ``(..., K)`` that is negative or not whole."""
        if y.ndim == 0 or y.shape[-1] != n_outputs:
            raise InputError(
                f"The targets have shape {tuple(y.shape)}, but the model has {n_outputs} classes: give rows of "
                f"{n_outputs} counts, or use Categorical for one label per row."
            )
        refuse_outside(~COUNT.contains(y), y, COUNT.description)

    def start(self, y: Tensor, n_outputs: int, weights: Tensor | None = None) -> Tensor:
        """Return the logarithms of the shares of the classes in all counts."""
        return _LABELS.start(in_float64(y), n_outputs, weights)

    def definition(self) -> Definition:
        """Return the formulas for counts of three classes."""
        from raphson.likelihoods import formulas as fm
        from raphson.likelihoods.formulas import factored, positive, softmax, sympy

        f, pieces = softmax(3)
        y, n, z = sympy.symbols("y_:3", real=True), positive("n"), pieces[0].symbol
        log_coefficient = sympy.loggamma(n + 1) - sympy.Add(*(sympy.loggamma(count + 1) for count in y))
        return fm.Definition(
            likelihood=self,
            outputs=f,
            targets=y,
            nll=n * sympy.log(z) - sympy.Add(*(a * b for a, b in zip(y, f, strict=True))) - log_coefficient,
            abbreviations=(*pieces, fm.Abbreviation(n, sympy.Add(*y), {})),
            expect=lambda entry: entry,
            read=lambda row: row.tolist(),
            given_target=True,
            example=((0.5, -0.3, 0.1), [4.0, 1.0, 2.0]),
            convexity=fm.ONLY_CONVEX,
            source=fm.GLM_BOOK + "section 5.2.",
            target_words="counts y_k that sum to n, which is given",
            notes=("Written out for K = 3 classes. For K classes: gradient n p - y, Hessian n (diag(p) - p pᵀ).",),
            arrange=factored,
            joint=True,
        )


def _counts(f: Tensor, y: Tensor) -> Tensor:
    if y.shape != f.shape:
        raise InputError(
            f"The logits have shape {tuple(f.shape)}, classes last, so the counts must have the same shape, "
            f"not {tuple(y.shape)}."
        )
    return y.to(f.dtype)
