r"""Steps where every batch is the same: the minimum of an exact quadratic model, by conjugate gradients.

Where a batch holds all data, its own Gauss-Newton matrix G has no noise, and nothing is lost by trusting it further
than along one direction. A few iterations of conjugate gradients on :math:`(G + \lambda I)\,\delta = -g`, from the best
multiple of the last step (Martens 2010, section 4.8), preconditioned by K-FAC (Martens and Grosse 2015, section 6) with
the inverse itself, for there is no noise that another power would hold back (``concrete`` with ``beta_nll``, rows held
out: an error of 0.283 after 250 steps, with the power of mini-batches 0.294), see what a Kronecker product does not: it
averages output Hessians over examples, so that where these differ by orders of magnitude, as :math:`1/\sigma_n^2` does,
the examples of a small scale alone decide. A network with mean and log-scale for ``energy`` (691 rows) ends at a loss
of -2.04 and a root mean square error of 0.18 after 250 steps along the preconditioned gradient, and at -2.19 and 0.07
after 60 of these, in six tenths of the time (measured).

The damping is spread by layer (``Preconditioner.reach``) and does not fall below a share of the curvature. A multiple
of the identity lets the last layer, which has most of the curvature, cancel on the rows of the batch what it does to
all others: ``concrete`` (rows held out) is then at an error of 0.327 after 60 steps, with this at 0.302, and the loss
is the lower one, too, -0.84 in place of -0.73 (measured).

A step is shortened until no diagonal entry of an output Hessian H_n changes by more than a factor, to first order in
the outputs: the model, whose Hessians are those of its start, holds no further, and scales that grow before the means
are fitted stay large. A loss that does not fall by a part of what was promised takes the step back, and more damping is
tried, as in the method of Levenberg and Marquardt. Examples may be weighted by their outputs (``beta_nll``): the loss
that has to fall, and that the model promises about, has the weights of the step's start. All this is for likelihoods
that are not concave: for the others (natural parameters, classes) one direction was the better, or is not known to be
worse; natural parameters have a share of the same damping.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raphson.linalg import cg
from raphson.optim._damping import DampingSchedule
from raphson.optim._gathered import Gathered
from raphson.optim._groups import GroupValues
from raphson.optim._position import Position
from raphson.optim._preconditioner import Preconditioner

ITERATIONS = 4
"""Of conjugate gradients in a step, each about half of a gradient in time."""

LARGEST_CHANGE = 2.0
"""Factor by which entries of output Hessians may change in a step: a log-scale by 0.35. ``concrete`` and ``energy``
(first and third split) are at errors of 0.283 and 0.059 after 60 steps, at 0.32 and 0.13 with 4 in its place, and at
0.36 and 0.21 without a bound (measured)."""

SPREAD = 0.03
"""Share of the parameters' reach that single directions of a concave likelihood of several outputs a response have as
damping. Natural parameters for ``concrete``, rows held out, 20 runs of 60 steps: a root mean square error of 0.303 and
at most 0.37, without it 0.49 and 3.9, as rows far from all others go off. Of 250 steps: at most 0.94, without it 1e5;
0.52 with 0.1, at a loss higher by 0.04, and 24, in one run, with 0.05: what is left is chance (measured)."""

HALVINGS = 20
"""Of a step, until it is within the bound."""

RETRIES = 12
"""Dampings that a step tries, each four times the one before."""

_SAME = 64.0
"""Rounding errors by which the losses of a batch, with its rows in whatever order, may differ."""

_PART = 0.05
"""Part of its promise that a step has to keep."""


def is_same(loss: float, expected: float, dtype: torch.dtype) -> bool:
    """Whether a batch's loss is that of the last one at the same parameters: the batch is that one, then."""
    return abs(loss - expected) <= _SAME * torch.finfo(dtype).eps * max(abs(loss), abs(expected), 1.0)


