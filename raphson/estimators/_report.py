"""The report of a fitted model: what its other methods say, in one place and three forms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from raphson.diagnose import Randomness
from raphson.estimators._influence import InfluenceMixin
from raphson.estimators.fit._covariance import CovarianceKind
from raphson.estimators.review._fit_checks import LARGEST_HESSIAN, fit_checks
from raphson.estimators.review._reproduction import reproduction
from raphson.estimators.review._residual_checks import residual_checks
from raphson.report import Report, check_report


class ReportMixin(InfluenceMixin):
    """One report for reading, for printing and for programs."""

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        level: float = 0.95,
        kind: CovarianceKind | None = None,
        groups: Any = None,
        generator: Randomness = 0,
        command: str | None = None,
        notes: Sequence[str] = (),
        **options: Any,
    ) -> Report:
        """Return a report of the fit and write it: the table, numbered checks, figures, and how to make it again.

        Each check says pass, look or problem, and what to do. A page (.html) is one file that loads nothing; its
        figures need matplotlib (``pip install 'raphson[plot]'``).

        Args:
            path: File to write, whose name ends in .html, .md or .json; None for none.
            level: Coverage of the confidence intervals.
            kind: Covariance, as in ``summary``.
            groups: Clusters, as in ``summary``.
            generator: Source of the draws of residuals and simulations, or a seed.
            command: What was called to make this fit, for the reader; None for the estimator's arguments.
            notes: More sentences for the reader, below the facts.
            **options: Other arguments of ``summary``.

        Returns:
            The report; it prints as Markdown and shows as a page in a notebook.

        Raises:
            InputError: The file cannot be written.

        Examples:
            >>> import numpy as np
            >>> import raphson as rp
            >>> x, y = np.linspace(-1, 1, 40)[:, None], np.tile([0, 1, 1, 2, 0, 3, 1, 2], 5)
            >>> report = rp.VectorGLM(rp.Poisson()).fit(x, y).report()
            >>> [check.verdict.value for check in report.checks[:3]]
            ['pass', 'pass', 'pass']
        """  # noqa: DOC502
        check_is_fitted(self)
        from raphson.estimators.review._figures import figures  # which needs what networks do

        if path is not None:
            check_report(path)
        summary = self.summary(kind, level, groups, **options)
        summary = type(summary)(summary.title, summary.facts, summary.table, (*notes, *summary.notes), summary.level)
        matrix = spectrum = None
        names = list(self._layout.labels)
        if self.has_rows() and len(names) <= LARGEST_HESSIAN:
            operator = self.hessian()
            matrix = operator.to_dense().numpy()
            values, vectors = np.linalg.eigh(matrix)
            spectrum = values, vectors, list(operator.labels or ())
        checks = list(fit_checks(self, spectrum, self._only_penalized_note()))
        checks += residual_checks(self, generator)
        solution = self.solution_
        made = Report(
            summary,
            tuple(checks),
            lambda: tuple(figures(self, summary, matrix, names, generator)),
            reproduction(self, command, {"Seed of residuals and simulations": generator}),
            {
                "solution": {
                    "status": solution.status.name,
                    "method": solution.method,
                    "iterations": solution.iterations,
                    "gradient_norm": solution.gradient_norm,
                    "history": [step._asdict() for step in solution.history],
                },
                "hessian_eigenvalues": None if spectrum is None else spectrum[0].tolist(),
            },
        )
        if path is not None:
            made.save(path)
        return made

    def has_rows(self) -> bool:
        """Return whether the rows of the fit are at hand; those of a saved model are not."""
        return self._training is not None
