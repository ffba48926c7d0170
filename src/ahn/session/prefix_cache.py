"""Prefix reuse: states of texts that were read, so that one that begins alike is not read again."""

from __future__ import annotations

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from transformers import PreTrainedModel

from ahn.generation import load_session, save_session
from ahn.io.checksum import metadata_of, tensor_bytes
from ahn.io.files import AnyPath
from ahn.layer.cache import AHNCache

SUFFIX = ".safetensors"
PATH = "path"  # in a file's notes: the digests up to its own


@dataclass
class Kept:
    """A state that is kept: the digests up to its own, its bytes, and the cache or its file."""

    path: tuple[str, ...]
    nbytes: int
    place: AHNCache | Path


class PrefixCache:
    """States by the digest of what was read, in memory or in a folder; the least used goes first.

    Any number of sessions may share one, also of several models: a digest begins with the model's.
    A state is found again only for the same tokens read in the same chunks, so what is computed
    after it is the same bit for bit.

    Args:
        max_bytes: of all states kept. A state that is larger is not kept.
        folder: keeps them there, for other processes and later days; None keeps them in memory.
    """

    def __init__(self, max_bytes: int = 2**30, folder: AnyPath | None = None) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected a number >= 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self.folder = None if folder is None else Path(folder)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = RLock()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for kept in _found(self.folder):
                self._kept[kept.path[-1]] = kept

    @property
    def nbytes(self) -> int:
        """Bytes of all states kept."""
        return sum(kept.nbytes for kept in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def leads_on(self, digest: str) -> bool:
        """Whether a state is kept that was computed at or after this one."""
        with self._lock:
            return any(digest in kept.path for kept in self._kept.values())

    def get(self, digest: str, model: PreTrainedModel) -> AHNCache | None:
        """A copy of the cache kept for a digest, on the model's devices; None where none is.

        One whose file is damaged is dropped with a warning.
        """
        with self._lock:
            if (kept := self._kept.get(digest)) is None:
                return None
            self._kept.move_to_end(digest)
            if isinstance(kept.place, AHNCache):
                return kept.place.fork()
            return self._loaded(digest, kept.place, model)

    def put(self, path: tuple[str, ...], cache: AHNCache) -> None:
        """Keep a copy of a cache under the last of these digests."""
        digest, nbytes = path[-1], cache.nbytes
        with self._lock:
            if digest in self._kept or nbytes > self.max_bytes:
                return
            while self._kept and self.nbytes + nbytes > self.max_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[digest] = Kept(path, nbytes, self._stored(path, cache))

    def _stored(self, path: tuple[str, ...], cache: AHNCache) -> AHNCache | Path:
        if self.folder is None:
            return cache.fork()
        file = self.folder / (path[-1] + SUFFIX)
        save_session(cache, file, notes={PATH: json.dumps(path)})
        return file

    def _loaded(self, digest: str, file: Path, model: PreTrainedModel) -> AHNCache | None:
        try:
            cache = load_session(file, model)
            os.utime(file)  # used last, for the next process
            return cache
        except FileNotFoundError:  # another process has dropped it
            del self._kept[digest]
        except ValueError as error:
            warnings.warn(f"{error}; what it stood for is read again", stacklevel=2)
            self._drop(digest)
        return None

    def _drop(self, digest: str) -> None:
        place = self._kept.pop(digest).place
        if isinstance(place, Path):
            place.unlink(missing_ok=True)


def _found(folder: Path) -> Iterator[Kept]:
    """States in a folder, the one used longest ago first; files of another kind are left alone."""
    files = {}
    for file in folder.glob("*" + SUFFIX):
        with suppress(OSError):
            files[file] = file.stat().st_mtime
    for file in sorted(files, key=files.__getitem__):
        with suppress(OSError, ValueError, KeyError, TypeError):
            path = tuple(json.loads(json.loads(metadata_of(file)["header"])["notes"][PATH]))
            if path[-1] == file.stem:
                yield Kept(path, tensor_bytes(file), file)
