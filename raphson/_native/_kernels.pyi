"""The compiled module; ``module.c`` checks every argument: ValueError where sizes or types do not fit together.

Arrays are ``Memory``; a *model* is what ``LinearModel.arguments`` gives.
"""

from raphson._native._module import Memory

openmp: str

def evaluate(
    model: tuple[object, ...],
    threads: int,
    coef: Memory,
    linear: Memory,
    reference: bool,
    units: Memory,
    gradient: Memory,
    p: Memory | None,
    /,
) -> tuple[float, float]: ...
def hessian(
    model: tuple[object, ...], threads: int, p: Memory, k: Memory, l: Memory, blocks: bool, out: Memory, /
) -> None: ...
def product(
    model: tuple[object, ...], threads: int, x: Memory | None, p: Memory, v: Memory, out: Memory, /
) -> None: ...
def adjoint(model: tuple[object, ...], threads: int, t: Memory, out: Memory, /) -> None: ...
def column_sums(
    x: Memory, n: int, d: int, stride: int, codes: Memory | None, sums: Memory, squares: Memory, threads: int, /
) -> None: ...
def sparse(
    starts: Memory, columns: Memory, values: Memory, dense: Memory, width: int, out: Memory, threads: int, /
) -> None: ...
def use_vectors(bits: int, /) -> int: ...
