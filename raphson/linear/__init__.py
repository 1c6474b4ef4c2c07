"""One linear model for every likelihood: its objective, Hessian and preconditioner in closed form."""

from raphson.linear._block_jacobi import class_block_cost as class_block_cost
from raphson.linear._block_jacobi import class_block_inverse as class_block_inverse
from raphson.linear._constrained import ConstrainedObjective as ConstrainedObjective
from raphson.linear._objective import Evaluation as Evaluation
from raphson.linear._objective import LinearObjective as LinearObjective
from raphson.linear._output_map import Constraints as Constraints
from raphson.linear._output_map import Group as Group
from raphson.linear._output_map import group_columns as group_columns
from raphson.linear._output_map import matrix_rank as matrix_rank
from raphson.linear._output_map import solved as solved
