"""Strict loading of safetensors folders, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ahn.checkpoint.names import BASE_WEIGHTS, WEIGHTS_FILE
from ahn.io.checksum import check_files, indexed, keys_of, opened, opened_header, uses_index
from ahn.io.keys import is_memory
from ahn.io.progress import Report

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Weights:
    """Which file of a folder holds each tensor; a tensor is loaded when it is asked for."""

    folder: Path
    files: Mapping[str, str]  # of each key

    @classmethod
    def of(cls, folder: Path, names: tuple[str, ...] = (WEIGHTS_FILE, BASE_WEIGHTS)) -> Weights:
        """The folder's weights: those of its index, or the first file of `names` that is there.

        Raises ValueError naming the file: absent, a pickle, damaged, or with other tensors than
        the index says.
        """
        if uses_index(folder):
            return cls(folder, indexed(folder))
        for name in names:
            if (folder / name).is_file():
                return cls(folder, dict.fromkeys(keys_of(folder / name), name))
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        got = f"the pickle {pickles[0]}, which can run code" if pickles else "a folder without them"
        raise ValueError(f"{folder}: expected {' or '.join(names)}, got {got}")

    @property
    def names(self) -> list[str]:
        """The files, sorted."""
        return sorted(set(self.files.values()))

    def keys_of(self, name: str) -> list[str]:
        """The tensors of one file."""
        return [key for key, file in self.files.items() if file == name]

    def load(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        with opened(self.folder / self.files[key]) as file:
            return file.get_tensor(key)

    def load_all(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Several tensors, sorted by name."""
        wanted = set(keys)
        state: dict[str, Tensor] = {}
        for name in sorted({self.files[key] for key in wanted}):
            with opened(self.folder / name) as file:
                state |= {key: file.get_tensor(key) for key in wanted.intersection(file.keys())}
        return dict(sorted(state.items()))

    def shapes_and_dtypes(self) -> dict[str, tuple[list[int], str]]:
        """Shape and dtype (`F32`, `BF16`, ...) of every tensor, from the files' headers."""
        described = {}
        for name in self.names:
            with opened_header(self.folder / name) as file:
                for key in self.keys_of(name):
                    tensor = file.get_slice(key)
                    described[key] = tensor.get_shape(), tensor.get_dtype()
        return described

    def memory(self, report: Report | None = None) -> dict[str, Tensor]:
        """The memory's tensors on the CPU, once they are known to be sound.

        Args:
            report: told how many bytes have been read.

        Raises ValueError that names a file with another checksum than its recorded one, or a tensor
        that is not of finite floats.
        """
        keys = [key for key in self.files if is_memory(key)]
        check_files(self.folder, {self.files[key] for key in keys}, report)
        state = self.load_all(keys)
        for key, tensor in state.items():
            if not tensor.is_floating_point() or tensor.element_size() < 2:
                raise ValueError(f"{key}: expected 16 to 64 bit floats, got {tensor.dtype}")
            if not tensor.isfinite().all():
                raise ValueError(f"{key}: expected finite numbers, got others in {self.folder}")
        return state


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The path of a folder; ValueError where there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder, got {'a file' if folder.exists() else 'none'}"
        )
    return folder
