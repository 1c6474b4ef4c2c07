r"""A penalized linear model in the span of the gradients met so far: some of the span of its rows, at two passes each.

A gradient in the slopes of all columns is a combination of rows. With V an orthonormal basis of the gradients at hand
the model of the columns :math:`\tilde X V` has the same penalty and few parameters; at its optimum the gradient of all
columns, one product with the rows, says whether that is the optimum of all, and else enlarges the basis: a block
Krylov method for problems that are not linear. Where rows are separated with wide margins, or the penalty is strong, a
few gradients reach what the products of all rows would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.data import DenseDesign
from raphson.linear._objective import LinearObjective
from raphson.linear._output_map import OutputMap

_NEW = 1e-10
"""Share of a gradient's length outside the basis below which it adds nothing."""


class GradientSpace:
    """A growing basis of slopes for a uniform output map.

    Args:
        whole: The objective of all columns.

    Attributes:
        objective: The same objective for slopes in the basis.
    """

    def __init__(self, whole: LinearObjective) -> None:
        assert whole.output_map.is_uniform
        self.whole = whole
        # a standardized copy costs two passes and saves a third of each: there are few
        self._design = whole.design.without_copy()
        self._basis = torch.zeros(0, whole.design.scale.shape[0], dtype=torch.float64)
        self._rows = torch.zeros(whole.n_rows, 0, dtype=torch.float64)
        self.objective = self._build()

    @property
    def rank(self) -> int:
        """Number of vectors in the basis."""
        return self._basis.shape[0]

    def extend(self, *gradients: Tensor) -> bool:
        """Enlarge the basis by gradients ``(P,)`` of all columns; return whether one was not in it."""
        here, design = self.whole.output_map, self._design
        table = torch.cat([gradient.view(here.shapes[0]) for gradient in gradients])
        slopes = table[:, int(here.intercept) :] * design.scale
        size = slopes.norm(dim=1)
        new = slopes
        for _ in range(2):  # twice is enough for orthogonality to rounding
            new = new - (new @ self._basis.mT) @ self._basis
        new = new[new.norm(dim=1) > _NEW * size]
        if not new.shape[0]:
            return False
        q, r = torch.linalg.qr(new.mT)
        found = q[:, r.diagonal().abs() > _NEW * float(r.diagonal().abs().max())].mT
        coef = torch.nn.functional.pad(found * design.scale, (int(here.intercept), 0))
        self._basis = torch.cat([self._basis, found])
        self._rows = torch.cat([self._rows, design.predict(coef).mT], 1)
        self.objective = self._build()
        return True

    def of_intercepts(self, theta: Tensor) -> Tensor:
        """Return the parameters in an empty basis, the intercepts, of parameters ``(P,)`` of all columns."""
        here = self.whole.output_map
        return theta.view(here.shapes[0])[:, : int(here.intercept)].reshape(-1)

    def into(self, theta: Tensor) -> Tensor:
        """Return parameters of a smaller basis, ``(p,)``, in that of now: what was added has the slope zero."""
        table = theta.view(self.whole.output_map.shapes[0][0], -1)
        return torch.nn.functional.pad(table, (0, self.objective.design.n_columns - table.shape[1])).view(-1)

    def back(self, theta: Tensor) -> Tensor:
        """Return the parameters ``(P,)`` of all columns for ``(p,)`` in the basis."""
        here = self.whole.output_map
        table = theta.view(here.shapes[0][0], -1)
        first = int(here.intercept)
        slopes = (table[:, first:] @ self._basis) * self.whole.design.scale
        return torch.cat([table[:, :first], slopes], 1).view(-1)

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters of all columns and the gradient there, ``(P,)`` each, by one product with the rows."""
        whole, everywhere = self.whole, self.back(theta)
        g = whole.likelihood.gradient(self.objective.predictors(theta).mT, whole.y).mT
        g = whole.output_map.reduce(g if whole.weights is None else g * whole.weights)
        return everywhere, self._design.adjoint(g).reshape(-1) / whole.total_weight + whole.ridge.mv(everywhere)

    def _build(self) -> LinearObjective:
        whole, here = self.whole, self.whole.output_map
        k = self.rank
        moments = torch.zeros(k, dtype=torch.float64), torch.ones(k, dtype=torch.float64)
        return whole.on(
            DenseDesign(self._rows, intercept=here.intercept, moments=moments),
            OutputMap.uniform(here.groups[0].matrix, k + here.intercept, here.intercept),
        )
