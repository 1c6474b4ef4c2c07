"""Gradients, Hessians and their structured forms: what likelihoods and models make together."""

from raphson.curvature.linear._objective import Evaluation as Evaluation
from raphson.curvature.linear._objective import LinearObjective as LinearObjective
from raphson.curvature.linear._precondition import class_block_cost as class_block_cost
from raphson.curvature.linear._precondition import class_block_inverse as class_block_inverse
from raphson.curvature.network._ekfac import ekfac as ekfac
from raphson.curvature.network._example_gradients import example_gradient_norms as example_gradient_norms
from raphson.curvature.network._example_gradients import example_gradients as example_gradients
from raphson.curvature.network._example_gradients import iterate_example_gradients as iterate_example_gradients
from raphson.curvature.network._ggn import fisher as fisher
from raphson.curvature.network._ggn import ggn as ggn
from raphson.curvature.network._hessian import hessian as hessian
from raphson.curvature.network._jacobian import Jacobian as Jacobian
from raphson.curvature.network._jacobian import input_jacobian as input_jacobian
from raphson.curvature.network._jacobian import jacobian as jacobian
from raphson.curvature.network._jacobian import second_derivatives as second_derivatives
from raphson.curvature.network._kfac import kfac as kfac
from raphson.curvature.network._layer_operator import LayerOperator as LayerOperator
from raphson.curvature.network._layer_operator import LayerReport as LayerReport
from raphson.curvature.network._objective import Objective as Objective
