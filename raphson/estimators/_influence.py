"""What a linear model says of the rows that it was fitted to, its Hessian, and what leaving out single rows does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from raphson._errors import InputError, NotEstimableError, TooLargeError
from raphson.estimators._margins import MarginsMixin
from raphson.estimators.fit._covariance import DENSE_COVARIANCE
from raphson.infer import label_name
from raphson.likelihoods import TargetDistribution
from raphson.linalg import Dense, SymmetricOperator, check_dense_size, cholesky, cholesky_solve

if TYPE_CHECKING:
    from raphson.laplace import Influence

_LEVERAGE = 1e-10
"""One minus the leverage below which a row decides a coefficient by itself: without it there is no fit."""


class InfluenceMixin(MarginsMixin):
    """Residuals, tests and influence of the rows of a fit."""

    def hessian(self) -> SymmetricOperator:
        """Return the Hessian of the objective at the fit in the reported coefficients of standardized columns.

        The objective is the average loss with its penalty; a column in units of its standard deviation about its mean
        makes curvatures comparable. Where the reported coefficients depend on each other (sums of zero over classes,
        columns that depend on others) it is zero along what the data cannot tell apart.

        Returns:
            An operator ``(P, P)`` with labels, in the order of ``estimates``.

        Raises:
            NotEstimableError: The training rows are not part of a saved model. A matrix too large to form is a
                ``TooLargeError``.
        """  # noqa: DOC502
        fitted = self._require_fit()
        p = fitted.objective.n_parameters
        check_dense_size((len(self._layout.labels), p), torch.float64, "a fit to fewer columns")
        to_reported = fitted.standardized_map()
        back = torch.linalg.pinv(to_reported)
        found = fitted.solution.hessian
        found = fitted.problem.hessian(fitted.solution.theta) if found is None else found
        dense = back.mT @ found.to_dense() @ back
        return Dense(0.5 * (dense + dense.mT), labels=tuple(map(label_name, self._layout.labels)))

    def _training_distribution(self) -> TargetDistribution:
        check_is_fitted(self)
        rows = self._training_rows()
        return self._likelihood().distribution(self._training_outputs(), rows.y)

    def _training_outputs(self, part: slice = slice(None)) -> Tensor:
        """Return the outputs ``(n, C)`` of the rows that the model was fitted to, or part of them, offsets included."""
        rows = self._training_rows()
        x = (rows.x.numpy() if isinstance(rows.x, Tensor) else rows.x)[part]
        return torch.from_numpy(self._outputs(x, None if rows.offset is None else rows.offset[part]))

    def _row_table(self) -> tuple[list[str], Any]:
        rows = self._training_rows()
        return list(self._layout.columns), rows.x if isinstance(rows.x, Tensor) else rows.x.tocsc()

    def _row_index(self) -> Any:
        rows = self._training_rows()
        return np.flatnonzero(rows.kept) if rows.frame is None else rows.frame.index

    def _row_weights(self) -> NDArray[Any] | None:
        weights = self._training_rows().weights
        return None if weights is None else weights.numpy()

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

        fitted = self._require_fit()
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
        kept = torch.from_numpy(self._training_rows().kept)
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
        solved = cholesky_solve(lower, jacobian.flatten(0, 1).mT).mT.view_as(jacobian)
        spread = jacobian @ solved.mT
        likelihood, y = objective.likelihood, few.y
        h, g = likelihood.hessian(f, y).to_dense(), likelihood.gradient(f, y)
        left = torch.eye(f.shape[1], dtype=f.dtype) - weights[:, None, None] * h @ spread
        alone = torch.linalg.det(left) < _LEVERAGE
        if bool(alone.any()):
            raise NotEstimableError(
                f"Row {int(numbers[alone][0])} decides a coefficient by itself: there is no fit without it. Leave the "
                "row out of rows, or out of the fit together with its column."
            )
        u = weights[:, None] * torch.linalg.solve(left, g)
        change = (solved.mT @ u.unsqueeze(-1)).squeeze(-1)
        moved = (spread @ u.unsqueeze(-1)).squeeze(-1)
        cook = (u * moved).sum(1) / p
        loss = likelihood.nll(f + moved, y) - likelihood.nll(f, y)
        own = moved
        if likelihood.differences_only and self._layout.is_relative:  # as coefficients are reported
            reference = self._layout.output_map.left_out
            own = moved - (moved.mean(1, keepdim=True) if reference is None else moved[:, [reference]])
        return Influence(numbers, fitted.reported(change), own, loss, cook)


def _jacobian(objective: Any, p: int) -> Tensor:
    """Return the derivatives of all outputs in the parameters, ``(n, C, p)``: outputs of unit vectors."""
    plain = objective.take(torch.arange(objective.n_rows))
    plain.offset = None
    columns = [plain.predictors(unit) for unit in torch.eye(p, dtype=torch.float64)]
    return torch.stack(columns, -1).movedim(0, 1)
