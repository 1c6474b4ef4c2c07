r"""Examples that are weighted by their own variance, so that a scale that grew does not hide them from the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from raphson.likelihoods import Likelihood, from_torch
from raphson.optim._options import not_negative


def beta_nll(
    model: nn.Module, likelihood: Likelihood | nn.Module, x: Any, y: Tensor, beta: float = 1.0
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    r"""Return a batch for ``KFAC.step`` whose examples are weighted by a power of their variance under the model.

    .. math:: \frac{\sum_n w_n\, \ell(f_n, y_n)}{\sum_n w_n}, \qquad w_n = \mathrm{Var}[y \mid f_n]^{\beta}

    with weights that are constants of a step, as in the :math:`\beta`-NLL of Seitzer et al. In a likelihood with mean
    :math:`\mu` and scale :math:`s` the gradient in the mean is :math:`(\mu - y) / s^2`: examples that the network
    explains by a large scale hardly count, and their mean is never fitted. With :math:`\beta = 1` they count as in
    least squares, with 0 by the likelihood alone; :math:`1/2` is the authors' choice. Curvature has the same weights.
    What is found is where the weighted gradients vanish, which is no minimum of the likelihood, unless :math:`\beta`
    is 0 or the network can fit every example.

    Args:
        model: The module that the optimizer has.
        likelihood: Its likelihood.
        x: Inputs: a tensor, a tuple of positional or a dictionary of named arguments.
        y: Targets.
        beta: The power :math:`\beta`. The variances of several responses or positions of an example are averaged
            after it.

    Returns:
        A closure for ``step``, which runs the model and returns outputs, targets and weights ``(N,)``.

    Raises:
        InputError: ``beta`` is negative or not finite.

    References:
        M. Seitzer, A. Tavakoli, D. Antic and G. Martius (2022), On the pitfalls of heteroscedastic uncertainty
        estimation with probabilistic neural networks, ICLR.

    Examples:
        >>> import torch
        >>> import raphson as rp
        >>> x, y = torch.linspace(-1, 1, 8)[:, None], torch.linspace(-1, 1, 8)[:, None].sin()
        >>> model, likelihood = torch.nn.Linear(1, 2), rp.HeteroscedasticGaussian("mean_log_scale")
        >>> opt = rp.optim.KFAC(model, likelihood, weight_decay=0.01, step_size="quadratic")
        >>> for _ in range(20):
        ...     loss = opt.step(rp.optim.beta_nll(model, likelihood, x, y))
        >>> f, _, weight = rp.optim.beta_nll(model, likelihood, x, y)()
        >>> bool(torch.allclose(weight, torch.exp(2 * f[:, 1])))
        True
    """  # noqa: DOC502
    not_negative("beta", beta)
    known = from_torch(likelihood).likelihood

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        f = model(**x) if isinstance(x, Mapping) else model(*x) if isinstance(x, tuple) else model(x)
        power = known.variance(f.detach()).pow(beta)
        return f, y, power.reshape(len(power), -1).mean(1)

    return batch
