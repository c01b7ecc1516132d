"""What a run shows in the end: a table for the terminal, and one self-contained HTML page."""

from clipdef_jax.report.content import Report, Sample, Triggered
from clipdef_jax.report.page import write
from clipdef_jax.report.scan_page import ScanReport, write_scan
from clipdef_jax.report.terminal import table
from clipdef_jax.report.verdict import Verdict, verdicts

__all__ = [
    "Report",
    "Sample",
    "ScanReport",
    "Triggered",
    "Verdict",
    "table",
    "verdicts",
    "write",
    "write_scan",
]
