"""What a folder holds, and how two differ; tensors are read one at a time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ahn.checkpoint.memory import read_settings
from ahn.checkpoint.names import BASE_CONFIG, CONFIG_FILE, MARK
from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.io.checksum import check_folder, read_json
from ahn.modeling.saving import is_memory

PIECE = 2**22  # numbers compared at a time


@dataclass(frozen=True)
class Difference:
    """Of one tensor that both folders hold; the distance is the largest, None for other shapes."""

    key: str
    left: str  # shape and dtype
    right: str
    distance: float | None


@dataclass(frozen=True)
class Diff:
    """Of two folders; `differing` has the largest distance first."""

    only_left: list[str]
    only_right: list[str]
    differing: list[Difference]
    equal: int  # tensors that are the same, bit for bit

    def __bool__(self) -> bool:
        return bool(self.only_left or self.only_right or self.differing)


def inspect(path: str | os.PathLike[str], *, verify: bool = False) -> dict[str, Any]:
    """What a folder is: a base, a memory of either layout, or both merged.

    Args:
        verify: also read every file that has a checksum, and compare.

    Returns:
        `kind`, `settings` and `base` of the memory, `layers` with one, `parameters` per part
        (`base`, and of the memory by the tensor's own name), `dtypes`, `files` and `bytes`.

    Raises ValueError where the folder is not to be understood or damaged.
    """
    folder = _folder(path)
    if verify:
        check_folder(folder)
    kind, settings, base = _kind(folder)
    weights = Weights.of(folder)
    parameters: Counter[str] = Counter()
    dtypes, layers = set(), set()
    for key, (shape, dtype) in weights.shapes_and_dtypes().items():
        parameters[_part(key)] += math.prod(shape)
        dtypes.add(dtype)
        if is_memory(key):
            layers.add(int(key.partition(".layers.")[2].partition(".")[0]))
    memory = sum(count for part, count in parameters.items() if part != "base")
    return {
        "kind": kind,
        "settings": None if settings is None else settings.to_dict(),
        "base": base,
        "layers": sorted(layers),
        "parameters": dict(sorted(parameters.items())),
        "memory_parameters": memory,
        "dtypes": sorted(dtypes),
        "files": weights.names,
        "bytes": sum((folder / name).stat().st_size for name in weights.names),
    }


def diff(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> Diff:
    """Keys that only one folder holds, and how far apart the others are.

    Raises ValueError where a folder holds no weights in safetensors.
    """
    a, b = Weights.of(_folder(left)), Weights.of(_folder(right))
    shared = sorted(a.files.keys() & b.files.keys())
    left_kinds, right_kinds = a.shapes_and_dtypes(), b.shapes_and_dtypes()
    pairs = ((key, (a, *left_kinds[key]), (b, *right_kinds[key])) for key in shared)
    found = [difference for pair in pairs if (difference := _difference(*pair))]
    found.sort(key=lambda d: -math.inf if d.distance is None else -d.distance)
    return Diff(
        sorted(a.files.keys() - b.files.keys()),
        sorted(b.files.keys() - a.files.keys()),
        found,
        len(shared) - len(found),
    )


_Side = tuple[Weights, list[int], str]  # where a tensor is, its shape and dtype


def _difference(key: str, one_side: _Side, other_side: _Side) -> Difference | None:
    (a, left_shape, left), (b, right_shape, right) = one_side, other_side
    names = f"{left_shape} {left}", f"{right_shape} {right}"
    if left_shape != right_shape:
        return Difference(key, *names, None)
    one, other = a.read(key).flatten(), b.read(key).flatten()
    if left == right and torch.equal(one, other):
        return None
    pieces = zip(one.split(PIECE), other.split(PIECE))
    distance = max((_distance(*pair) for pair in pieces if pair[0].numel()), default=0.0)
    return Difference(key, *names, distance)


def _distance(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder, got {'a file' if folder.exists() else 'none'}"
        )
    return folder


def _kind(folder: Path) -> tuple[str, AHNConfig | None, Mapping[str, Any]]:
    """What the folder is, with the settings of its memory and what is known of its base."""
    config = folder / BASE_CONFIG
    values = read_json(config) if config.is_file() else {}
    if isinstance(values.get("ahn_config"), dict):
        return "merged", AHNConfig.from_dict(values["ahn_config"]), _known(values)
    if MARK in values or (folder / CONFIG_FILE).is_file():
        settings, base, layout = read_settings(folder)
        merged = any(not is_memory(key) for key in Weights.of(folder).files)
        kind = "merged by the original code" if merged else f"memory, {layout} layout"
        return kind, settings, {name: value for name, value in base.items() if value is not None}
    return "base", None, _known(values)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: values[name] for name in names if name in values}


def _part(key: str) -> str:
    """`base`, or the tensor's name within its memory (`o_proj.weight`, `ahn_router.alpha`, ...)."""
    if not is_memory(key):
        return "base"
    return key.partition(".ahn.fn.")[2] or "ahn_router." + key.partition(".ahn_router.")[2]
