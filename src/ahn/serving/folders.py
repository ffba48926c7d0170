"""Merged folders, checked before an engine is started over them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahn.checkpoint.weights import Weights, existing_folder
from ahn.io.checksum import read_json
from ahn.io.keys import is_memory
from ahn.serving.limits import settings_of

if TYPE_CHECKING:
    from ahn.config import AHNConfig


def checked_folder(path: Path) -> tuple[Any, AHNConfig]:
    """The config and settings of a sound merged folder; ValueError names what is wrong."""
    from transformers import AutoConfig

    folder = existing_folder(path)
    if not isinstance(read_json(folder / "config.json").get("ahn_config"), dict):
        raise ValueError(f"{path}: expected a base with a memory (ahn merge), got one without")
    import ahn.modeling  # noqa: F401  makes AutoConfig know the folder

    config = AutoConfig.from_pretrained(folder)
    weights = Weights.of(folder)
    if not any(map(is_memory, weights.files)):
        raise ValueError(f"{path}: expected the tensors of a memory, got none")
    weights.memory()
    return config, settings_of(config)
