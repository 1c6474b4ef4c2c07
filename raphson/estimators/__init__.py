"""Estimators in scikit-learn's style: thin compositions of likelihood, curvature, solver and inference."""

from raphson.estimators._multinomial import MultinomialLogisticRegression as MultinomialLogisticRegression
from raphson.estimators._vector_glm import VectorGLM as VectorGLM
from raphson.estimators.networks._bayesian_mlp import BayesianMLP as BayesianMLP
