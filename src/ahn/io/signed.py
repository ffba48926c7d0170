"""JSON files with a checksum of their own: what was changed since is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.io.checksum import CHECKSUM, read_json
from ahn.io.files import AnyPath, written_whole


def write_signed(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, completely or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(_signed(values), encoding="utf-8")


def read_signed(path: Path, format: str) -> dict[str, Any]:
    """What `write_signed` wrote.

    Args:
        format: what the object says its `format` is.

    Raises ValueError naming the file where it is of another format, or damaged.
    """
    values = read_json(path)
    if values.get("format") != format:
        raise ValueError(f"{path}: expected {format}, got {values.get('format')!r:.80}")
    values.pop(CHECKSUM, None)
    if path.read_text(encoding="utf-8") != _signed(values):
        raise ValueError(f"{path}: expected the text that was written, got a damaged one")
    return values


def _signed(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    signed = {**values, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(signed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
