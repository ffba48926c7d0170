"""Locks of files and folders, which end with the process that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()  # descriptors of locks that no child may keep alive


def locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder, until it is closed or its process ends.

    None where the file system knows no locks. Raises BlockingIOError where another one holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    _held.add(descriptor)
    return descriptor


def released(descriptor: int) -> None:
    """Give a lock back."""
    _held.discard(descriptor)
    os.close(descriptor)


@contextmanager
def only_user(folder: Path, name: str) -> Iterator[None]:
    """Within the context no other process may use a folder so; made where it is not there.

    Args:
        name: of the option that names the folder, for the message.

    Raises ValueError where another process uses it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = locked(folder)
    except BlockingIOError:
        raise ValueError(
            f"{name}: expected a folder that no other run is using, got {folder}, where one is"
        ) from None
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # where a run that failed has left nothing in it
        if descriptor is not None:
            released(descriptor)


def _close_in_child() -> None:
    """A forked worker that outlives its parent must not hold the parent's locks."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
