"""Commands and their arguments; what they do is imported when one of them runs, so that help is instant."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import raphson
from raphson.cli._pipe import ended_by_reader, silence

BAD_INPUT = 2
_LARGEST = 10**9
"""Of whole numbers that options take."""

app = typer.Typer(
    name="raphson",
    help="Fit models by Newton's method and say how sure the fit is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def _imports() -> Generator[None, None, None]:
    """Import without looking for garbage, a tenth of the time: what imports make lives as long as the process."""
    gc.disable()
    try:
        yield
        import_module("raphson.estimators")  # which names of raphson would bring in later
    finally:
        gc.freeze()
        gc.enable()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(raphson.show_config())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show versions and the compiled code, and exit."
        ),
    ] = False,
) -> None:
    pass


def _leave_to_the_first() -> None:
    """End all but the first of the processes of torchrun: a fit is one, and all would write the same files."""
    count = os.environ.get("WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    if count == "1":
        return
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit
    typer.echo(f"raphson: torchrun started {count} processes; the fit, of all rows, is in the first alone.", err=True)


_REPEATED = frozenset({"formula", "offset", "drop"})
"""Options of a fit that may be given more than once."""

_Table = Annotated[Path, typer.Argument(metavar="DATA", help="CSV or Parquet file.")]


@app.command()
def fit(
    data: _Table,
    target: Annotated[str | None, typer.Option(help="Column to predict.", metavar="COLUMN")] = None,
    formula: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 'party ~ age + C(educ)'; default: all other columns. Again for another parameter, as in "
            "'log_scale=~ age'."
        ),
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="Distribution of the target: categorical, bernoulli, binomial, ordinal, poisson, negative-binomial, "
            "gaussian, heteroscedastic-gaussian, student-t, gamma, inverse-gaussian, weibull, beta. Default: by the "
            "target, classes for text and few levels, poisson for many whole numbers, gaussian for others.",
            metavar="NAME",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="linear, or a small Bayesian network: mlp:50 has one hidden layer of 50.", metavar="KIND"),
    ] = "linear",
    levels: Annotated[
        str | None, typer.Option(help="Levels of an ordinal target that is text, lowest first.", metavar="A,B,...")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials that a binomial target counts the successes of.", min=1, max=_LARGEST)
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Such as probit or cloglog (bernoulli), inverse (gamma), log.", metavar="NAME"),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Column of weights.", metavar="COLUMN")] = None,
    offset: Annotated[
        list[str] | None,
        typer.Option(help="Column of offsets; once per class, or once for two classes.", metavar="COLUMN"),
    ] = None,
    exposure: Annotated[
        str | None, typer.Option(help="Column of exposures; its logarithm is an offset.", metavar="COLUMN")
    ] = None,
    event: Annotated[
        str | None,
        typer.Option(help="Column that is 1 where a time ended in the event, 0 where censored.", metavar="COLUMN"),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; may be repeated.", metavar="COLUMN")
    ] = None,
    missing: Annotated[
        Literal["drop", "error"], typer.Option(help="Rows with missing values: drop and count, or refuse.")
    ] = "drop",
    penalty: Annotated[
        Literal["ridge", "jeffreys"],
        typer.Option(
            help="jeffreys: finite, less biased estimates where targets are separated (Firth); or ridge, see --l2."
        ),
    ] = "ridge",
    l2: Annotated[float, typer.Option(help="Ridge penalty on the slopes, on the scale of the mean loss.", min=0)] = 0.0,
    reference: Annotated[
        str,
        typer.Option(help="Class that coefficients are relative to; 'none': they sum to zero.", metavar="CLASS"),
    ] = "first",
    covariance: Annotated[
        Literal["observed", "expected", "sandwich"] | None,
        typer.Option(help="Kind of standard errors. Default: observed; sandwich with --groups or --l2."),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Column of clusters for clustered standard errors.", metavar="COLUMN")
    ] = None,
    level: Annotated[float, typer.Option(help="Coverage of the confidence intervals.")] = 0.95,
    intervals: Annotated[
        Literal["wald", "profile"],
        typer.Option(help="Tests and intervals by standard errors, or by the profile likelihood."),
    ] = "wald",
    max_iter: Annotated[int, typer.Option(help="Largest number of iterations.", min=1, max=_LARGEST)] = 100,
    tol: Annotated[float, typer.Option(help="Largest gradient of the mean loss at the end.")] = 1e-8,
    exp: Annotated[
        bool, typer.Option("--exp", help="Show exponentials of the coefficients: odds ratios, rate ratios.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Directory to save the model in.", metavar="DIR")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the whole command may take, such as 2GB: refused before the fit where it is not enough, "
            "else the estimate is said.",
            metavar="SIZE",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the model in --save DIR, if there is one: that of an earlier fit."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write the coefficients to: .csv or .parquet.", metavar="FILE")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help=r"File to write a report to: .html (figures need raphson\[plot]), .md or .json.", metavar="FILE"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="Show a long fit's progress. Default: on a terminal."),
    ] = None,
) -> None:
    """Fit a model to a table and print its coefficients with standard errors."""
    given: dict[str, Any] = dict(locals())
    _leave_to_the_first()
    with _imports():
        from raphson.cli._fit import run_fit
        from raphson.cli._options import FitOptions

    given["progress"] = sys.stderr.isatty() and not quiet if progress is None else progress
    given |= {name: tuple(given[name] or ()) for name in _REPEATED}
    raise typer.Exit(run_fit(FitOptions(**given)))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a saved model.")],
    data: _Table,
    out: Annotated[Path, typer.Option(help="File to write: .csv or .parquet.", metavar="FILE")],
) -> None:
    """Write predictions for each row of a table: the class and all probabilities, or the mean and linear predictors."""
    with _imports():
        from raphson.cli._predict import run_predict

    run_predict(model, data, out)


_Model = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a saved model.")]


@app.command()
def check(
    model: _Model,
    data: _Table,
    within: Annotated[
        float, typer.Option(help="Largest error, in standard errors, that exit code 0 stands for.", min=0)
    ] = 0.01,
) -> None:
    """Certify, without fitting, that a saved model is the optimum for the table it was fitted to."""
    with _imports():
        from raphson.cli._check import run_check

    raise typer.Exit(run_check(model, data, within))


@app.command()
def diagnose(
    model: _Model,
    data: _Table,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what shape the objective of a saved model has: convexity, spectrum, null directions."""
    with _imports():
        from raphson.cli._check import run_diagnose

    run_diagnose(model, data, json=json)