class FullBatch:
    """A step for a batch that is always the same.

    Args:
        position: The parameters.
        gathered: The batch.
        curvature: What preconditions.
        damping: The damping, which the step changes.
        values: Options of the groups.
    """

    def __init__(
        self,
        position: Position,
        gathered: Gathered,
        curvature: Preconditioner,
        damping: DampingSchedule,
        values: GroupValues,
    ) -> None:
        self._position, self._gathered, self._curvature = position, gathered, curvature
        self._damping, self._values = damping, values

    def step(
        self, theta: Tensor, gradient: Tensor, previous: Tensor | None, iterations: int, count: int
    ) -> tuple[Tensor, float]:
        """Move the parameters.

        Args:
            theta: Where they are, ``(P,)``.
            gradient: The gradient there, with the penalty's.
            previous: The last step; None for none.
            iterations: Of conjugate gradients.
            count: The step, from 0.

        Returns:
            The step taken, ``(P,)``, zero where no damping made the loss fall; and the loss after it, if the batch is
            given again: the loss that has to fall has the weights that it had.
        """
        loss, pull, mean = float(self._gathered.loss), self._penalized(theta), self._curvature.mean
        self._damping.hold(mean)
        self._mean, self._reach = max(mean, torch.finfo(theta.dtype).tiny), self._curvature.reach()
        for _ in range(RETRIES):
            self._curvature.refresh(lambda name: self._values.at("weight_decay", name), count, self._share)
            found = minimum(self._product, self._curvature.solve, gradient, previous, iterations)
            taken = self._position.checked(self._values.times("lr", found))
            share, curved = self._gathered.bounded(taken, LARGEST_CHANGE, HALVINGS)
            taken = taken * share
            bend = 0.5 * float(torch.dot(taken, self._penalized(taken)))
            promised = float(torch.dot(gradient, taken)) + 0.5 * share**2 * curved + bend
            with self._position.moved(taken):
                now = float(self._gathered.loss_now())
            change = now - loss + float(torch.dot(pull, taken)) + bend
            if keeps(change, promised, loss, gradient.dtype):
                break
            self._damping.retry()
        else:
            taken, now = torch.zeros_like(taken), loss
        self._position.move(taken)
        self._damping.adapt(change, promised, 1.0)
        return taken, self._gathered.given_again(now)

    @property
    def _share(self) -> float:
        """What is added to the curvature, in units of its parameters' reach."""
        assert self._damping.value is not None
        return self._damping.value / self._mean

    def _penalized(self, v: Tensor) -> Tensor:
        return self._values.times("weight_decay", v)

    def _product(self, v: Tensor) -> Tensor:
        return self._gathered.product(v).addcmul_(self._reach, v, value=self._share) + self._penalized(v)


def minimum(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    gradient: Tensor,
    previous: Tensor | None,
    iterations: int,
) -> Tensor:
    """Return about the minimum of a quadratic model.

    Args:
        product: Of its positive definite matrix with a vector ``(P,)``.
        precondition: Product with about the inverse of this matrix.
        gradient: The gradient, ``(P,)``.
        previous: The last step, whose best multiple is the start; None for zero.
        iterations: Of conjugate gradients.

    Returns:
        The step, ``(P,)``.
    """
    start, residual = torch.zeros_like(gradient), -gradient
    if previous is not None:
        moved = product(previous)
        curvature = float(torch.dot(previous, moved))
        if curvature > 0:
            share = -float(torch.dot(gradient, previous)) / curvature
            start, residual = share * previous, residual - share * moved
    return start + cg(product, residual, preconditioner=precondition, max_iter=iterations).x


def keeps(change: float, promised: float, loss: float, dtype: torch.dtype) -> bool:
    """Whether a step does enough of what it promised, or promised less than rounding shows."""
    unseen = -promised <= _SAME * torch.finfo(dtype).eps * max(abs(loss), 1.0)
    return math.isfinite(change) and (change <= _PART * promised or (unseen and abs(change) <= 2 * abs(promised)))
