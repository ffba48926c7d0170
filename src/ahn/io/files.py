"""Files and folders that appear complete or not at all: everything that writes comes through here.

A write goes into a partial file beside its target, which is renamed when it is complete. What a
killed write leaves is swept by the next write in that folder (`ahn.io.partial`); SIGTERM cleans up
(`ahn.io.signals`). A link is followed, and what is no file (a device, a pipe) is written into.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ahn.io.partial import is_partial, partial_file, partial_folder
from ahn.io.signals import cleaned_up_on_signals

AnyPath = str | os.PathLike[str]
# Descriptors of a process: one may lead to a file that others hold open, which is not replaced.
_DESCRIPTORS = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")
# Numbers of the system's errors in what the libraries of tensors say, and PyTorch's own words.
_SYSTEM_ERROR = re.compile(r"(?:\bcode: |os error )(\d+)")
_TORCH_ERROR = re.compile("PytorchStreamWriter failed writing|inline_container|iostream error")


@contextmanager
def written_whole(path: AnyPath) -> Iterator[Path]:
    """Give a temporary file that becomes `path` when the block succeeds.

    Raises OSError naming `path` where it cannot be written.
    """
    if _is_no_file(path):
        with _written_into(Path(path)) as temporary:
            yield temporary
        return
    target = Path(os.path.realpath(path))
    with naming(path), cleaned_up_on_signals(), partial_file(target) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 is for secrets, not for results
        temporary.replace(target)


def write_json(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys, completely or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@contextmanager
def folder_written_whole(path: AnyPath) -> Iterator[Path]:
    """Give an empty folder that becomes `path` when the block succeeds.

    Raises ValueError where `path` is there already and not an empty folder, PermissionError naming
    it where it cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{path}: expected a new or empty folder, got one in use")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with naming(path), cleaned_up_on_signals():
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as temporary:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(target)


@contextmanager
def files_written_whole(folder: AnyPath, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder whose files move into `folder` when the block succeeds.

    They move one after another: a kill in between leaves files of two writes, so one must name the
    checksums of the others.

    Args:
        folder: made where it is not there.
        last: names of files that move after all others, in this order.
    """
    target = Path(os.path.realpath(folder))
    with naming(folder), cleaned_up_on_signals():
        target.mkdir(parents=True, exist_ok=True)
        with partial_folder(target / "files") as temporary:
            yield temporary
            names = sorted(x.name for x in temporary.iterdir() if x.name not in last)
            for name in [*names, *(x for x in last if (temporary / x).exists())]:
                (temporary / name).replace(target / name)


def check_writable(path: AnyPath, name: str) -> None:
    """Raise ValueError where `written_whole` could not write `path`.

    Args:
        name: of the option, for the message.
    """
    place = Path(path) if _is_no_file(path) else Path(os.path.realpath(path)).parent
    if Path(path).is_dir() or not place.exists() or not os.access(place, os.W_OK):
        raise ValueError(f"{name}: expected a file in a folder that can be written, got {path}")


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Errors of the file system name `path`, whatever its temporary name and whoever wrote."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or _names_partial(error.filename)):
            error.filename = str(path)
        raise
    except Exception as error:
        number = _system_error(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _is_no_file(path: AnyPath) -> bool:
    """Whether a path leads to a device, a pipe or a descriptor of this process."""
    target = Path(path)
    is_there = target.exists() and not target.is_dir()
    return is_there and (not target.is_file() or _DESCRIPTORS.fullmatch(str(path)) is not None)


@contextmanager
def _written_into(target: Path) -> Iterator[Path]:
    """Give a temporary file whose bytes go into what is no file when the block succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "whole")
        yield temporary
        sys.stdout.flush()  # it may be the target
        with naming(target), temporary.open("rb") as source, target.open("ab") as file:
            shutil.copyfileobj(source, file)


def _names_partial(filename: Any) -> bool:
    return any(is_partial(part) for part in Path(os.fsdecode(filename)).parts)


def _system_error(error: Exception, path: AnyPath) -> int | None:
    """The number of the system's error that a library has put into words of its own."""
    text = str(error)
    if type(error).__module__.partition(".")[0].startswith("safetensors"):
        found = _SYSTEM_ERROR.search(text)
        return int(found[1]) if found else None
    if isinstance(error, RuntimeError) and _TORCH_ERROR.search(text):
        free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
        return errno.ENOSPC if free < 2**20 else errno.EIO
    return None


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
