"""What leaving out single rows does to a fitted linear model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raphson._errors import InputError, NotEstimableError, TooLargeError
from raphson.estimators._residuals import ResidualsMixin
from raphson.estimators.fit._covariance import DENSE_COVARIANCE
from raphson.estimators.input._rows import dense
from raphson.linalg import cholesky, cholesky_solve

if TYPE_CHECKING:
    from raphson.laplace import Influence

_LEVERAGE = 1e-10
"""One minus the leverage below which a row decides a coefficient by itself: without it there is no fit."""


class InfluenceMixin(ResidualsMixin):
    """Influence of the rows of a fit."""

    def influence(self, rows: Sequence[int] | Tensor | slice) -> Influence:
        r"""Return what the fit would be without single rows: one Newton step from the optimum, a row at a time.

        With :math:`J_n` the derivative of row n's outputs in the coefficients and H the Hessian of the summed loss and
        its penalty, whose weight stays as it is,

        .. math:: \Delta_n = H^{-1} J_n^\top (I - w_n H_n S_n)^{-1} w_n g_n, \qquad S_n = J_n H^{-1} J_n^\top.

        For a Gaussian with a fixed scale that is the fit without the row; for other likelihoods what it leaves is of
        second order in the step. Cook's distance is :math:`\Delta_n^\top H \Delta_n / P`, for least squares and for
        multinomial models that of the textbooks.

        Args:
            rows: Positions among the rows given to ``fit``, from 0, or a slice of them.

        Returns:
            Changes of the coefficients ``(n, P)`` in the order of ``covariance``, of the row's own linear predictors
            ``(n, C)`` and loss ``(n,)``, and Cook's distances ``(n,)``.

        Raises:
            InputError: A row was not among those of the fit.
            NotEstimableError: The fit has no rows, no finite optimum, is penalized by Jeffreys' prior, or a row alone
                decides a coefficient.
            TooLargeError: There are too many coefficients for a dense Hessian.

        References:
            R. D. Cook (1977), Detection of influential observation in linear regression, Technometrics 19. D. Pregibon
            (1981), Logistic regression diagnostics, Annals of Statistics 9. E. Lesaffre and A. Albert (1989),
            Multiple-group logistic regression diagnostics, Applied Statistics 38.

        Examples:
            Two groups with means 2 and 6; without the last row the second has the mean 2.

            >>> import numpy as np
            >>> import raphson as rp
            >>> model = rp.VectorGLM(rp.Gaussian()).fit(np.array([[0.0], [1.0], [0.0], [1.0]]), [1.0, 2.0, 3.0, 10.0])
            >>> model.influence([3]).parameters.numpy().round(6) + 0.0
            array([[ 0., -4.]])
        """
        from raphson.laplace import Influence, row_numbers

        fitted, training = self._require_fit(), self._training_rows()
        if self._refusal is not None:
            raise NotEstimableError(self._refusal)
        if fitted.limit is not None or fitted.null_basis.shape[1]:
            raise NotEstimableError(
                "Some coefficients of this fit are infinite or not determined by the data: no step leads to the fit "
                "without a row; remove the columns that the report names, or fit with l2 > 0."
            )
        if fitted.jeffreys:
            raise NotEstimableError(
                "The influence of rows is not known under Jeffreys' prior; fit with penalty='ridge'."
            )
        objective, theta = fitted.objective, fitted.solution.theta
        p = objective.n_parameters
        if p > DENSE_COVARIANCE:
            raise TooLargeError(
                f"The influence of rows needs the dense Hessian of {p} coefficients, {8 * p * p / 1e9:.1f} GB."
            )
        kept = torch.from_numpy(training.kept)
        numbers = row_numbers(rows, len(kept))
        if not bool(kept[numbers].all()):
            row = int(numbers[~kept[numbers]][0])
            raise InputError(f"Row {row} was no part of the fit: its weight is zero, or a value of it is missing.")
        places = (kept.long().cumsum(0) - 1)[numbers]
        few = objective.take(places)
        weights = few.weights if few.weights is not None else theta.new_ones(len(places))
        f = few.predictors(theta).mT
        jacobian = _jacobian(few, p)
        total = objective.hessian(theta).to_dense() * objective.total_weight
        lower = cholesky(total)
        pulled = cholesky_solve(lower, jacobian.flatten(0, 1).mT).mT.view_as(jacobian)
        spread = jacobian @ pulled.mT
        likelihood = objective.likelihood
        y = few.y
        h, g = likelihood.hessian(f, y).to_dense(), likelihood.gradient(f, y)
        left = torch.eye(f.shape[1], dtype=f.dtype) - weights[:, None, None] * h @ spread
        alone = torch.linalg.det(left) < _LEVERAGE
        if bool(alone.any()):
            raise NotEstimableError(
                f"Row {int(numbers[alone][0])} decides a coefficient by itself: there is no fit without it. Leave the "
                "row out of rows, or out of the fit together with its column."
            )
        u = weights[:, None] * torch.linalg.solve(left, g)
        change = (pulled.mT @ u.unsqueeze(-1)).squeeze(-1)
        moved = (spread @ u.unsqueeze(-1)).squeeze(-1)
        cook = (u * moved).sum(1) / p
        loss = likelihood.nll(f + moved, y) - likelihood.nll(f, y)
        own = self._own_outputs(training, places, change) if likelihood.differences_only else moved
        return Influence(numbers, fitted.reported(change), own, loss, cook)

    def _own_outputs(self, training: Any, places: Tensor, change: Tensor) -> Tensor:
        """Return changes of the linear predictors as they are reported, relative to the reference, ``(n, C)``."""
        fitted = self._require_fit()
        x = dense(training.x[places.numpy()] if not isinstance(training.x, Tensor) else training.x[places])
        still = fitted.coefficients(torch.zeros_like(change[0]))
        wide = torch.cat([x.new_ones(len(x), still.shape[1] - x.shape[1]), x], 1)
        return torch.stack([fitted.coefficients(one) @ row for one, row in zip(change, wide, strict=True)])


def _jacobian(objective: Any, p: int) -> Tensor:
    """Return the derivatives of all outputs in the parameters, ``(n, C, p)``: outputs of unit vectors."""
    plain = objective.take(torch.arange(objective.n_rows))
    plain.offset = None
    columns = [plain.predictors(unit) for unit in torch.eye(p, dtype=torch.float64)]
    return torch.stack(columns, -1).movedim(0, 1)
