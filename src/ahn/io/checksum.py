"""Safetensors files and folders with checksums; an index that names files of the folder alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ahn.io.files import AnyPath, written_whole
from ahn.io.progress import Report, Sum
from ahn.io.text import UTF8

if TYPE_CHECKING:
    from torch import Tensor

# Metadata key. In a file it holds the checksum of the file with zeros in its place. In an index it
# holds the checksum of each file; transformers' loader ignores it, and its saver drops it.
CHECKSUM = "sha256"
ZEROS = "0" * 64
INDEX = "model.safetensors.index.json"  # of a folder of several files
SINGLE_FILE = "model.safetensors"  # wins over the index
CONFIG = "config.json"
SUMS = "ahn_sha256"  # key of a config.json: checksums of the folder's files, and of its own values
BLOCK = 2**24  # bytes read at a time
MOST_THREADS = 8  # each holds a block


def write_tensors(
    path: AnyPath, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors with a checksum of the file, and return it; the same give the same file.

    Args:
        metadata: further entries of the file's header.
    """
    from safetensors.torch import save

    data = save(dict(state), metadata={"format": "pt", **(metadata or {}), CHECKSUM: ZEROS})
    size, end = data[:8], 8 + int.from_bytes(data[:8], "little")
    header, body = _in_order(data[8:end]), memoryview(data)[end:]
    digest = hashlib.sha256(size + header)
    digest.update(body)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(size + header.replace(ZEROS.encode(), digest.hexdigest().encode(), 1))
        file.write(body)
    return digest.hexdigest()


def _in_order(header: bytes) -> bytes:
    """The same header with its metadata sorted: safetensors leaves their order to chance."""
    values = json.loads(header)
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return text.encode().ljust(len(header))


def check_files(folder: Path, names: Iterable[str], report: Report | None = None) -> None:
    """Raise ValueError naming the first file with a checksum that is not as it was written.

    A checksum is in config.json or the index of a saved model, in the name of a file in the hub's
    cache, or in the metadata of a file that this package wrote. Threads hash several files at once,
    since hashlib releases the interpreter's lock.

    Args:
        report: told how many bytes have been read.
    """
    sums, names = recorded_sums(folder), sorted(names)
    total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    read = Sum("checking", total, report)
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda name: _check_file(folder / name, sums.get(name), read), names):
            pass


def recorded_sums(folder: Path) -> dict[str, Any]:
    """The checksum of each file that config.json or the index names."""
    sums = sums_in_config(folder)
    if not uses_index(folder):
        return sums
    metadata = read_json(folder / INDEX).get("metadata")
    in_index = metadata.get(CHECKSUM) if isinstance(metadata, dict) else None
    if isinstance(in_index, dict):
        listed = set(_weight_map(folder / INDEX).values())
        sums |= {name: checksum for name, checksum in in_index.items() if name in listed}
    return sums


def sums_in_config(folder: Path) -> dict[str, Any]:
    """The checksums that the config.json of a saved model names; none where there are none."""
    sums = read_json(folder / CONFIG).get(SUMS) if (folder / CONFIG).is_file() else None
    return dict(sums) if isinstance(sums, dict) else {}


def uses_index(folder: Path) -> bool:
    """Whether a folder's tensors are those of its index, as transformers reads it."""
    return (folder / INDEX).is_file() and not (folder / SINGLE_FILE).is_file()


def cached_sum(path: Path) -> str | None:
    """The checksum that a large file in the hub's cache has for its name."""
    stored = path.resolve()
    cached = stored.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", stored.name)
    return stored.name if cached else None


def expect_sum(path: Path, expected: str, actual: str) -> None:
    """Raise ValueError naming the file where the two differ."""
    if actual != expected:
        raise ValueError(f"{path}: expected the bytes that were written, got damaged ones")


def _check_file(path: Path, recorded: str | None, read: Sum) -> None:
    of_file = recorded or cached_sum(path)
    if of_file is not None:
        expect_sum(path, of_file, file_sum(path, read=read))
        return
    in_metadata = metadata_of(path).get(CHECKSUM)
    if in_metadata is not None:
        expect_sum(path, in_metadata, file_sum(path, in_metadata, read))


def file_sum(path: Path, checksum: str | None = None, read: Sum | None = None) -> str:
    """SHA-256 of a file, with zeros in place of the checksum in its header if one is given.

    Args:
        read: counts the bytes.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if checksum is not None:
            size = file.read(8)
            header = file.read(int.from_bytes(size, "little"))
            digest.update(size + header.replace(checksum.encode(), ZEROS.encode(), 1))
        while block := file.read(BLOCK):
            digest.update(block)
            if read is not None:
                read.add(len(block))
    return digest.hexdigest()


def indexed(folder: Path) -> dict[str, str]:
    """The file of every tensor by the index; ValueError where a file holds other tensors."""
    files = _weight_map(folder / INDEX)
    for name in sorted(set(files.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected {name}, got a folder without it")
        listed = {key for key, file in files.items() if file == name}
        if wrong := sorted(listed ^ set(keys_of(folder / name))):
            raise ValueError(f"{folder / INDEX}: expected the tensors of {name}, wrong {wrong[:3]}")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index}: expected a weight_map, got {type(files).__name__}")
    for name in files.values():
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: expected safetensors files of the folder, got {name!r}")
    return files


def keys_of(path: Path) -> list[str]:
    """The tensors of a safetensors file."""
    with opened_header(path) as file:
        return list(file.keys())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ValueError naming the file."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: expected {path.name}, got a folder without it")
    try:
        values = json.loads(path.read_text(encoding=UTF8))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def has_checksum(path: Path) -> bool:
    """Whether a file says what it should hash to."""
    return CHECKSUM in metadata_of(path)


def metadata_of(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    with opened_header(path) as file:
        return file.metadata() or {}


def tensor_bytes(path: Path) -> int:
    """Size of a safetensors file without its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def opened(path: Path) -> Any:
    """A safetensors file whose tensors are PyTorch's; ValueError where it is none, or damaged."""
    return _opened(path, "pt")


def opened_header(path: Path) -> Any:
    """A safetensors file for names, shapes, dtypes and metadata, without importing PyTorch.

    Raises ValueError as `opened`.
    """
    return _opened(path, "np")


def _opened(path: Path, framework: str) -> Any:
    with path.open("rb"):  # whose errors name the file and the reason, as safetensors' do not
        pass
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
