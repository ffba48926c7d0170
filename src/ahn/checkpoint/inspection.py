"""Describes a folder by its JSON files and the headers of its safetensors files alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoint.names import BASE_CONFIG, CONFIG_FILE, MARK
from ahn.checkpoint.settings import read_settings
from ahn.checkpoint.weights import Weights, existing_folder
from ahn.config import AHNConfig
from ahn.io.checksum import read_json
from ahn.io.folder import check_folder
from ahn.io.keys import is_memory
from ahn.io.progress import Report


def inspect(
    path: str | os.PathLike[str], *, verify: bool = False, progress: Report | None = None
) -> dict[str, Any]:
    """Describe a folder: a base, a memory of either layout, or both merged.

    Args:
        verify: also check every file that has a checksum.
        progress: told how many bytes have been read.

    Returns:
        `kind`, `settings` and `base` of the memory, `layers` with one, `parameters` per part
        (`base`, and those of the memory by their names), `dtypes`, `files` and `bytes`.

    Raises ValueError where the folder is damaged, or is none of these.
    """
    folder = existing_folder(path)
    if verify:
        check_folder(folder, progress)
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


def _kind(folder: Path) -> tuple[str, AHNConfig | None, Mapping[str, Any]]:
    """The folder's kind, the settings of its memory, and the recorded facts of its base."""
    config = folder / BASE_CONFIG
    values = read_json(config) if config.is_file() else {}
    if isinstance(values.get("ahn_config"), dict):
        return "merged", AHNConfig.from_dict(values["ahn_config"]), _base_facts(values)
    if MARK in values or (folder / CONFIG_FILE).is_file():
        settings, base, layout = read_settings(folder)
        merged = any(not is_memory(key) for key in Weights.of(folder).files)
        kind = "merged by the original code" if merged else f"memory, {layout} layout"
        return kind, settings, {name: value for name, value in base.items() if value is not None}
    return "base", None, _base_facts(values)


def _base_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that a base's config.json gives."""
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: values[name] for name in names if name in values}


def _part(key: str) -> str:
    """`base`, or the tensor's name within its memory (`o_proj.weight`, `ahn_router.alpha`, ...)."""
    if not is_memory(key):
        return "base"
    return key.partition(".layers.")[2].partition(".")[2].removeprefix("ahn.fn.")
