"""The list of a checkpoint's files with their checksums, and of what the run was."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.io.checksum import SUMS, file_sum, read_json
from ahn.io.files import write_json
from ahn.io.folder import values_sum

MANIFEST = "checkpoint.json"  # written last
LAST = ("last", "true", "True")


def write_manifest(checkpoint: Path, record: Mapping[str, Any]) -> None:
    """Write the checksums of all files of a checkpoint that is complete, and the run's record."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    sums = {path.relative_to(checkpoint).as_posix(): file_sum(path) for path in files}
    values = {"files": sums, "run": dict(record)}
    write_json(checkpoint / MANIFEST, {**values, SUMS: values_sum(values)})


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The record of the run that wrote a checkpoint.

    Raises ValueError naming the first file of the checkpoint that is missing or damaged.
    """
    path = checkpoint / MANIFEST
    values = read_json(path)
    if values.get(SUMS) != values_sum(values):
        raise ValueError(f"{path}: expected the values that were written, got damaged ones")
    for name, checksum in values["files"].items():
        file = checkpoint / name
        if not file.is_file():
            raise ValueError(f"{file}: expected a file of the checkpoint, got none")
        if file_sum(file) != checksum:
            raise ValueError(f"{file}: expected the bytes that were written, got damaged ones")
    return values["run"]


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, newest first."""
    steps = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name)):
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None where there is none.

    Warns of each damaged one. Raises ValueError where all are.
    """
    reasons = []
    for path in checkpoints_of(folder):
        try:
            read_record(path)
        except ValueError as error:
            reasons.append(error)
            continue
        for reason in reasons:
            warnings.warn(f"{reason}; the run goes on from {path.name}", stacklevel=2)
        return path
    if reasons:
        raise reasons[0]
    return None


def resumed_from(folder: Path, asked: str | None) -> str | None:
    """The whole checkpoint that a run in a folder resumes; None where it begins anew.

    Args:
        asked: a checkpoint, or `last`.

    Raises ValueError where there is no such one, it is damaged, or none is asked for in a folder
    that has some.
    """
    if asked in LAST:
        last = newest_whole(folder)
        return None if last is None else str(last)
    if asked:
        if not Path(asked).is_dir():
            raise ValueError(f"resume_from_checkpoint: expected a folder or last, got {asked!r}")
        read_record(Path(asked))
        return asked
    if existing := checkpoints_of(folder):
        raise ValueError(
            f"output_dir: expected a folder without checkpoints, or --resume_from_checkpoint last, "
            f"got one with {existing[0].name}"
        )
    return None
