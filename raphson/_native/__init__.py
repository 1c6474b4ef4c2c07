"""All compiled code and its one door: what was built, which instructions it runs, on how many threads.

The C code is built at installation where there is a compiler, and is optional: whoever calls asks ``is_available``
first and else goes through PyTorch. Its vectors are the longest that the processor has. Its threads are PyTorch's own
(OpenMP's pool, looked up in the running process, so that it does not matter whether GCC or clang built the module), as
many as ``torch.get_num_threads()`` at most. Where there is no such pool, off Linux, it runs on one thread, and is not
available for work that PyTorch would share out.

The environment variable ``RAPHSON_NATIVE`` decides, read when this package is first imported: ``0`` leaves the compiled
code aside, ``1`` makes its absence an ImportError. ``show_config`` says what is there.
"""

from raphson._native._config import Config as Config
from raphson._native._config import show_config as show_config
from raphson._native._linear import Evaluator as Evaluator
from raphson._native._linear import LinearModel as LinearModel
from raphson._native._linear import Point as Point
from raphson._native._linear import adjoint as adjoint
from raphson._native._linear import hessian as hessian
from raphson._native._linear import product as product
from raphson._native._module import is_available as is_available
from raphson._native._moments import class_sums as class_sums
from raphson._native._pairs import CURVED as CURVED
from raphson._native._pairs import Descent as Descent
from raphson._native._pairs import Pairs as Pairs
from raphson._native._pairs import Stepped as Stepped
from raphson._native._pairs import has_pairs as has_pairs
from raphson._native._sparse import UNIT as UNIT
from raphson._native._sparse import sparse_product as sparse_product
