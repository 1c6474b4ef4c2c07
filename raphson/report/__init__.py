"""Results as tables and pages for people; no computation."""

from ._progress import ProgressLine as ProgressLine
from ._progress import progress_line as progress_line
from ._summary import Summary as Summary
