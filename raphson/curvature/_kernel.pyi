"""Compiled sums; addresses are those of contiguous tensors. Each function takes the model's eight arguments first."""

def evaluate(
    n: int,
    d: int,
    c: int,
    x: int,
    weights: int | None,
    penalty_outputs: int,
    penalty_columns: int,
    scale: float,
    coef: int,
    linear: int,
    reference: bool,
    gradient: int,
    p: int,
    /,
) -> float: ...
def hessian(
    n: int,
    d: int,
    c: int,
    x: int,
    weights: int | None,
    penalty_outputs: int,
    penalty_columns: int,
    scale: float,
    p: int,
    k: int,
    l: int,  # noqa: E741
    q: int,
    blocks: bool,
    single: bool,
    out: int,
    /,
) -> None: ...
def product(
    n: int,
    d: int,
    c: int,
    x: int,
    weights: int | None,
    penalty_outputs: int,
    penalty_columns: int,
    scale: float,
    p: int,
    v: int,
    single: bool,
    out: int,
    /,
) -> None: ...
def use_vectors(bits: int, /) -> bool: ...
