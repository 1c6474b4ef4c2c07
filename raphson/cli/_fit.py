"""``raphson fit``: table, design, estimator, report, in this order."""

from __future__ import annotations

import math
import shlex
import sys
import warnings
from typing import Any

import raphson as rp
from raphson.cli._classes import fit_classes
from raphson.cli._likelihoods import CATEGORICAL, suited_name
from raphson.cli._memory import check_fit, check_reading, parse_memory
from raphson.cli._network import describe_network, fit_network, hidden_units
from raphson.cli._options import FitOptions, split_formulas
from raphson.cli._output import check_output, write_table
from raphson.cli._regression import complete_in_all, fit_regression
from raphson.cli._render import render
from raphson.cli._resume import model_before
from raphson.cli._rows import in_file
from raphson.likelihoods import command_name
from raphson.report import check_report
from raphson.saved import check_target
from raphson.table import refuse_inexact, split_formula, split_survival

_OPTIONS = {
    "penalty='jeffreys'": "--penalty jeffreys",
    "l2=1e-3": "--l2 1e-3",
    "summary(method='profile')": "--intervals profile",
    "max_iter": "--max-iter",
    "loosen tol": "loosen --tol",
}
"""What arguments that notes name are called here."""


_RESUMED = "the fit began at the coefficients of the model that was saved before"
_NOTHING_BEFORE = "no model was saved before, so the fit began anew"


def run_fit(options: FitOptions) -> int:
    """Return the exit code of fit, print, save and write: 1 if there is no convergence, or classes are separated.

    Raises:
        InputError: If the options contradict each other or the data cannot be used.
    """
    name = None if options.likelihood is None else command_name(options.likelihood)
    formula, named = split_formulas(options.formula)
    sides = [split_survival(text) for text in named.values()]
    target = next((left for left in (options.target, *(side[0] for side in sides)) if left is not None), None)
    event = next((found for found in (options.event, *(side[1] for side in sides)) if found is not None), None)
    if target is None and (formula is None or split_formula(formula)[0] is None):
        raise rp.InputError("say what to predict: --target COLUMN, or --formula 'COLUMN ~ ...'.")
    if not 0 < options.level < 1:
        raise rp.InputError(f"--level is a probability between 0 and 1, such as 0.95, not {options.level:g}.")
    for option, value in (("--l2", options.l2), ("--tol", options.tol)):
        if not 0 <= value < math.inf:
            raise rp.InputError(f"{option} is a number of at least 0, not {value:g}.")
    if options.groups is not None and options.covariance not in (None, "sandwich"):
        raise rp.InputError("--groups gives clustered standard errors; use it with --covariance sandwich.")
    if options.l2 > 0 and options.covariance in ("observed", "expected"):
        raise rp.InputError(
            f"--covariance {options.covariance} does not go with --l2: the inverse information is not the "
            "sampling covariance of penalized estimates; use --covariance sandwich, or no penalty."
        )
    _check_penalty(options)
    if options.save is not None:
        check_target(options.save)
    if options.out is not None:
        check_output(options.out)
    if options.report is not None:
        check_report(options.report)
    before = model_before(options.save) if options.resume else None
    limit = parse_memory(options.memory)
    if limit is not None:
        check_reading(options.data, limit)
    frame = rp.read_table(options.data)
    with in_file(range(len(frame))):
        design = rp.Design.fit(
            frame,
            target,
            formula,
            weights=options.weights,
            offset=options.offset,
            groups=options.groups,
            exposure=options.exposure,
            event=event,
            drop=options.drop,
            missing=options.missing,
        )
        notes = list(design.notes)
        if named:
            frame, more = complete_in_all(frame, design, named, options)
            notes += more
    if limit is not None:
        notes.append(check_fit(frame, design, 1 + len(named), limit))
    with in_file(frame.index):
        if design.groups is not None:  # as the file was read; numbers of Python are what they are
            refuse_inexact(frame[design.groups], design.groups)
        data = design.training(frame)
    assert data.y is not None
    if name is None and design.event is not None:
        name = "weibull"
        notes.append(f"likelihood weibull for {design.target} (times with events); --likelihood chooses another")
    if name is None:
        name, why = suited_name(data.y, design.target or "")
        notes += [why] if why else []
    hidden = hidden_units(options.model)
    used = in_file(frame.index[data.rows])
    if hidden is not None:
        with used:
            return _fit_network(design, data, name, hidden, named, notes, options)
    with used, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if name == CATEGORICAL:
            given: dict[str, object] = {"--levels": options.levels, "--trials": options.trials, "--link": options.link}
            given["--event"] = design.event
            unfit = [f"--formula {next(iter(named))}=..."] if named else [o for o, v in given.items() if v is not None]
            if unfit:
                raise rp.InputError(f"{unfit[0]} does not go with classes; say with --likelihood what the target is.")
            del frame  # its coded rows are enough, and a large table is not held twice
            model, more = fit_classes(design, data, options, before)
        else:
            if options.reference != "first":
                raise rp.InputError(f"--reference is a class, and '{name}' has none.")
            model, more = fit_regression(frame, design, data, name, named, options, before)
        notes += more
        if options.resume:
            model.set_params(warm_start=False)
            notes.append(_RESUMED if before is not None else _NOTHING_BEFORE)
        summary = model.summary(
            kind=options.covariance,
            level=options.level,
            groups=data.groups,
            method=options.intervals,
            exp=options.exp,
        )
    # separation and collinearity are in the notes of the summary, and whether it converged in the exit code
    notes += [str(one.message) for one in caught if one.category is rp.RaphsonWarning]
    heading = f"{design.target} = {{}}" if name == CATEGORICAL else f"{{}} of {design.target}"
    try:
        if not options.quiet:
            render(summary, [*notes, *map(_as_options, summary.notes)], heading)
    finally:  # a reader of the pipe that leaves early does not cost the model
        if options.save is not None:
            rp.save(model, options.save, design)
        if options.out is not None:
            write_table(summary.to_frame().reset_index(), options.out)
        if options.report is not None:
            settings = {"kind": options.covariance, "method": options.intervals, "exp": options.exp}
            _write_report(model, options, notes, groups=data.groups, **settings)
    if model.solution_.converged:
        return 0
    render_problem(model.solution_.status.sentence, [*map(_as_options, summary.notes)], options.quiet)
    return 1


