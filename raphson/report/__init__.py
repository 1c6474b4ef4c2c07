"""Results as tables and pages for people; no computation."""

from raphson.report._progress import ProgressLine as ProgressLine
from raphson.report._progress import progress_line as progress_line
from raphson.report._report import Check as Check
from raphson.report._report import Figure as Figure
from raphson.report._report import Report as Report
from raphson.report._report import Verdict as Verdict
from raphson.report._report import check_report as check_report
from raphson.report._summary import Summary as Summary
