"""Gradients, Hessians and their structured forms: what likelihoods and models make together."""

from raphson.curvature._ekfac import ekfac as ekfac
from raphson.curvature._example_gradients import example_gradient_norms as example_gradient_norms
from raphson.curvature._example_gradients import example_gradients as example_gradients
from raphson.curvature._example_gradients import iterate_example_gradients as iterate_example_gradients
from raphson.curvature._ggn import fisher as fisher
from raphson.curvature._ggn import ggn as ggn
from raphson.curvature._hessian import hessian as hessian
from raphson.curvature._jacobian import Jacobian as Jacobian
from raphson.curvature._jacobian import input_jacobian as input_jacobian
from raphson.curvature._jacobian import jacobian as jacobian
from raphson.curvature._jacobian import second_derivatives as second_derivatives
from raphson.curvature._kfac import kfac as kfac
from raphson.curvature._layer_operator import LayerOperator as LayerOperator
from raphson.curvature._layer_operator import LayerReport as LayerReport
from raphson.curvature._linear import Evaluation as Evaluation
from raphson.curvature._linear import LinearObjective as LinearObjective
from raphson.curvature._objective import Objective as Objective
from raphson.curvature._precondition import class_block_cost as class_block_cost
from raphson.curvature._precondition import class_block_inverse as class_block_inverse
