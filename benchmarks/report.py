"""What every benchmark writes: a table for people, one JSON line, one result file."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from ahn.files import written_whole

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Hardware, versions and command of this run."""
    cuda = torch.cuda.is_available()
    return {
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "hardware": torch.cuda.get_device_name() if cuda else _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write `results/<name>.json` and print the same as the last line."""
    result = {**environment(), **result}
    RESULTS.mkdir(exist_ok=True)
    with written_whole(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
