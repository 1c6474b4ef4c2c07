"""Networks as functions of their parameters: parameter spaces, Jacobian products, linearizations."""

from ._chain import Chain as Chain
from ._chain import Evaluated as Evaluated
from ._chain import Link as Link
from ._chain import find_chain as find_chain
from ._chain import read_chain as read_chain
from ._chain_products import ChainProducts as ChainProducts
from ._chain_products import in_parts as in_parts
from ._checks import Traits as Traits
from ._checks import probe as probe
from ._checks import refuse_training_mode as refuse_training_mode
from ._differentiable import differentiable_kernels as differentiable_kernels
from ._function import Model as Model
from ._layer_jacobian import LayerJacobian as LayerJacobian
from ._linearize import GradientGraph as GradientGraph
from ._linearize import Linearization as Linearization
from ._linearize import Parts as Parts
from ._linearize import map_parts as map_parts
from ._linearize import map_rows as map_rows
from ._linearize import rewritten as rewritten
from ._per_example import example_jacobian as example_jacobian
from ._per_example import parted as parted
from ._per_example import select as select
from ._space import ParameterSpace as ParameterSpace
