"""What a write under way leaves on disk: locked while its writer lives, swept by the next write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ahn.io.lock import locked, released

MARK = ".ahn-partial-"  # in the name of everything that is not complete yet
LONGEST = 120  # bytes of the target's name that a partial name repeats


@contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """An empty file beside `target`, gone after the block unless it was renamed."""
    path, lock = _claimed(target, is_folder=False)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        released(lock)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, gone after the block unless it was renamed."""
    path, lock = _claimed(target, is_folder=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        released(lock)


def sweep(folder: Path) -> None:
    """Remove what killed writes have left in a folder."""
    with suppress(OSError):
        names = [entry.name for entry in os.scandir(folder) if is_partial(entry.name)]
        for name in names:
            _remove_if_dead(folder / name)


def is_partial(name: str) -> bool:
    """Whether a file's or folder's name is that of a write under way, or of a killed one."""
    return name.startswith(".") and MARK in name


def _claimed(target: Path, is_folder: bool) -> tuple[Path, int]:
    """A new partial file or folder, and the descriptor that holds its lock."""
    sweep(target.parent)
    while True:
        path = _made(target, is_folder)
        with suppress(BlockingIOError, FileNotFoundError):  # another write sweeps it: once more
            lock = locked(path)
            if lock is None:  # no locks here: nobody sweeps it, so any descriptor will do
                return path, os.open(os.devnull, os.O_RDONLY)
            if _is_still(path, lock):
                return path, lock
            released(lock)


def _made(target: Path, is_folder: bool) -> Path:
    prefix = "." + target.name.encode()[:LONGEST].decode(errors="ignore") + MARK
    if is_folder:
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=prefix)
    os.close(descriptor)
    return Path(name)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to what was opened."""
    with suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or (lock := locked(path)) is None:
            return
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            released(lock)
