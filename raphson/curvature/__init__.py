"""Gradients, Hessians and their structured forms: what likelihoods and models make together."""

from raphson.curvature._linear import Evaluation as Evaluation
from raphson.curvature._linear import LinearObjective as LinearObjective
from raphson.curvature._precondition import kronecker_preconditioner as kronecker_preconditioner
