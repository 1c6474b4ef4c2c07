"""``rp.diagnose``: an operator, an objective or a fitted estimator to a ``Diagnosis``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from raphson._errors import InputError
from raphson.diagnose._diagnosis import Diagnosis, Direction, named
from raphson.diagnose._everywhere import Convexity, Everywhere, Subject, everywhere
from raphson.diagnose._extremes import extremes
from raphson.diagnose._inertia import Inertia, Scaled, best_inertia
from raphson.linalg import Diagonal, SymmetricOperator, rounding, trace

_DENSE = 1000
"""Parameters up to which ``"auto"`` forms the matrix: a second for its factors and eigenvectors."""

_DIRECTIONS = 50
"""Null directions that are worked out."""

Method = Literal["auto", "dense", "lanczos"]


def diagnose(
    subject: Any, *, method: Method = "auto", steps: int = 100, generator: torch.Generator | None = None
) -> Diagnosis:
    r"""Say what shape an objective has: convex or not, how well determined, how large a step.

    An operator is judged by itself. Of an objective of a network the Hessian is judged, with the Gauss-Newton matrix
    beside it; of a posterior or an estimated network that of its loss, without the prior; of a fitted linear model the
    Hessian of the penalized average loss in the coefficients of the table's columns, those of classes in coefficients
    that sum to zero (of any orthonormal basis), which do not depend on the reference. What structure proves at every
    point is said, too.

    * Where the matrix can be formed, signs of eigenvalues come from two factorizations :math:`L D L^\top`, of
      :math:`A \pm \tau I` with :math:`\tau` above their measured backward error, after a scaling by powers of two. An
      eigenvalue has a sign only where rounding cannot have changed it.
    * Elsewhere Lanczos from a random start gives the extreme eigenvalues, with a bound on what it may have missed that
      fails with probability 1e-6 (Kuczynski and Wozniakowski 1992). Negative curvature needs no such bound: the
      direction is there, and the curvature along it is computed by one more product.

    Args:
        subject: A symmetric operator ``(p, p)``, an objective, a posterior, or a fitted estimator.
        method: ``"dense"``, ``"lanczos"``, or ``"auto"``: dense up to 1000 parameters.
        steps: Products of a Lanczos run.
        generator: Source of randomness; None for a fixed one.

    Returns:
        The diagnosis; it prints as a page.

    Raises:
        InputError: The subject is none of these, is a batch, or has entries that are not finite; or an option cannot be
            used.

    References:
        J. R. Bunch and L. Kaufman (1977), Some stable methods for calculating inertia and solving symmetric linear
        systems, Math. Comp. 31, 163-179. J. Kuczynski and H. Wozniakowski (1992), Estimating the largest eigenvalue by
        the power and Lanczos algorithms with a random start, SIAM J. Matrix Anal. Appl. 13, 1094-1122.

    Examples:
        A saddle.

        >>> import torch
        >>> import raphson as rp
        >>> saddle = rp.diagnose(rp.Dense(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), labels=("a", "b")))
        >>> saddle.convex, tuple(saddle.inertia)
        ('not convex', (1, 0, 1))
        >>> saddle.witness / saddle.witness[0]
        tensor([ 1., -1.])
    """
    if method not in ("auto", "dense", "lanczos"):
        raise InputError(f"There is no method {method!r} of a diagnosis; choose 'auto', 'dense' or 'lanczos'.")
    if not (isinstance(steps, int) and steps >= 1):
        raise InputError(f"steps is {steps}, but a Lanczos run takes a whole number of at least 1 product.")
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise InputError(f"generator is a {type(generator).__name__}; pass a torch.Generator, or None for a fixed one.")
    found = _subject(subject)
    shape = tuple(found.operator.shape)
    if len(shape) != 2 or not shape[0]:
        raise InputError(
            f"A diagnosis is of one matrix (p, p), and this operator has shape {shape}: take an element of the batch, "
            "or count signs over a sample by rp.definiteness_at."
        )
    judge = _judged(found, method, steps, generator)
    if found.second is None:
        return judge
    return replace(judge, gauss_newton=_judged(found.second(), method, steps, generator))


def _subject(given: Any) -> Subject:
    """Return what is to be judged: an object says it itself, by ``diagnosed`` or by ``curvature`` and its facts."""
    if isinstance(given, Subject):
        return given
    if isinstance(given, SymmetricOperator):
        return Subject(given, f"{type(given).__name__} operator, {given.shape[-1]} parameters", labels=given.labels)
    if hasattr(given, "diagnosed"):
        made: Subject = given.diagnosed()
        return made
    for part in ("posterior_", "objective"):  # of an estimated network, and of a posterior
        if hasattr(given, part):
            return _subject(getattr(given, part))
    if hasattr(given, "curvature"):
        operator = given.curvature("hessian")
        known = everywhere(given.likelihood, linear=given.is_linear, constant=given.l2)
        p = operator.shape[-1]
        penalty = Diagonal(torch.full((p,), given.l2, dtype=torch.float64)) if given.l2 else None
        positive = Everywhere("convex", 0.0, "Positive semi-definite by its structure, J^T H J with H >= 0.")
        return Subject(
            operator,
            f"Hessian of the objective, {p} parameters",
            known,
            None,
            penalty,
            None,
            operator.labels,
            lambda: Subject(
                given.curvature("gauss-newton"), "Gauss-Newton matrix", positive, None, penalty, None, operator.labels
            ),
            given.is_linear and given.likelihood.self_concordance == 0,
        )
    raise InputError(
        f"diagnose takes a symmetric operator, an objective or a fitted estimator, and got a {type(given).__name__}."
        + (" Wrap a matrix as rp.Dense(matrix)." if hasattr(given, "shape") else "")
    )


class _Facts(NamedTuple):
    """What one of the two ways finds out."""

    counts: Inertia | None
    convex: Convexity
    how: str
    smallest: float
    largest: float
    errors: tuple[float, float]
    vectors: tuple[Tensor, Tensor]
    witness: Tensor | None
    curvature: float | None
    trace: tuple[float, float]
    logdet: float
    dimension: float
    condition: float
    nulls: tuple[Tensor, ...]


def _judged(subject: Subject, method: Method, steps: int, generator: torch.Generator | None) -> Diagnosis:
    n = subject.operator.shape[-1]
    dense = method == "dense" or (method == "auto" and (n <= _DENSE or isinstance(subject.operator, Diagonal)))
    facts = _by_factors(subject) if dense else _by_products(subject, steps, generator)
    known, convex, how = subject.everywhere, facts.convex, facts.how
    if convex == "undecided" and known is not None and _proved(known):
        convex = known.convex
        how += " By its structure (below) it has no negative one."
    if subject.constant_hessian:
        # what is true here is true everywhere, however little structure alone would prove
        floor = max(facts.smallest - facts.errors[0], 0.0) if convex == "strongly convex" else 0.0
        sentence = f"Everywhere: {convex} as at this point, because the Hessian does not depend on the parameters."
        known = Everywhere(convex, floor, sentence)
    elif known is not None and convex == "not convex":
        why = known.sentence.removeprefix("Everywhere: ")
        sentence = f"Everywhere: not convex, as the curvature at this point shows ({why.rstrip('.')})."
        known = Everywhere("not convex", 0.0, sentence)
    floor = max(
        facts.smallest - facts.errors[0], known.constant if known and known.convex == "strongly convex" else 0.0
    )
    step, momentum = _step(
        facts.largest + facts.errors[1], facts.smallest, floor if convex == "strongly convex" else 0.0
    )

    def wide(vector: Tensor) -> Tensor:
        return vector if subject.expand is None else subject.expand(vector)

    nulls: list[Direction] = [named(vector, subject.labels) for vector in _reduced([wide(v) for v in facts.nulls])]
    return Diagnosis(
        title=subject.title,
        inertia=facts.counts,
        convex=convex,
        guarantee=how,
        everywhere=known,
        witness=None if facts.witness is None else wide(facts.witness),
        witness_curvature=facts.curvature,
        smallest=facts.smallest,
        largest=facts.largest,
        smallest_error=facts.errors[0],
        largest_error=facts.errors[1],
        smallest_vector=wide(facts.vectors[0]).to(subject.operator.device, subject.operator.dtype),
        largest_vector=wide(facts.vectors[1]).to(subject.operator.device, subject.operator.dtype),
        condition=facts.condition,
        effective_dimension=facts.dimension,
        trace=facts.trace[0],
        trace_error=facts.trace[1],
        logdet=facts.logdet,
        null_directions=tuple(nulls),
        step_size=step,
        momentum=momentum,
        labels=subject.labels,
    )


def _proved(known: Everywhere | None) -> bool:
    """Whether structure proves that no eigenvalue is negative."""
    return known is not None and known.convex in ("convex", "strongly convex")


def _by_factors(subject: Subject) -> _Facts:
    """Judge a matrix that is formed."""
    operator = subject.operator
    matrix = operator.to_dense()
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(
            "The matrix to diagnose holds NaN or infinity. Check the parameters and the data that it was made from."
        )
    scaled = Scaled.of(matrix)
    judged = matrix if subject.congruent is None else subject.congruent.to_dense()
    counts, exact, level = best_inertia(judged, scaled if judged is matrix else Scaled.of(judged))
    n = len(matrix)
    whole = (matrix.double() + matrix.double().mT).cpu() / 2
    values, vectors = torch.linalg.eigh(whole)
    size = float(values.abs().max())
    error = rounding(n, matrix.dtype) * size + n * torch.finfo(torch.float64).eps * size
    scaled_values, scaled_vectors = torch.linalg.eigh(scaled.matrix)
    convex: Convexity = "undecided"
    witness, curvature = None, None
    if counts.negative:
        witness, curvature = _witnessed(operator, vectors[:, 0], whole)
        if witness is None:  # hidden by other parameters' larger units
            candidate = scaled.scale * scaled_vectors[:, 0]
            witness, curvature = _witnessed(operator, candidate / candidate.norm(), whole)
        convex = "not convex" if witness is not None else "undecided"
        if witness is None and _proved(subject.everywhere):
            # the sums that made the entries have rounded further than a matrix with entries of this type has
            counts, exact = Inertia(0, counts.zero + counts.negative, counts.positive), False
    elif not counts.zero:
        convex = "strongly convex"
    elif exact:
        convex = "convex"
    how = (
        f"By LDL^T factorization (Bunch and Kaufman), {counts.negative} eigenvalues are negative, {counts.zero} zero"
        f"{'' if exact else ' within rounding'} and {counts.positive} positive. A sign is given only beyond the "
        f"backward error of the factors, {level:.1e} of the matrix scaled to a largest entry near one: failure "
        "probability 0."
    )
    positive = not counts.negative and not counts.zero
    # clamping would hide what it decides: eigenvalues that are known to be positive may still round to less
    logdet = float(values.log().sum()) if positive and bool((values > 0).all()) else math.nan
    smallest_size = float(values.abs().min())
    settled = not counts.zero and smallest_size > error
    return _Facts(
        counts,
        convex,
        how,
        float(values[0]),
        float(values[-1]),
        (error, error),
        (vectors[:, 0], vectors[:, -1]),
        witness,
        curvature,
        (float(whole.diagonal().sum()), 0.0),
        logdet,
        _effective(subject, whole, counts),
        size / smallest_size if settled else math.inf,
        _null_vectors(scaled, scaled_values, scaled_vectors, counts.zero),
    )


def _null_vectors(scaled: Scaled, values: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the eigenvectors of the smallest absolute eigenvalues of the scaled matrix, in the matrix's own units."""
    if not count:
        return ()
    smallest = values.abs().argsort()[: min(count, _DIRECTIONS)]
    return tuple((scaled.scale[:, None] * vectors[:, smallest]).unbind(1))


