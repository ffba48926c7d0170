"""Names on disk: files, keys, and what released checkpoints call the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.config import AHNConfig
from ahn.io.checksum import WHOLE

EMBEDDED = "embedded"  # the word for the model that ships with the package
EMBEDDED_FOLDER = Path(__file__).parents[1] / EMBEDDED

BASE_CONFIG, BASE_WEIGHTS = "config.json", WHOLE  # as transformers names them
CONFIG_FILE, WEIGHTS_FILE = "ahn_config.json", "ahn_model.safetensors"
RELEASED_CONFIG = "ahn_released_config.json"  # a released memory's config.json in a merged folder
FORMATS = ("ahn", "released")

MARK = "_ahn_implementation"  # in a config.json of the released layout

# Settings by their names in released checkpoints (config.json, read raw: transformers' own config
# class drops `sliding_window`).
LEGACY = {
    MARK: "memory",
    "sliding_window": "window",
    "num_attn_sinks": "num_sinks",
    "fa_layer_ids": "full_attention_layers",
    "use_q_proj": "use_q_proj",
    "use_ahn_router": "use_router",
}
# Values of a base's config that a memory's shapes and meaning depend on.
BASE_FACTS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def embedded_folders(base: Any, memory: Any) -> tuple[Any, Any]:
    """Base and memory with the folders of what ships with the package in place of their names."""
    if base != EMBEDDED:
        return base, memory
    shipped = EMBEDDED_FOLDER / "memories" / memory if memory else None
    return EMBEDDED_FOLDER / "base", shipped if shipped is not None and shipped.is_dir() else memory


def from_legacy(values: Mapping[str, Any]) -> AHNConfig:
    """Settings in a released config.json; what it leaves out has our defaults.

    The window may be one of training: whoever loads can give another. Raises ValueError for a
    value that is not a setting.
    """
    found = {ours: values[legacy] for legacy, ours in LEGACY.items()
             if values.get(legacy) is not None}  # fmt: skip
    layers = found.get("full_attention_layers")
    if isinstance(layers, str):
        found["full_attention_layers"] = _indices(layers)
    return AHNConfig.from_dict(found)


def to_legacy(settings: AHNConfig) -> dict[str, Any]:
    """The same settings under their released names."""
    values = settings.to_dict()
    values["full_attention_layers"] = ",".join(map(str, settings.full_attention_layers))
    return {legacy: values[ours] for legacy, ours in LEGACY.items()}


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"fa_layer_ids: expected indices like '0,3', got {text!r}") from None
