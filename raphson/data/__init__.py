"""Design matrices in blocks and batches of examples: the single place where sums over data happen."""

from ._batches import Batch as Batch
from ._batches import Batches as Batches
from ._batches import Inputs as Inputs
from ._batches import take as take
from ._batches import tree_map as tree_map
from ._design import Block as Block
from ._design import DenseBlock as DenseBlock
from ._design import DenseDesign as DenseDesign
from ._design import Design as Design
from ._design import RawBlock as RawBlock
from ._design import SparseBlock as SparseBlock
from ._design import SparseDesign as SparseDesign
