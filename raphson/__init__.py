"""Gradients, Jacobians and Hessians of likelihood losses with their structure.

``import raphson`` is light: a name brings in its module, and PyTorch with it, on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._errors import CollinearityWarning as CollinearityWarning
    from ._errors import IndefiniteError as IndefiniteError
    from ._errors import InputError as InputError
    from ._errors import NotEstimableError as NotEstimableError
    from ._errors import RaphsonError as RaphsonError
    from ._errors import RaphsonWarning as RaphsonWarning
    from ._errors import SeparationWarning as SeparationWarning
    from ._errors import TooLargeError as TooLargeError
    from ._native import show_config as show_config
    from .estimators import MultinomialLogisticRegression as MultinomialLogisticRegression
    from .estimators import VectorGLM as VectorGLM
    from .explain import Explanation as Explanation
    from .explain import Shapes as Shapes
    from .explain import explain as explain
    from .explain import shapes as shapes
    from .likelihoods import AutomaticLikelihood as AutomaticLikelihood
    from .likelihoods import Bernoulli as Bernoulli
    from .likelihoods import Beta as Beta
    from .likelihoods import Binomial as Binomial
    from .likelihoods import Categorical as Categorical
    from .likelihoods import Definiteness as Definiteness
    from .likelihoods import Derivatives as Derivatives
    from .likelihoods import Gamma as Gamma
    from .likelihoods import Gaussian as Gaussian
    from .likelihoods import HeteroscedasticGaussian as HeteroscedasticGaussian
    from .likelihoods import InverseGaussian as InverseGaussian
    from .likelihoods import Likelihood as Likelihood
    from .likelihoods import Link as Link
    from .likelihoods import Linked as Linked
    from .likelihoods import Multinomial as Multinomial
    from .likelihoods import MultivariateGaussian as MultivariateGaussian
    from .likelihoods import NegativeBinomial as NegativeBinomial
    from .likelihoods import Ordinal as Ordinal
    from .likelihoods import OutputInertia as OutputInertia
    from .likelihoods import Poisson as Poisson
    from .likelihoods import ScaledLikelihood as ScaledLikelihood
    from .likelihoods import StudentT as StudentT
    from .likelihoods import Weibull as Weibull
    from .likelihoods import as_likelihood as as_likelihood
    from .likelihoods import average_hessian as average_hessian
    from .likelihoods import definiteness_at as definiteness_at
    from .linalg import BlockDiagonal as BlockDiagonal
    from .linalg import Dense as Dense
    from .linalg import Diagonal as Diagonal
    from .linalg import DiagonalPlusLowRank as DiagonalPlusLowRank
    from .linalg import Implicit as Implicit
    from .linalg import Kronecker as Kronecker
    from .linalg import KroneckerEigen as KroneckerEigen
    from .linalg import LinearOperator as LinearOperator
    from .linalg import Matrix as Matrix
    from .linalg import Permuted as Permuted
    from .linalg import Scaled as Scaled
    from .linalg import Sum as Sum
    from .linalg import SymmetricOperator as SymmetricOperator
    from .linalg import cg as cg
    from .linalg import lanczos as lanczos
    from .network import Jacobian as Jacobian
    from .network import LayerOperator as LayerOperator
    from .network import LayerReport as LayerReport
    from .network import Objective as Objective
    from .network import ekfac as ekfac
    from .network import example_gradient_norms as example_gradient_norms
    from .network import example_gradients as example_gradients
    from .network import fisher as fisher
    from .network import ggn as ggn
    from .network import hessian as hessian
    from .network import input_jacobian as input_jacobian
    from .network import iterate_example_gradients as iterate_example_gradients
    from .network import jacobian as jacobian
    from .network import kfac as kfac
    from .network import second_derivatives as second_derivatives
    from .saved import Saved as Saved
    from .saved import load as load
    from .saved import save as save
    from .solve import Solution as Solution
    from .solve import Status as Status
    from .table import Design as Design
    from .table import read_table as read_table

_ROOMS = {
    "_errors": (
        "CollinearityWarning",
        "IndefiniteError",
        "InputError",
        "NotEstimableError",
        "RaphsonError",
        "RaphsonWarning",
        "SeparationWarning",
        "TooLargeError",
    ),
    "_native": ("show_config",),
    "network": (
        "Jacobian",
        "LayerOperator",
        "LayerReport",
        "Objective",
        "ekfac",
        "example_gradient_norms",
        "example_gradients",
        "fisher",
        "ggn",
        "hessian",
        "input_jacobian",
        "iterate_example_gradients",
        "jacobian",
        "kfac",
        "second_derivatives",
    ),
    "explain": (
        "Explanation",
        "Shapes",
        "explain",
        "shapes",
    ),
    "estimators": (
        "MultinomialLogisticRegression",
        "VectorGLM",
    ),
    "likelihoods": (
        "AutomaticLikelihood",
        "Bernoulli",
        "Beta",
        "Binomial",
        "Categorical",
        "Definiteness",
        "Derivatives",
        "Gamma",
        "Gaussian",
        "HeteroscedasticGaussian",
        "InverseGaussian",
        "Likelihood",
        "Link",
        "Linked",
        "Multinomial",
        "MultivariateGaussian",
        "NegativeBinomial",
        "Ordinal",
        "OutputInertia",
        "Poisson",
        "ScaledLikelihood",
        "StudentT",
        "Weibull",
        "as_likelihood",
        "average_hessian",
        "definiteness_at",
    ),
    "linalg": (
        "BlockDiagonal",
        "Dense",
        "Diagonal",
        "DiagonalPlusLowRank",
        "Implicit",
        "Kronecker",
        "KroneckerEigen",
        "LinearOperator",
        "Matrix",
        "Permuted",
        "Scaled",
        "Sum",
        "SymmetricOperator",
        "cg",
        "lanczos",
    ),
    "saved": (
        "Saved",
        "load",
        "save",
    ),
    "solve": (
        "Solution",
        "Status",
    ),
    "table": (
        "Design",
        "read_table",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raphson' has no attribute '{name}'")
    value = getattr(import_module(f"raphson.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
