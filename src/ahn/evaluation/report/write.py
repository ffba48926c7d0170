"""`ahn report`: finished runs against their controls and the paper, with intervals and figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ahn.evaluation.report.comparison import findings
from ahn.evaluation.report.figures import draw
from ahn.evaluation.report.markdown import markdown
from ahn.evaluation.report.runs import read_runs
from ahn.io.files import folder_written_whole, write_json

__all__ = ["findings", "read_runs", "write_report"]


def write_report(folders: Iterable[Path], output: Path) -> dict[str, Any]:
    """Write `report.md`, `report.json` and figures as PNG and SVG into a new folder.

    Raises ValueError where there is no finished run, or `output` is in use.
    """
    report = findings(read_runs(folders))
    with folder_written_whole(output) as folder:
        figures = draw(report, folder)
        (folder / "report.md").write_text(markdown(report, figures), encoding="utf-8")
        write_json(folder / "report.json", report)
    return report