def _effective(subject: Subject, whole: Tensor, counts: Inertia) -> float:
    if subject.penalty is None:
        return float(counts.positive)
    if counts.negative or counts.zero:
        return math.nan
    penalty = subject.penalty.to_dense().to(whole)
    return float(len(whole) - torch.linalg.solve(whole, penalty).diagonal().sum())


def _witnessed(
    operator: SymmetricOperator, candidate: Tensor, matrix: Tensor | None = None, noise: float = 0.0
) -> tuple[Tensor | None, float | None]:
    """Return a direction with its curvature by one product, if that is negative whatever rounding did."""
    direction = candidate.to(operator.device, operator.dtype)
    product = (operator @ direction).cpu().double()
    v = direction.cpu().double()
    square = float(v @ v)
    quotient = float(v @ product) / square
    if matrix is not None:
        eps = torch.finfo(operator.dtype).eps
        noise = 2 * (len(v) + 4) * eps * float(v.abs() @ (matrix.abs() @ v.abs())) / square
    return (direction, quotient) if quotient < -noise else (None, None)


def _by_products(subject: Subject, steps: int, generator: torch.Generator | None) -> _Facts:
    """Judge an operator that is only multiplied."""
    operator = subject.operator
    n = operator.shape[-1]
    ends = extremes(operator, steps, generator)
    noise = rounding(n, operator.dtype) * max(abs(ends.smallest), abs(ends.largest))
    witness, curvature = (None, None)
    if ends.smallest < 0:
        witness, curvature = _witnessed(operator, ends.smallest_vector, noise=noise)
    convex: Convexity = "undecided"
    lower = ends.smallest - ends.margin
    bound = (
        f"{ends.steps} Lanczos steps from a random start: the smallest Ritz value is {ends.smallest:.4g} with residual "
        f"{ends.smallest_residual:.1e}, and no eigenvalue lies below {lower:.4g} but with probability {ends.failure:g}"
    )
    if witness is not None:
        convex = "not convex"
        how = (
            f"The curvature along the witness is {curvature:.4g} by a product, beyond rounding: failure probability 0."
        )
    elif lower > 0:
        convex, how = "strongly convex", f"By {bound} (Kuczynski and Wozniakowski)."
    else:
        how = f"No direction of negative curvature was met. By {bound} (Kuczynski and Wozniakowski)."
    estimate = trace(operator, samples=min(30, n) if n > 5 else n, generator=generator) if n > 3 else None
    total = (
        (float(operator.to_dense().trace()), 0.0)
        if estimate is None
        else (float(estimate), float(estimate.standard_error))
    )
    definite = convex == "strongly convex"
    return _Facts(
        None,
        convex,
        how,
        ends.smallest,
        ends.largest,
        (min(ends.margin, math.inf), ends.margin),
        (ends.smallest_vector.cpu(), ends.largest_vector.cpu()),
        witness,
        curvature,
        total,
        math.nan,
        float(n) if definite and subject.penalty is None else math.nan,
        ends.largest / ends.smallest if definite else math.nan,
        (),
    )


def _step(largest: float, smallest: float, floor: float) -> tuple[float, float]:
    """Return step size and momentum: Polyak's for a quadratic between two curvatures, else one over the largest."""
    size = max(abs(largest), abs(smallest))
    if not size > 0 or not math.isfinite(size):
        return math.nan, 0.0
    if not floor > 0:
        return 1 / size, 0.0
    high, low = math.sqrt(largest), math.sqrt(floor)
    return 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2


def _reduced(vectors: list[Tensor]) -> list[Tensor]:
    """Return a basis of the same space in which every vector has an entry of its own, so that it can be read."""
    if not vectors:
        return []
    from scipy.linalg import qr

    whole = torch.stack([vector / vector.abs().max() for vector in vectors], 1)
    _, _, pivots = qr(whole.mT.numpy(), mode="economic", pivoting=True)
    own = whole[torch.from_numpy(pivots[: len(vectors)].copy()).long()]
    found = torch.linalg.solve(own.mT, whole.mT).mT
    found = torch.where(found.abs() > 1e-6 * found.abs().amax(0), found, 0.0)
    return list(found.unbind(1))
