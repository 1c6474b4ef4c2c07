r"""The inverse Hessian of limited-memory BFGS, from an initial one of the caller's.

That of :math:`s_i, y_i`, steps and changes of the gradient, and an initial one :math:`\gamma H_0` is

.. math:: H = \gamma H_0 + \begin{bmatrix} S & \gamma Z \end{bmatrix}
    \begin{bmatrix} R^{-\top} (D + \gamma Y^\top Z) R^{-1} & -R^{-\top} \\ -R^{-1} & 0 \end{bmatrix}
    \begin{bmatrix} S^\top \\ \gamma Z^\top \end{bmatrix}, \qquad Z = H_0 Y,

with R the upper triangle of :math:`S^\top Y` and D its diagonal (Byrd, Nocedal and Schnabel 1994, theorem 2.2).
Products with ten pairs are two passes over them: one compiled call where vectors stay in the cache. Larger ones are
multiplied by PyTorch, on all its threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raphson import _native
from raphson.solve._factor import Inverse


class InversePairs:
    """The inverse Hessian that an initial one and pairs of steps and changes of the gradient make.

    Args:
        inverse: About the product with the inverse Hessian, symmetric and positive definite.
        gradient: The gradient at the start, ``(p,)``, in the element type in which pairs are held.
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
        self._inverse = inverse
        self._gradient, self._before, self._solved = gradient, gradient, inverse(gradient)
        self._step: Tensor | None = None
        self._direction: Tensor | None = None
        tiny, p = torch.finfo(gradient.dtype).tiny, gradient.shape[0]
        scale = length or (1.0 / max(float(self._solved.norm()), tiny) if scaled else 1.0)
        known = gradient.is_cpu and gradient.dtype in (torch.float64, torch.float32) and _native.has_pairs(p, memory)
        self._pairs: _native.Pairs | _Pairs
        if known:
            self._pairs = _native.Pairs(p, memory, gradient.dtype, scaled=scaled, scale=scale)
        else:
            self._pairs = _Pairs(gradient, memory, scaled=scaled, scale=scale)

    def clear(self) -> None:
        """Forget the pairs."""
        self._pairs.clear()
        self._step = self._direction = None

    @property
    def number(self) -> int:
        """Number of pairs."""
        return self._pairs.number + (self._step is not None)

    def move(self, step: Tensor, gradient: Tensor) -> None:
        """Note a step ``(p,)`` that was taken, and the gradient where it led, in the element type of the first one."""
        self._take_in()
        dtype = self._gradient.dtype
        self._step, self._before, self._gradient = step.to(dtype), self._gradient, gradient.to(dtype)

    def direction(self) -> Tensor:
        """Return ``-H g`` at the gradient of now."""
        self._take_in()
        return self._solved * -self._pairs.scale if self._direction is None else self._direction

    def _take_in(self) -> None:
        """Take in the last step: its gradient is solved for once, here, and only if another step is wanted."""
        if self._step is not None:
            solved = self._inverse(self._gradient)
            self._direction = self._pairs.take(self._step, self._gradient, self._before, solved, self._solved)
            self._step, self._solved = None, solved


class _Pairs:
    """Pairs by PyTorch: see ``_native.Pairs``."""

    def __init__(self, gradient: Tensor, memory: int, *, scaled: bool, scale: float) -> None:
        self._rows = gradient.new_empty(2 * memory, gradient.shape[0])
        self._memory, self._scaled, self.scale, self._taken = memory, scaled, scale, 0
        # products of pairs with the gradient, R^-1, Y^T Z and D
        self._seen, self._root, self._changes = (np.zeros((memory, n)) for n in (2, memory, memory))
        self._own = np.zeros(memory)

    @property
    def number(self) -> int:
        return min(self._taken, self._memory)

    def clear(self) -> None:
        self._taken = 0
        for numbers in (self._seen, self._root, self._changes, self._own):
            numbers[:] = 0.0

    def take(self, step: Tensor, gradient: Tensor, before: Tensor, solved: Tensor, solved_before: Tensor) -> Tensor:
        slot, used = self._taken % self._memory, min(self._taken + 1, self._memory)
        new, rows, seen = self._rows[2 * slot : 2 * slot + 2], self._rows[: 2 * used], self._seen[:used]
        new[0] = step
        torch.sub(solved, solved_before, out=new[1])
        # with the change of the gradient: of the others from what was before it, a pass over the pairs less
        products = -seen
        seen[:] = torch.mv(rows, gradient).numpy(force=True).reshape(-1, 2)
        products += seen
        products[slot] = torch.mv(new, gradient - before).numpy(force=True)
        # without the oldest pair R^-1 has one row and one column less, wherever they are
        self._root[slot] = self._root[:, slot] = self._changes[slot] = self._changes[:, slot] = self._own[slot] = 0.0
        curvature, size = products[slot].tolist()
        root, changes, own = self._root[:used, :used], self._changes[:used, :used], self._own[:used]
        if size > 0.0 and curvature > _native.CURVED * self.scale * size:
            self.scale, self._taken = curvature / size if self._scaled else 1.0, self._taken + 1
            root[:, slot] = root.dot(products[:, 0]) / -curvature
            root[slot, slot], own[slot] = 1.0 / curvature, curvature
            changes[:, slot] = changes[slot] = products[:, 1]
        else:
            new[:] = 0.0
            seen[slot] = 0.0
        a = root.dot(seen[:, 0])
        inner = self.scale * (changes.dot(a) - seen[:, 1]) + own * a
        shares = torch.from_numpy(np.stack([inner.dot(root), -self.scale * a], 1).reshape(-1)).to(rows)
        return torch.addmv(solved, rows.mT, shares, beta=-self.scale, alpha=-1.0)
