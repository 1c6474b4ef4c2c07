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
    from .glm import MultinomialLogisticRegression as MultinomialLogisticRegression
    from .likelihoods import Bernoulli as Bernoulli
    from .likelihoods import Categorical as Categorical
    from .likelihoods import Derivatives as Derivatives
    from .likelihoods import Gaussian as Gaussian
    from .likelihoods import Likelihood as Likelihood
    from .likelihoods import ScaledLikelihood as ScaledLikelihood
    from .likelihoods import as_likelihood as as_likelihood
    from .linalg import BlockDiagonal as BlockDiagonal
    from .linalg import Dense as Dense
    from .linalg import Diagonal as Diagonal
    from .linalg import DiagonalPlusLowRank as DiagonalPlusLowRank
    from .linalg import Implicit as Implicit
    from .linalg import Kronecker as Kronecker
    from .linalg import KroneckerEigen as KroneckerEigen
    from .linalg import LinearOperator as LinearOperator
    from .linalg import Matrix as Matrix
    from .linalg import Scaled as Scaled
    from .linalg import Sum as Sum
    from .linalg import SymmetricOperator as SymmetricOperator
    from .linalg import cg as cg
    from .linalg import lanczos as lanczos
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
    "glm": ("MultinomialLogisticRegression",),
    "likelihoods": (
        "Bernoulli",
        "Categorical",
        "Derivatives",
        "Gaussian",
        "Likelihood",
        "ScaledLikelihood",
        "as_likelihood",
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
