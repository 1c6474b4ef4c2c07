"""Results as tables and pages for people; no computation."""

from raphson.report._progress import ProgressLine as ProgressLine
from raphson.report._progress import progress_line as progress_line
from raphson.report._summary import Summary as Summary
