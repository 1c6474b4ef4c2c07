"""Linear operators with structure: products, solves, determinants, spectra and roots without the dense matrix."""

from ._basic import Dense as Dense
from ._basic import Diagonal as Diagonal
from ._basic import Scaled as Scaled
from ._cholesky import cholesky as cholesky
from ._cholesky import cholesky_solve as cholesky_solve
from ._cholesky import solve_symmetric as solve_symmetric
from ._low_rank import DiagonalPlusLowRank as DiagonalPlusLowRank
from ._matrix import Matrix as Matrix
from ._matrix import ScaledColumns as ScaledColumns
from ._matrix import SideBySide as SideBySide
from ._operator import Eigh as Eigh
from ._operator import LinearOperator as LinearOperator
from ._operator import SlogDet as SlogDet
from ._operator import SymmetricOperator as SymmetricOperator
from ._size import MAX_DENSE_ELEMENTS as MAX_DENSE_ELEMENTS