@app.command()
def explain(
    likelihood: Annotated[str, typer.Argument(metavar="LIKELIHOOD", help="Such as gamma or heteroscedastic-gaussian.")],
    parametrization: Annotated[str | None, typer.Option(help="Of the Gaussian in mean and scale.")] = None,
    scale: Annotated[float | None, typer.Option(help="Known scale of the Gaussian.")] = None,
    dispersion: Annotated[float | None, typer.Option(help="Known dispersion (negative binomial, gamma).")] = None,
    shape: Annotated[float | None, typer.Option(help="Known shape of the Weibull.")] = None,
    df: Annotated[float | None, typer.Option(help="Known degrees of freedom of Student's t.")] = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials of the binomial.", max=_LARGEST)] = None,
    link: Annotated[str | None, typer.Option(help="Such as probit (bernoulli, ordinal) or inverse (gamma).")] = None,
    censored: Annotated[bool, typer.Option("--censored", help="Right-censored durations.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page.", metavar="FILE")] = None,
) -> None:
    """Print a likelihood's derivatives as formulas, where it is convex, and a numeric check."""
    from raphson.cli._explain import run_explain

    arguments = {
        "parametrization": parametrization,
        "scale": scale,
        "dispersion": dispersion,
        "shape": shape,
        "df": df,
        "trials": trials,
        "link": link,
        "censored": censored or None,
    }
    run_explain(likelihood, arguments, latex=latex, html=html)


def main() -> None:
    """Run the command line; input that cannot be used is one sentence on standard error and exit code 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as by >&-: what goes there goes nowhere
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))
    with ended_by_reader():
        _run()


def _run() -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk shows here at the latest
    except raphson.InputError as error:
        _fail(str(error), BAD_INPUT)
    except raphson.RaphsonError as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # the reader of the pipe left
        silence()
        sys.exit(1)
    except OSError as error:
        silence()
        _fail(f"the output cannot be written: {error.strerror or error}.", BAD_INPUT)
    except KeyboardInterrupt:
        _fail("stopped.", 130)


def _fail(message: str, code: int) -> None:
    print(f"raphson: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
