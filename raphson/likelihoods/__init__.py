"""Likelihoods: value, gradient, Hessian and Fisher information in output space."""

from ._bernoulli import Bernoulli as Bernoulli
from ._categorical import Categorical as Categorical
from ._gaussian import Gaussian as Gaussian
from ._likelihood import Derivatives as Derivatives
from ._likelihood import Likelihood as Likelihood
from ._resolve import Resolved as Resolved
from ._resolve import as_likelihood as as_likelihood
from ._resolve import resolve_loss as resolve_loss
from ._scaled import ScaledLikelihood as ScaledLikelihood
