"""Take the memory out of a merged folder again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ahn.checkpoint.memory import files_of, write_memory
from ahn.checkpoint.names import (
    BASE_CONFIG,
    CONFIG_FILE,
    FORMATS,
    MARK,
    RELEASED_CONFIG,
)
from ahn.checkpoint.settings import from_legacy, read_settings
from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.io.checksum import read_json
from ahn.io.files import folder_written_whole
from ahn.io.keys import is_memory
from ahn.io.progress import Report


def split(
    merged: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    progress: Report | None = None,
) -> None:
    """Write the memory of a merged folder to a separate folder: the one that `merge` was given.

    Args:
        merged: a folder of `merge`, of an attached model's `save_pretrained`, or merged by the
            original code.
        out: a new or empty folder, which appears when it is complete.
        format: `ahn` or `released`; None takes the layout that was merged, else ours.
        progress: told how many bytes have been read.

    Raises ValueError where the folder holds no memory, or is damaged.
    """
    if format not in (None, *FORMATS):
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    source = Path(merged)
    settings, config = _merged_settings(source)
    weights = Weights.of(source)
    state = weights.memory(progress)
    original = _original_config(source, settings)
    layout = format or (original[0] if original else "ahn")
    names = {weights.files[key] for key in state}
    in_one_file = len(names) == 1 and all(map(is_memory, weights.keys_of(next(iter(names)))))
    with folder_written_whole(out) as target:
        if original and in_one_file and original[0] == layout:
            config_name, weights_name = files_of(layout)
            shutil.copyfile(original[1], target / config_name)
            shutil.copyfile(source / next(iter(names)), target / weights_name)
        else:
            write_memory(target, state, config, settings, layout)


def _merged_settings(folder: Path) -> tuple[AHNConfig, Any]:
    """Settings and config of a merged folder, ours or the original code's."""
    values = read_json(folder / BASE_CONFIG)
    if isinstance(values.get("ahn_config"), dict):
        return AHNConfig.from_dict(values["ahn_config"]), AutoConfig.from_pretrained(folder)
    if MARK in values:
        return read_settings(folder)[0], AutoConfig.from_pretrained(folder)
    raise ValueError(f"{folder}: expected a base merged with a memory, got one without")


def _original_config(folder: Path, settings: AHNConfig) -> tuple[str, Path] | None:
    """Layout and config of the memory that was merged, where the settings are still the same."""
    ours, released = folder / CONFIG_FILE, folder / RELEASED_CONFIG
    if ours.is_file() and AHNConfig.from_dict(read_json(ours).get("ahn_config", {})) == settings:
        return "ahn", ours
    if released.is_file() and from_legacy(read_json(released)) == settings:
        return "released", released
    return None
