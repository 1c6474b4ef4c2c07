"""Networks: an objective, and its curvature by layers and automatic differentiation."""

from raphson.network._module import Model as Model
from raphson.network._objective import Objective as Objective
from raphson.network.curvature._ekfac import ekfac as ekfac
from raphson.network.curvature._example_gradients import example_gradient_norms as example_gradient_norms
from raphson.network.curvature._example_gradients import example_gradients as example_gradients
from raphson.network.curvature._example_gradients import iterate_example_gradients as iterate_example_gradients
from raphson.network.curvature._ggn import fisher as fisher
from raphson.network.curvature._ggn import ggn as ggn
from raphson.network.curvature._hessian import hessian as hessian
from raphson.network.curvature._jacobian import Jacobian as Jacobian
from raphson.network.curvature._jacobian import input_jacobian as input_jacobian
from raphson.network.curvature._jacobian import jacobian as jacobian
from raphson.network.curvature._jacobian import second_derivatives as second_derivatives
from raphson.network.curvature._kfac import kfac as kfac
from raphson.network.curvature._output_covariance import OutputCovariance as OutputCovariance
from raphson.network.curvature._output_covariance import squared_roots as squared_roots
from raphson.network.curvature.factors._factor_sums import added_factors as added_factors
from raphson.network.curvature.factors._factor_sums import multiplied_factors as multiplied_factors
from raphson.network.curvature.factors._layer_operator import KnownOrder as KnownOrder
from raphson.network.curvature.factors._layer_operator import LayerOperator as LayerOperator
from raphson.network.curvature.factors._layer_operator import LayerReport as LayerReport
