"""Design matrices in blocks and batches of examples: the single place where sums over data happen."""

from raphson.data._batches import Batch as Batch
from raphson.data._batches import Batches as Batches
from raphson.data._batches import Inputs as Inputs
from raphson.data._batches import checked_batch as checked_batch
from raphson.data._batches import checked_weights as checked_weights
from raphson.data._batches import take as take
from raphson.data._batches import tree_map as tree_map
from raphson.data._batches import warn_of_indices as warn_of_indices
from raphson.data._column_moments import ColumnSums as ColumnSums
from raphson.data._column_moments import fused_sums as fused_sums
from raphson.data._dense_design import DenseBlock as DenseBlock
from raphson.data._dense_design import DenseDesign as DenseDesign
from raphson.data._dense_design import RawBlock as RawBlock
from raphson.data._design import Block as Block
from raphson.data._design import Design as Design
from raphson.data._memory import new_table as new_table
from raphson.data._sparse_design import SparseBlock as SparseBlock
from raphson.data._sparse_design import SparseDesign as SparseDesign
from raphson.data._sparse_design import centered_entries as centered_entries
from raphson.data._sparse_design import full_columns as full_columns
from raphson.data._sparse_product import SparseRows as SparseRows
from raphson.data._sparse_product import filled as filled
from raphson.data._sparse_product import row_products as row_products
