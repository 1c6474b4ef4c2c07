"""Gradients, Hessians and their structured forms: what likelihoods and models make together."""

from raphson.curvature._linear import Evaluation as Evaluation
from raphson.curvature._linear import LinearObjective as LinearObjective
from raphson.curvature._precondition import class_block_cost as class_block_cost
from raphson.curvature._precondition import class_block_inverse as class_block_inverse
