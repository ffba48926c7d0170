"""`ahn report`: finished runs against their controls and the paper."""

from ahn.evaluation.report.comparison import findings
from ahn.evaluation.report.runs import read_runs
from ahn.evaluation.report.write import write_report

__all__ = [
    "findings",
    "read_runs",
    "write_report",
]
