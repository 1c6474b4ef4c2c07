"""Estimators in scikit-learn's style: thin compositions of likelihood, curvature, solver and inference."""

from typing import TYPE_CHECKING, Any

from raphson.estimators._multinomial import MultinomialLogisticRegression as MultinomialLogisticRegression
from raphson.estimators._vector_glm import VectorGLM as VectorGLM

if TYPE_CHECKING:
    from raphson.estimators.networks._bayesian_mlp import BayesianMLP as BayesianMLP


def __getattr__(name: str) -> Any:
    """Import the estimator of networks when it is asked for: a linear model does not wait for what it needs."""
    if name != "BayesianMLP":
        raise AttributeError(f"module 'raphson.estimators' has no attribute '{name}'")
    from raphson.estimators.networks._bayesian_mlp import BayesianMLP

    return BayesianMLP
