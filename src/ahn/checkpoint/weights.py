"""Strict reading of safetensors folders, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ahn.checkpoint.names import BASE_WEIGHTS, INDEX, WEIGHTS_FILE, is_memory
from ahn.checksum import check_sum, opened

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Weights:
    """The tensors of a folder: which file holds each; nothing is read until asked for."""

    folder: Path
    files: Mapping[str, str]  # of each key

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """The folder's weights: `ahn_model.safetensors`, `model.safetensors` or its index.

        Raises ValueError naming the file: absent, a pickle, damaged, or with other tensors than
        the index says.
        """
        if (folder / INDEX).is_file() and not (folder / BASE_WEIGHTS).is_file():
            return cls(folder, _indexed(folder))
        for name in (WEIGHTS_FILE, BASE_WEIGHTS):
            if (folder / name).is_file():
                return cls(folder, dict.fromkeys(_keys(folder / name), name))
        found = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        got = f"the pickle {found[0]}, which can run code" if found else "a folder without them"
        raise ValueError(f"{folder}: expected {WEIGHTS_FILE} or {BASE_WEIGHTS}, got {got}")

    @property
    def names(self) -> list[str]:
        """The files, sorted."""
        return sorted(set(self.files.values()))

    def keys_of(self, name: str) -> list[str]:
        """The tensors of one file."""
        return [key for key, file in self.files.items() if file == name]

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        with opened(self.folder / self.files[key]) as file:
            return file.get_tensor(key)

    def read_all(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Several tensors, sorted by name."""
        wanted = set(keys)
        state: dict[str, Tensor] = {}
        for name in sorted({self.files[key] for key in wanted}):
            with opened(self.folder / name) as file:
                state |= {key: file.get_tensor(key) for key in wanted.intersection(file.keys())}
        return dict(sorted(state.items()))

    def shape_and_dtype(self, key: str) -> tuple[list[int], str]:
        """Shape and dtype (`F32`, `BF16`, ...) of a tensor that is not read."""
        with opened(self.folder / self.files[key]) as file:
            part = file.get_slice(key)
            return part.get_shape(), part.get_dtype()

    def memory(self) -> dict[str, Tensor]:
        """The memory's tensors, checked: the checksum where there is one, finite floats else.

        Raises ValueError naming the file or the key.
        """
        keys = [key for key in self.files if is_memory(key)]
        for name in sorted({self.files[key] for key in keys}):
            check_sum(self.folder / name)
        state = self.read_all(keys)
        for key, tensor in state.items():
            if not tensor.is_floating_point() or tensor.element_size() < 2:
                raise ValueError(f"{key}: expected 16 to 64 bit floats, got {tensor.dtype}")
            if not tensor.isfinite().all():
                raise ValueError(f"{key}: expected finite numbers, got others in {self.folder}")
        return state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ValueError naming the file."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: expected {path.name}, got a folder without it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _keys(path: Path) -> list[str]:
    with opened(path) as file:
        return list(file.keys())


def _indexed(folder: Path) -> dict[str, str]:
    """The index's map of keys to files, each of them there, with these tensors and no others."""
    path = folder / INDEX
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{path}: expected a weight_map, got {type(files).__name__}")
    for name in {str(value) for value in files.values()}:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: expected safetensors files of the folder, got {name!r}")
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected {name}, got a folder without it")
        listed = {key for key, file in files.items() if file == name}
        if differing := sorted(listed ^ set(_keys(folder / name))):
            raise ValueError(f"{path}: expected the tensors of {name}, differing {differing[:3]}")
    return files
