"""One linear model for every likelihood: its objective, Hessian and preconditioner in closed form."""

from raphson.linear._block_jacobi import block_jacobi_cost as block_jacobi_cost
from raphson.linear._block_jacobi import block_jacobi_inverse as block_jacobi_inverse
from raphson.linear._bounds import gram_matrix as gram_matrix
from raphson.linear._bounds import lipschitz_bound as lipschitz_bound
from raphson.linear._bounds import row_lipschitz_bound as row_lipschitz_bound
from raphson.linear._compiled import has_compiled_hessians as has_compiled_hessians
from raphson.linear._compiled import is_large_sparse as is_large_sparse
from raphson.linear._compiled import suits_compiled as suits_compiled
from raphson.linear._dual import DualClasses as DualClasses
from raphson.linear._dual import DualPoint as DualPoint
from raphson.linear._dual import has_dual as has_dual
from raphson.linear._dual import start_condition as start_condition
from raphson.linear._hessian import Evaluation as Evaluation
from raphson.linear._hessian import LinearHessian as LinearHessian
from raphson.linear._objective import LinearObjective as LinearObjective
from raphson.linear._output_map import Group as Group
from raphson.linear._output_map import OutputMap as OutputMap
from raphson.linear._output_map import as_list as as_list
from raphson.linear._output_map import is_unit as is_unit
from raphson.linear._output_map import matrix_rank as matrix_rank
from raphson.linear._row_space import RowSpace as RowSpace
from raphson.linear._row_space import has_row_space as has_row_space
from raphson.linear._row_space import row_space_cost as row_space_cost
from raphson.linear._scores import group_scores as group_scores
from raphson.linear._scores import score_gram as score_gram
from raphson.linear._target_term import TargetSums as TargetSums
