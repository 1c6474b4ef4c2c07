r"""``explain``: the derivatives of a likelihood as formulas, with a numeric check."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raphson.explain._check import Check
    from raphson.explain._sections import Section
    from raphson.likelihoods import Likelihood
    from raphson.likelihoods.formulas import Definition


@dataclass(frozen=True, eq=False)
class Explanation:
    """The formulas of a likelihood: prints in a terminal, shows as mathematics in a notebook.

    Attributes:
        title: Name of the likelihood with its arguments.
        definition: The symbolic definition; ``nll``, ``gradient``, ``hessian`` and ``fisher`` are SymPy expressions.
        check: Closed form, automatic differentiation and SymPy at a sample point.
    """

    title: str
    definition: Definition
    check: Check

    @cached_property
    def sections(self) -> list[Section]:
        """What is shown, in order, free of any format."""
        from raphson.explain._sections import sections

        return sections(self.definition, self.check)

    def to_text(self, width: int | None = None) -> str:
        """Return Unicode text.

        Args:
            width: Columns; None means those of the terminal, at most 100.

        Returns:
            The text.
        """
        from raphson.explain._render import text

        return text(self.title, self.sections, min(shutil.get_terminal_size().columns, 100) if width is None else width)

    def to_latex(self) -> str:
        """Return the body of a LaTeX document (amsmath)."""
        from raphson.explain._render import latex

        return latex(self.title, self.sections)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return one HTML page with MathML, which a browser shows without any network.

        Args:
            path: Where to write it as well, if anywhere.

        Returns:
            The page.
        """
        from raphson.explain._render import page

        html = page(self.title, self.sections)
        if path is not None:
            Path(path).write_text(html, encoding="utf-8")
        return html

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Explanation of {self.title}: print it, or to_latex(), to_html(path)>"

    def _repr_latex_(self) -> str:
        return self.to_latex()

    def _repr_html_(self) -> str:
        from raphson.explain._render import fragment

        return fragment(self.title, self.sections)


def explain(likelihood: Likelihood | Any) -> Explanation:
    r"""Explain a likelihood: its derivatives in output space as formulas, where it is convex, and a check.

    The formulas are derived with SymPy from one definition of :math:`\ell = -\log p(y \mid f)`: gradient
    :math:`\partial\ell/\partial f`, observed Hessian, Fisher information (the expected Hessian). They are for one
    response of one example; several responses give one such block each.

    Args:
        likelihood: A likelihood with a ``definition``, as all families have, with links or scaled if you like, or a
            torch loss that `as_likelihood` takes.

    Returns:
        The explanation; ``InputError`` if there is no formula for this likelihood.

    Examples:
        >>> import raphson as rp
        >>> e = rp.explain(rp.HeteroscedasticGaussian("mean_scale"))
        >>> e.definition.hessian.tolist()
        [[sigma**(-2), 2*r/sigma**2], [2*r/sigma**2, (3*r**2 - 1)/sigma**2]]
        >>> e.definition.hessian.det().factor()
        -(r**2 + 1)/sigma**4
        >>> e.check.largest < 1e-9
        True
    """
    from raphson.explain._check import check
    from raphson.likelihoods import Likelihood as Base
    from raphson.likelihoods import as_likelihood

    member = likelihood if isinstance(likelihood, Base) else as_likelihood(likelihood)
    definition = member.definition()
    return Explanation(_title(member), definition, check(definition))


def explain_name(name: str, **arguments: Any) -> Explanation:
    """Return the explanation of a likelihood by name, in any spelling, with arguments of its constructor.

    Raises:
        InputError: There is no such likelihood, or it takes no such argument or value.
    """
    import inspect
    from dataclasses import replace

    from raphson._errors import InputError
    from raphson.explain._names import class_named, dashed

    kind = class_named(name)
    takes = inspect.signature(kind).parameters
    for key, value in arguments.items():
        if key not in takes:
            has = ", ".join(f"--{each.replace('_', '-')}" for each in takes if each in _ARGUMENTS) or "no option"
            raise InputError(
                f"'{dashed(kind)}' has no option --{key.replace('_', '-')} (given: {value}); it has {has}."
            )
    return explain(replace(kind.examples()[0], **arguments))  # type: ignore[type-var]


_ARGUMENTS = ("parametrization", "dispersion", "df", "shape", "scale", "link", "trials", "censored")


def _title(likelihood: Likelihood) -> str:
    from dataclasses import MISSING, fields

    from torch import Tensor

    said = []
    for field in fields(likelihood):  # type: ignore[arg-type]
        value = getattr(likelihood, field.name)
        default = field.default
        if field.name == "link" and value in likelihood.link_names[:1]:
            continue
        if isinstance(value, Tensor):
            value = value.tolist()
        elif hasattr(value, "nll"):
            value = _title(value)
        if default is MISSING or isinstance(value, str) or value != default:
            said.append(f"{field.name}={value if not isinstance(value, str) or '(' in value else repr(value)}")
    return f"{type(likelihood).__name__}({', '.join(said)})"
