"""What every benchmark writes: a table for people, one JSON line, one result file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ahn.bench import environment
from ahn.io.files import written_whole

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write `results/<name>.json` and print the same as the last line."""
    command = "python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])
    result = {**environment(command), **result}
    RESULTS.mkdir(exist_ok=True)
    with written_whole(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
