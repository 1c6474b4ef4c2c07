r"""One symbolic definition per likelihood: the negative log-likelihood of one response, in named pieces.

A formula stays readable if its pieces keep their names while it is differentiated. So a definition is written in
abbreviations (:math:`r = (y - \mu)/\sigma`), each with its meaning and with its partial derivatives written in
abbreviations again (:math:`\partial r/\partial\sigma = -r/\sigma`); ``derivative`` is the chain rule over them.
The meanings, put back in, give the same quantity in outputs and targets alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from raphson.likelihoods.formulas._algebra import Expr, Matrix, Symbol, evaluator, mean_of, positive, sympy, tidy

if TYPE_CHECKING:
    from raphson.likelihoods._likelihood import Likelihood


@dataclass(frozen=True)
class Abbreviation:
    """A name for a piece of a formula.

    Attributes:
        symbol: The name.
        meaning: In outputs, targets, constants and earlier abbreviations.
        rates: Partial derivatives in outputs and earlier abbreviations; None: those of ``meaning`` as they come.
        shown: What to print for ``meaning`` where that has a customary sign, such as the normal distribution function.
    """

    symbol: Symbol
    meaning: Expr
    rates: Mapping[Symbol, Expr] | None = None
    shown: Expr | None = None


@dataclass(frozen=True)
class Convexity:
    """Where the negative log-likelihood is convex in the outputs.

    Attributes:
        sentence: In words.
        where: Condition in the symbols of the definition that holds exactly where the observed Hessian is positive
            semidefinite; None if there is no simple one, and the Hessian is indefinite at some outputs and targets.
    """

    sentence: str
    where: Any = None


STRICTLY_CONVEX = Convexity("Strictly convex in the output for every target.", sympy.true)
ONLY_CONVEX = Convexity(
    "Convex everywhere, not strictly: adding a constant to all outputs changes nothing, so the Hessian has one zero "
    "eigenvalue, with eigenvector (1, ..., 1).",
    sympy.true,
)
GLM_BOOK = "P. McCullagh and J. A. Nelder (1989), Generalized Linear Models, 2nd ed., "


def exponential(symbol: Symbol, output: Symbol) -> Abbreviation:
    """Return the abbreviation of the exponential of an output."""
    return Abbreviation(symbol, sympy.exp(output), {output: symbol})


def logistic(symbol: Symbol, output: Symbol) -> Abbreviation:
    """Return the abbreviation of the logistic function of an output."""
    return Abbreviation(symbol, 1 / (1 + sympy.exp(-output)), {output: symbol * (1 - symbol)})


def softmax(k: int) -> tuple[tuple[Symbol, ...], tuple[Abbreviation, ...]]:
    """Return ``k`` outputs, and the abbreviations of the sum of their exponentials and of its shares."""
    f = sympy.symbols(f"f_:{k}", real=True)
    z, p = positive("Z"), sympy.symbols(f"p_:{k}", positive=True)
    total = Abbreviation(z, sympy.Add(*(sympy.exp(x) for x in f)), {f[j]: z * p[j] for j in range(k)})
    shares = (
        Abbreviation(p[i], sympy.exp(f[i]) / z, {f[j]: p[i] * (int(i == j) - p[j]) for j in range(k)}) for i in range(k)
    )
    return f, (total, *shares)


def one_number(y: Tensor) -> tuple[float, ...]:
    """Return the target of one response as the value of the only target symbol."""
    return (float(y.reshape(())),)


def _as_it_is(expression: Expr) -> Expr:
    return expression


def first_number(number: float | Tensor | None) -> float:
    """Return a fixed parameter, that of the first response where each has its own."""
    return float(number.reshape(-1)[0]) if isinstance(number, Tensor) else float(number or 0.0)


@dataclass(frozen=True)
class Definition:
    """What the formulas of a likelihood are derived from.

    Attributes:
        likelihood: The member that the formulas hold for and are checked against.
        outputs: Symbols of the outputs, in the likelihood's order.
        targets: Symbols of the target.
        nll: Negative log-likelihood of one response.
        abbreviations: In an order in which meanings only use earlier ones.
        moments: Means under the model of statistics of the target: ``{r: 0, r**2: 1}``.
        example: Outputs and a target (as the likelihood takes it, for one row) for the numeric check.
        convexity: Where it is convex.
        constants: Values of the symbols that the likelihood fixes.
        read: From a target of one row to the values of ``targets``.
        expect: Replaces the look-up in ``moments``.
        rewrite: Brings abbreviations into a derivative that came out without them.
        arrange: How an entry is put into its printed form.
        identities: What a determinant may be simplified by: probabilities that sum to one.
        joint: Whether the outputs belong to all responses together.
        given_target: Whether part of the target (a number of trials) is known and not averaged over.
        target_words: What the target is.
        notes: Sentences: general form, source of the Fisher information.
        source: Where it is published.
        given: Gradient, observed and expected Hessian, if they are not to be derived from the value but follow from
            those of another definition.
    """

    likelihood: Likelihood
    outputs: tuple[Symbol, ...]
    targets: tuple[Symbol, ...]
    nll: Expr
    example: tuple[Sequence[float], Any]
    convexity: Convexity
    source: str
    abbreviations: tuple[Abbreviation, ...] = ()
    moments: Mapping[Expr, Expr] = field(default_factory=dict)
    constants: Mapping[Symbol, float] = field(default_factory=dict)
    read: Callable[[Tensor], Sequence[float]] = one_number
    expect: Callable[[Expr], Expr] | None = None
    rewrite: Callable[[Expr], Expr] = _as_it_is
    arrange: Callable[[Expr], Expr] = tidy
    identities: Mapping[Expr, Expr] = field(default_factory=dict)
    joint: bool = False
    given_target: bool = False
    target_words: str = ""
    notes: tuple[str, ...] = ()
    given: tuple[Matrix, Matrix, Matrix] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the likelihood calls each of ``outputs``."""
        return self.likelihood.output_names(len(self.outputs))

    def convex_where(self) -> Convexity:
        """Return the condition of a definition with one output: the observed Hessian itself."""
        entry = self.hessian[0, 0]
        if entry.is_positive or entry.is_nonnegative:
            return STRICTLY_CONVEX
        return Convexity("Convex exactly where the observed Hessian is not negative.", entry >= 0)

    def derivative(self, expression: Expr, output: Symbol) -> Expr:
        """Return the total derivative in an output, in terms of abbreviations."""
        parts = [
            sympy.diff(expression, symbol) * self._rate(symbol, output)
            for symbol in sorted(expression.free_symbols, key=str)
        ]
        return sympy.Add(*parts)

    def _rate(self, symbol: Symbol, output: Symbol) -> Expr:
        if symbol == output:
            return sympy.Integer(1)
        known = {a.symbol: a for a in self.abbreviations}
        if symbol not in known:
            return sympy.Integer(0)
        piece = known[symbol]
        if piece.rates is None:
            return self.derivative(piece.meaning, output)
        return sympy.Add(*(rate * self._rate(other, output) for other, rate in piece.rates.items()))

    @cached_property
    def gradient(self) -> Matrix:
        """The gradient in the outputs, a column."""
        if self.given is not None:
            return self.given[0]
        return sympy.Matrix([self._entry(self.nll, output) for output in self.outputs])

    @cached_property
    def hessian(self) -> Matrix:
        """The observed Hessian."""
        if self.given is not None:
            return self.given[1]
        return self._symmetric(lambda i, j: self._entry(self.gradient[i], self.outputs[j]))

    def _entry(self, expression: Expr, output: Symbol) -> Expr:
        return self.arrange(self.rewrite(self.derivative(expression, output)))

    @cached_property
    def fisher(self) -> Matrix:
        """The expected Hessian; a mean without a closed form stays as ``E(...)``."""
        if self.given is not None:
            return self.given[2]
        return self._symmetric(lambda i, j: self.arrange(self.mean(self.hessian[i, j])))

    def _symmetric(self, entry: Callable[[int, int], Expr]) -> Matrix:
        size = len(self.outputs)
        lower = {(i, j): entry(j, i) for i in range(size) for j in range(i + 1)}
        return sympy.Matrix(size, size, lambda i, j: lower[max(i, j), min(i, j)])

    def mean(self, expression: Expr) -> Expr:
        """Return the expectation over targets drawn from the model."""
        if self.expect is not None:
            return self.expect(expression)
        return mean_by_moments(expression, self.moments, self.random)

    @cached_property
    def random(self) -> set[Symbol]:
        """Targets and the abbreviations that depend on them."""
        found = set(self.targets)
        for piece in self.abbreviations:
            if piece.meaning.free_symbols & found:
                found.add(piece.symbol)
        return found

    def plain(self, expression: Expr) -> Expr:
        """Return an expression with every abbreviation replaced by its meaning."""
        for piece in reversed(self.abbreviations):
            expression = expression.subs(piece.symbol, piece.meaning)
        return expression

    def compiled(self, expressions: Sequence[Expr]) -> Callable[[Sequence[float], Tensor], list[float]]:
        """Return a function of outputs and a target of one row that evaluates expressions."""
        plain = [self.plain(expression) for expression in expressions]
        symbols = [*self.outputs, *self.targets, *self.constants]
        means = {}
        for mean in sorted(set().union(*(expression.atoms(mean_of) for expression in plain)), key=str):
            means[sympy.Dummy()] = self._sum_over_counts(mean.args[0], symbols)
            plain = [expression.subs(mean, [*means][-1]) for expression in plain]
        function = evaluator(plain, [*symbols, *means])

        def at(f: Sequence[float], y: Tensor) -> list[float]:
            values = [*f, *self.read(y), *self.constants.values()]
            return function(*values, *(total(values) for total in means.values()))

        return at

    @cached_property
    def values(self) -> Callable[[Sequence[float], Tensor], list[float]]:
        """All printed formulas as one function: value, gradient, observed and expected Hessian, row by row."""
        return self.compiled([self.nll, *self.gradient, *self.hessian, *self.fisher])

    def _sum_over_counts(self, inner: Expr, symbols: list[Symbol]) -> Callable[[Sequence[float]], float]:
        # Only counts leave a mean without a closed form; exp(-nll) is their probability function.
        place = symbols.index(self.targets[0])
        mass_and_value = evaluator([sympy.exp(-self.plain(self.nll)), inner], symbols, digits=20)

        def total(values: Sequence[float]) -> float:
            summed = covered = 0.0
            count = 0
            while covered < 1 - 1e-13 and count < _MOST_COUNTS:
                mass, value = mass_and_value(*values[:place], count, *values[place + 1 :])
                summed, covered, count = summed + mass * value, covered + mass, count + 1
            return summed

        return total


_MOST_COUNTS = 20_000


def mean_by_moments(expression: Expr, moments: Mapping[Expr, Expr], random: set[Symbol]) -> Expr:
    """Return the mean of an expression that is linear in statistics whose means are known.

    A factor with one of the ``random`` symbols that is not among ``moments`` is left as ``E(factor)``.
    """
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(sympy.expand(expression)):
        fixed, moving = term.as_independent(*random, as_Add=False)
        if moving == 1:
            total += fixed
        else:
            total += fixed * moments.get(moving, mean_of(moving))
    return total
