r"""Limited-memory BFGS from an inverse Hessian of the caller's: the pairs, the loop and its line search, once.

The inverse Hessian of :math:`s_i, y_i`, steps and changes of the gradient, and an initial one :math:`\gamma H_0` is

.. math:: H = \gamma H_0 + \begin{bmatrix} S & \gamma Z \end{bmatrix}
    \begin{bmatrix} R^{-\top} (D + \gamma Y^\top Z) R^{-1} & -R^{-\top} \\ -R^{-1} & 0 \end{bmatrix}
    \begin{bmatrix} S^\top \\ \gamma Z^\top \end{bmatrix}, \qquad Z = H_0 Y,

with R the upper triangle of :math:`S^\top Y` and D its diagonal (Byrd, Nocedal and Schnabel 1994, theorem 2.2).
Products with ten pairs are two calls, where the recursion of two loops takes forty:
50 us for a step beside 77 for 300 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raphson.linalg import SERIAL_ENTRIES
from raphson.solve._factor import Inverse
from raphson.solve._line_search import Direction, is_finite
from raphson.solve._solution import Evaluation

_SUFFICIENT = 1e-4
"""Fraction of the predicted decrease that a step must achieve (Nocedal and Wright 2006, equation 3.4)."""

_CURVED = 1e-10
"""Share of the inverse curvature so far below which that of a pair is rounding."""

TRIALS = 20
"""Lengths tried for a step."""

_SMALL = 1000
"""Parameters up to which products with pairs that are still zero cost less than views of those that are not."""


class InversePairs:
    """The inverse Hessian that an initial one and pairs of steps and changes of the gradient make.

    Args:
        inverse: About the product with the inverse Hessian, symmetric and positive definite.
        gradient: The gradient at the start, ``(p,)``.
        memory: Largest number of pairs.
        scaled: Whether ``inverse`` is right up to a factor only, which the last pair tells.
        length: That factor for the first step; None for a step of length one.
    """

    def __init__(
        self,
        inverse: Inverse,
        gradient: Tensor,
        *,
        memory: int = 10,
        scaled: bool = False,
        length: float | None = None,
    ) -> None:
        self._inverse, self._scaled = inverse, scaled
        self._gradient, self._before, self._solved = gradient, gradient, inverse(gradient)
        self._step: Tensor | None = None
        p, small = gradient.shape[0], gradient.shape[0] <= _SMALL
        # steps and Z in turns, in the places that are free or oldest: memory that no pair has come to is never touched
        self._rows = gradient.new_zeros(2 * memory, p) if small else gradient.new_empty(2 * memory, p)
        self._places = self._rows.numpy()  # the same memory: small arrays are copied in half the time of tensors
        self._shares = gradient.new_zeros(2 * memory)
        self._flat = self._shares.numpy()
        self._by_pair = self._flat.reshape(-1, 2)
        self._seen, self._own = np.zeros((memory, 2)), np.zeros(memory)  # products of pairs with the gradient, and D
        self._root, self._changes = np.zeros((memory, memory)), np.zeros((memory, memory))  # R^-1, Y^T Z
        self._taken = self._used = self._width = 0
        self._is_few = 2 * memory * p <= SERIAL_ENTRIES and gradient.dtype == torch.float64
        if small:
            self._look_at(memory)
        tiny = torch.finfo(gradient.dtype).tiny
        self._scale = length or (1.0 / max(float(self._solved.norm()), tiny) if scaled else 1.0)

    def _look_at(self, pairs: int) -> None:
        """Multiply by so many pairs from now on: views are made here, not at every step."""
        self._width, self._head, self._weights = pairs, self._rows[: 2 * pairs], self._shares[: 2 * pairs]
        self._across, self._products = self._head.mT, torch.empty_like(self._weights)

    def clear(self) -> None:
        """Forget the pairs."""
        self._step, self._taken, self._used = None, 0, 0
        for numbers in (self._root, self._changes, self._own, self._seen):
            numbers[:] = 0.0

    @property
    def number(self) -> int:
        """Number of pairs."""
        return self._used + (self._step is not None)

    def move(self, step: Tensor, gradient: Tensor) -> None:
        """Note a step ``(p,)`` that was taken, and the gradient where it led."""
        self._flush()
        self._step, self._before, self._gradient = step, self._gradient, gradient

    def direction(self) -> Tensor:
        """Return ``-H g`` at the gradient of now."""
        self._flush()
        scale, seen = self._scale, self._seen
        if not self._used:
            return self._solved * -scale
        a = self._root.dot(seen[:, 0])
        inner = self._changes.dot(a)
        inner -= seen[:, 1]
        inner *= scale
        inner += self._own * a
        self._by_pair[:, 0] = inner.dot(self._root)
        a *= -scale
        self._by_pair[:, 1] = a
        if self._is_few:
            found = self._solved.numpy() * -scale
            found -= self._flat.dot(self._places)
            return torch.from_numpy(found)
        return torch.addmv(self._solved, self._across, self._weights, beta=-scale, alpha=-1.0)

    def _flush(self) -> None:
        """Take in the last step: its gradient is solved for once, here, and only if another step is wanted."""
        if self._step is None:
            return
        slot = self._taken % len(self._own)
        self._used = max(self._used, slot + 1)
        if self._used > self._width:
            self._look_at(self._used)
        solved, m, pair = self._inverse(self._gradient), self._width, slice(2 * slot, 2 * slot + 2)
        new = self._places[pair]
        new[0] = self._step.numpy()
        np.subtract(solved.numpy(), self._solved.numpy(), out=new[1])
        self._step, self._solved = None, solved
        # with the change of the gradient, from those before it: a pass over the pairs less
        if self._is_few:
            self._seen[slot] = new.dot(self._before.numpy())
            seen = self._places.dot(self._gradient.numpy()).reshape(-1, 2)
            products, self._seen = seen - self._seen, seen
        else:
            self._seen[slot] = torch.mv(self._rows[pair], self._before).numpy()
            products = -self._seen
            self._seen[:m] = torch.mv(self._head, self._gradient, out=self._products).numpy().reshape(-1, 2)
            products += self._seen
        curvature, size = products[slot].tolist()
        if self._taken >= len(self._own):
            # without the oldest pair R^-1 has one row and one column less, wherever they are
            self._root[slot] = self._root[:, slot] = self._changes[slot] = self._changes[:, slot] = self._own[slot] = 0
        if not (size > 0.0 and curvature > _CURVED * self._scale * size):
            new[:] = 0.0
            self._seen[slot] = 0.0
            return
        self._scale = curvature / size if self._scaled else 1.0
        self._root[:, slot] = self._root.dot(products[:, 0]) / -curvature
        self._root[slot, slot], self._own[slot] = 1.0 / curvature, curvature
        self._changes[:, slot] = self._changes[slot] = products[:, 1]
        self._taken += 1


class Reached(NamedTuple):
    """Where a step led.

    Attributes:
        theta: The point, ``(p,)``.
        at: The state there.
        evaluations: Since the start.
    """

    theta: Tensor
    at: Evaluation
    evaluations: int


def descend(
    evaluate: Callable[[Tensor], Evaluation], theta: Tensor, at: Evaluation, pairs: InversePairs, growth: float = 4.0
) -> Iterator[Reached]:
    """Yield point after point of L-BFGS, as long as steps lower the objective.

    Args:
        evaluate: From ``(p,)`` to the state there; where the value has not fallen, nothing else of it is looked at.
        theta: Start, ``(p,)``.
        at: The state at the start.
        pairs: Of an initial inverse Hessian.
        growth: Factor from the length of the last step to the first length that is tried, at most the whole: after a
            short step the next one is hardly ever whole.
    """
    evaluations, length, lowest = 0, 1.0, at.value
    while is_finite(at):
        direction, lowest = Direction.of(pairs.direction(), at.gradient), min(lowest, at.value)
        found = _search(evaluate, theta, at, direction, min(1.0, growth * length), lowest)
        if found is None and not pairs.number:
            return
        if found is None:
            pairs.clear()
            evaluations, length = evaluations + TRIALS, 1.0
            continue
        reached, at, trials, length = found
        pairs.move(reached - theta, at.gradient)
        theta, evaluations = reached, evaluations + trials
        yield Reached(theta, at, evaluations)


def _search(
    evaluate: Callable[[Tensor], Evaluation],
    theta: Tensor,
    at: Evaluation,
    direction: Direction,
    length: float,
    lowest: float,
) -> tuple[Tensor, Evaluation, int, float] | None:
    """Shorten a step until the objective falls enough: new point, state there, trials and length, or None."""
    # rounding may raise the value, but never by more above the lowest of all points: rises do not add up
    slope = -direction.decrement_squared
    if not slope < 0.0:
        return None
    for trial in range(1, TRIALS + 1):
        reached = torch.add(theta, direction.step, alpha=length)
        new = evaluate(reached)
        if new.value <= at.value + _SUFFICIENT * length * slope and is_finite(new):
            return reached, new, trial, length
        finite, rounding = math.isfinite(new.value), 64.0 * _rounding(theta, at, new) * max(abs(at.value), 1.0)
        if finite and -slope * length <= rounding and new.value <= lowest + rounding:
            # the value can no longer judge, its slope can: the approximate Wolfe condition (Hager and Zhang 2005)
            end = float(torch.dot(new.gradient, direction.step))
            if end <= (2.0 * _SUFFICIENT - 1.0) * slope:
                return reached, new, trial, length
            length *= 0.5
            continue
        # the minimum of the parabola through value, slope and new value, kept within bounds
        excess = new.value - at.value - length * slope
        length *= max(0.1, min(0.5, -slope * length / (2 * excess))) if finite and excess > 0 else 0.1
    return None


def _rounding(theta: Tensor, *points: Evaluation) -> float:
    """Return the relative rounding of values: that of the parameters' type, or what an evaluation says."""
    return max(float(torch.finfo(theta.dtype).eps), *(getattr(at, "rounding", 0.0) for at in points))


