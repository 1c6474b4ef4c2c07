"""Estimators in scikit-learn's style: thin compositions of likelihood, curvature, solver and inference."""

from raphson.glm._multinomial import MultinomialLogisticRegression as MultinomialLogisticRegression
from raphson.glm._vector import VectorGLM as VectorGLM
