"""The compiled module; ``module.c`` checks every argument: ValueError where sizes or types do not fit together.

Arrays are ``Memory``; a *model* is what ``LinearModel.arguments`` gives.
"""

from raphson._native._module import Memory

openmp: str

def sums(
    model: tuple[object, ...],
    threads: int,
    out: Memory,
    coef: Memory | None,
    p: Memory | None,
    columns: Memory | None,
    linear: Memory | None,
    units: Memory | None,
    reference: bool,
    kept: Memory | None,
    copy: Memory | None,
    /,
) -> tuple[float, float]: ...
def hessian(model: tuple[object, ...], threads: int, p: Memory, own: bool, out: Memory, /) -> None: ...
def sparse(
    starts: Memory, columns: Memory, values: Memory, width: int, dense: Memory, out: Memory, threads: int, /
) -> None: ...
def pairs(
    pairs: tuple[object, ...],
    step: Memory,
    gradient: Memory,
    before: Memory,
    solved: Memory,
    solved_before: Memory,
    out: Memory,
    /,
) -> None: ...
def descend(
    model: tuple[object, ...],
    threads: int,
    pairs: tuple[object, ...],
    linear: Memory,
    units: Memory,
    reference: bool,
    diagonal: Memory,
    means: Memory | None,
    room: Memory,
    theta: Memory,
    gradient: Memory,
    before: Memory | None,
    reached: Memory,
    reached_gradient: Memory,
    turns: Memory | None,
    copy: Memory | None,
    path: Memory,
    value: float,
    lowest: float,
    length: float,
    growth: float,
    tol: float,
    rounding: float,
    /,
) -> tuple[int, int, float]: ...
def moments(
    n: int,
    d: int,
    stride: int,
    x: Memory,
    codes: Memory | None,
    order: Memory | None,
    classes: int,
    sums: Memory,
    squares: Memory,
    threads: int,
    /,
) -> None: ...
def use_vectors(bits: int, /) -> int: ...