class Descent(NamedTuple):
    """Where a run ended.

    Attributes:
        theta: The point, ``(P,)``.
        value: The function there.
        gradient: Its gradient, ``(P,)``.
        evaluations: How often the function was evaluated.
        iterations: Steps that were taken.
    """

    theta: Tensor
    value: float
    gradient: Tensor
    evaluations: int
    iterations: int


class _Point:
    """A value, and its gradient when that is asked for: trial points that are not taken cost no gradient."""

    hessian = None

    def __init__(self, value: Tensor, gradient: Callable[[], Tensor]) -> None:
        self.value, self._gradient = float(value), gradient

    @cached_property
    def gradient(self) -> Tensor:
        return self._gradient()

    @cached_property
    def norm(self) -> float:
        return float(self.gradient.abs().max())


def lbfgs(
    function: Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]],
    theta: Tensor,
    inverse: Inverse,
    *,
    max_iter: int,
    tol: float = 0.0,
    memory: int = 20,
    growth: float = 4.0,
) -> Descent:
    """Minimize a function whose gradient costs little beside a factorization of its Hessian.

    Args:
        function: From ``(P,)`` to the value and a function that returns the gradient, which is called at points that
            the line search accepts.
        theta: Start, ``(P,)``.
        inverse: Product with a positive definite approximation of the inverse Hessian.
        max_iter: Largest number of steps.
        tol: The run ends with a step that lowers the function by less.
        memory: Number of pairs of steps and changes of the gradient that are held.
        growth: Factor from the length of the last step to the first length that is tried.

    Returns:
        The last point; a function that is not finite there ends the run at the start.

    >>> import torch
    >>> found = lbfgs(lambda v: ((v * v).sum(), lambda: 2 * v), torch.ones(2), lambda g: g / 2, max_iter=5)
    >>> found.theta
    tensor([0., 0.])
    """

    def evaluate(at: Tensor) -> Evaluation:
        return _Point(*function(at))

    at, evaluations, iterations = evaluate(theta), 0, 0
    if max_iter and is_finite(at):
        pairs = InversePairs(inverse, at.gradient, memory=memory)
        for reached in descend(evaluate, theta, at, pairs, growth):
            fall = at.value - reached.at.value
            theta, at, evaluations = reached
            iterations += 1
            if fall <= tol or iterations == max_iter:
                break
    return Descent(theta, at.value, at.gradient, 1 + evaluations, iterations)