def _as_options(note: str) -> str:
    """Return a note in which remedies are options of the command line, not arguments of Python."""
    for argument, option in _OPTIONS.items():
        note = note.replace(argument, option)
    return note


def _check_penalty(options: FitOptions) -> None:
    """Raise ``InputError`` for a penalty, or a kind of intervals, that does not go with the other options."""
    if options.penalty == "jeffreys" and options.l2 > 0:
        raise rp.InputError("--penalty jeffreys is a penalty of its own; leave out --l2.")
    if options.intervals != "profile":
        return
    unfit = {
        "--groups": options.groups is not None,
        "--covariance sandwich": options.covariance == "sandwich",
        "--l2": options.l2 > 0,
    }
    for option, given in unfit.items():
        if given:
            raise rp.InputError(f"--intervals profile goes by the likelihood, which {option} does not; leave out one.")


def _fit_network(
    design: rp.Design,
    data: Any,
    name: str,
    hidden: tuple[int, ...],
    named: dict[str, str],
    notes: list[str],
    options: FitOptions,
) -> int:
    """Fit a network, print, save and report it; the exit code is 0."""
    if named or options.out is not None:
        option = f"--formula {next(iter(named))}=..." if named else "--out"
        raise rp.InputError(f"{option} is for linear models; leave it out, or say --model linear.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, more = fit_network(design, data, name, hidden, options)
    if not options.quiet:
        print(describe_network(model, [*notes, *more]))
    if options.save is not None:
        rp.save(model, options.save, design)
    if options.report is not None:
        _write_report(model, options, [*notes, *more])
    return 0


def _write_report(model: Any, options: FitOptions, notes: list[str], **settings: Any) -> None:
    """Write the report of a fit, with the command that makes it again."""
    command = shlex.join(["raphson", *sys.argv[1:]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.report(options.report, level=options.level, command=command, notes=notes, **settings)


def render_problem(sentence: str, notes: Any, quiet: bool) -> None:
    """Say on standard error why the result is not usable, with the notes where they were not printed already."""
    detail = " ".join(notes) if quiet else ""
    print(f"raphson: this fit is not usable. {sentence} {detail}".rstrip(), file=sys.stderr)
