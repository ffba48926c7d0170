"""Models that have a short name. A new one is one entry of `NAMED_MODELS`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EMBEDDED = "embedded"  # the model that ships with this package
Name = str | os.PathLike[str]  # of a base or a memory: a short name, a folder, or one on the hub


@dataclass(frozen=True)
class NamedModel:
    """Where a base and the memories for it are, and how they are used.

    Attributes:
        base: folder of the base, as `package/folder` of an installed package.
        memories: folder of the same form with one folder for each memory, named by its cell.
        default_memory: the cell that `ahn generate` takes unless told another.
        dtype: the only one the model is evaluated in; it can be stored in less.
    """

    base: str
    memories: str
    default_memory: str
    dtype: str

    def base_folder(self) -> Path:
        """The base's folder; ValueError where its package is not installed."""
        return _package_folder(self.base)

    def memories_folder(self) -> Path:
        """The folder of all memories; ValueError as `base_folder`."""
        return _package_folder(self.memories)

    def cells(self) -> list[str]:
        """The cells of the memories that come with the model."""
        return sorted(path.name for path in self.memories_folder().iterdir() if path.is_dir())


NAMED_MODELS = {
    EMBEDDED: NamedModel(
        base="ahn.embedded/base",
        memories="ahn.embedded/memories",
        default_memory="GatedDeltaNet",
        dtype="float32",
    ),
}


def resolve(base: Name, memory: Name | None = None) -> tuple[Name, Any]:
    """Folders or hub names for what a user calls a base and a memory.

    A name of `NAMED_MODELS` becomes the base's folder, and with it the name of a cell becomes the
    folder of that memory. Everything else is a folder or a hub name and is returned as it is.

    Raises ValueError where a named model has no memory of that name, or is not installed.
    """
    named = _named(base)
    if named is None:
        return base, memory
    cells = named.cells()
    if memory in cells:
        return named.base_folder(), named.memories_folder() / memory
    if isinstance(memory, str) and "/" not in memory and not Path(memory).is_dir():
        raise ValueError(
            f"memory: expected one of {', '.join(cells)}, a folder or a name on the hub "
            f"(user/name), got {memory!r}"
        )
    return named.base_folder(), memory


def default_memory(base: Name) -> str | None:
    """The cell that a named model answers with unless told another; None for any other base."""
    named = _named(base)
    return None if named is None else named.default_memory


def evaluation_dtype(base: Name, dtype: Any) -> Any:
    """The dtype to evaluate a base in: that of the named model, else the one asked for.

    Raises ValueError where a named model is asked for in another dtype.
    """
    named = _named(base)
    if named is None:
        return dtype
    if dtype not in (None, "auto", named.dtype):
        raise ValueError(f"dtype: expected {named.dtype} for the {base} model, got {dtype!r}")
    return named.dtype


def _named(base: Name) -> NamedModel | None:
    return NAMED_MODELS.get(base) if isinstance(base, str) else None


def _package_folder(place: str) -> Path:
    """The folder that `package/folder` names."""
    package, _, folder = place.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"model: expected the package {package} to be installed, got none")
    return Path(spec.submodule_search_locations[0], folder)
