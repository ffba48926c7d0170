"""Folders of saved models, whose config.json names the checksums of the other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.io.checksum import (
    CONFIG,
    INDEX,
    SINGLE_FILE,
    SUMS,
    check_files,
    expect_sum,
    file_sum,
    indexed,
    read_json,
    sums_in_config,
    uses_index,
)
from ahn.io.files import write_json
from ahn.io.progress import Report


def check_folder(folder: Path, report: Report | None = None) -> None:
    """Raise ValueError where a safetensors file, the index or the config of a folder is damaged.

    Also where they are of different saves.

    Args:
        report: told how many bytes have been read.
    """
    _check_config(folder)
    check_files(folder, [path.name for path in folder.glob("*.safetensors")], report)
    if uses_index(folder):
        indexed(folder)


def _check_config(folder: Path) -> None:
    """Check config.json and the index against the checksums that the first names."""
    sums = sums_in_config(folder)
    if not sums:
        return
    path = folder / CONFIG
    if sums.get(CONFIG) not in (None, values_sum(read_json(path))):
        raise ValueError(
            f"{path}: expected the values that were saved, got others (an edited file loads "
            f"without {CONFIG!r} in its {SUMS})"
        )
    root = INDEX if uses_index(folder) else SINGLE_FILE
    if (folder / root).is_file():
        if root not in sums:
            raise ValueError(f"{folder}: expected {root} of the save that wrote {CONFIG}")
        expect_sum(folder / root, sums[root], file_sum(folder / root))


def values_sum(values: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its `SUMS`, whatever its order and spaces."""
    rest = {name: value for name, value in values.items() if name != SUMS}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Have the config.json of a saved model name the checksums of its weights and its index.

    Args:
        known: checksums that need no reading.
    """
    values = read_json(folder / CONFIG)
    sums = {CONFIG: values_sum(values), **(known or {})}
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        sums[path.name] = sums.get(path.name) or file_sum(path)
    write_json(folder / CONFIG, {**values, SUMS: sums})
