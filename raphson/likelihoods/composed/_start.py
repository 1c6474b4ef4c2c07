r"""Where to start a fit: the best outputs common to all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from raphson.likelihoods._likelihood import Likelihood


def fit_constant_outputs(likelihood: Likelihood, f: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return outputs ``(C,)`` common to all rows that fit no worse, by Newton steps on absolute eigenvalues."""
    w = torch.ones(len(y), dtype=f.dtype, device=f.device) if weights is None else weights.to(f)
    w = w / w.sum()

    def value(f: Tensor) -> Tensor:
        return w @ likelihood.nll(f.expand(len(y), -1), y)

    best = value(f)
    for _ in range(50):
        at = likelihood.derivatives(f.expand(len(y), -1), y)
        assert at.hessian is not None
        gradient, hessian = w @ at.gradient, torch.tensordot(w, at.hessian.to_dense(), 1)
        if not bool(torch.isfinite(gradient).all() & torch.isfinite(hessian).all()):
            break
        curvature, vectors = torch.linalg.eigh(hessian)
        curvature = curvature.abs().clamp_min(1e-8 * max(1.0, float(curvature.abs().max())))
        step = vectors @ (vectors.mT @ gradient / curvature)
        step = step * min(1.0, 5.0 * (1.0 + float(f.abs().max())) / max(float(step.abs().max()), 1e-300))
        shorter = next((2.0**-i for i in range(30) if bool(value(f - 2.0**-i * step) < best)), None)
        if shorter is None:
            break
        f = f - shorter * step
        previous, best = best, value(f)
        if bool(previous - best <= 1e-10 * (1 + best.abs())):
            break
    return f
