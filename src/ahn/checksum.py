"""Safetensors files that know the checksum of their own bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ahn.files import written_whole

CHECKSUM = "sha256"  # metadata key: of the whole file, with zeros in place of the checksum
ZEROS = "0" * 64
BLOCK = 2**24  # bytes read at a time


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors with a checksum of the file; the same tensors give the same file."""
    data = save(dict(state), metadata={"format": "pt", CHECKSUM: ZEROS})
    size, end = data[:8], 8 + int.from_bytes(data[:8], "little")
    header, body = _in_order(data[8:end]), memoryview(data)[end:]
    digest = hashlib.sha256(size + header)
    digest.update(body)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(size + header.replace(ZEROS.encode(), digest.hexdigest().encode(), 1))
        file.write(body)


def _in_order(header: bytes) -> bytes:
    """The same header with its metadata sorted: safetensors leaves their order to chance."""
    values = json.loads(header)
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return text.encode().ljust(len(header))


def check_sum(path: Path) -> None:
    """Raise ValueError where a file with a checksum is not as it was written."""
    with opened(path) as tensors:
        expected = (tensors.metadata() or {}).get(CHECKSUM)
    if expected is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
        digest.update(size + header.replace(expected.encode(), ZEROS.encode(), 1))
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(f"{path}: expected the bytes that were written, got damaged ones")


def has_checksum(path: Path) -> bool:
    """Whether a file says what it should hash to."""
    with opened(path) as file:
        return CHECKSUM in (file.metadata() or {})


def opened(path: Path) -> Any:
    """A safetensors file, open; raises ValueError where it is none, or damaged."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
