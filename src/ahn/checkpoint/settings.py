"""A memory's settings on disk, in our layout and the released one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoint.names import BASE_CONFIG, BASE_FACTS, CONFIG_FILE, MARK
from ahn.config import AHNConfig
from ahn.io.checksum import read_json

# Settings by their names in released checkpoints. Their config.json is read as plain JSON, since
# transformers' config class drops `sliding_window`.
LEGACY = {
    MARK: "memory",
    "sliding_window": "window",
    "num_attn_sinks": "num_sinks",
    "fa_layer_ids": "full_attention_layers",
    "use_q_proj": "use_q_proj",
    "use_ahn_router": "use_router",
}


def read_settings(folder: Path) -> tuple[AHNConfig, dict[str, Any], str]:
    """Settings, what is recorded of the base, and the layout of a memory's folder."""
    if not (folder / CONFIG_FILE).is_file() and (folder / BASE_CONFIG).is_file():
        values = read_json(folder / BASE_CONFIG)
        if MARK not in values:
            raise ValueError(f"{folder}: expected a memory ({MARK} in {BASE_CONFIG}), got none")
        facts = {name: values.get(name) for name in ("_name_or_path", *BASE_FACTS)}
        return from_legacy(values), facts, "released"
    values = read_json(folder / CONFIG_FILE)
    for name in ("ahn_config", "base"):
        if not isinstance(values.get(name), dict):
            raise ValueError(f"{folder / CONFIG_FILE}: expected the key {name}, got {list(values)}")
    return AHNConfig.from_dict(values["ahn_config"]), values["base"], "ahn"


def from_legacy(values: Mapping[str, Any]) -> AHNConfig:
    """The settings in a released config.json; a missing one has our default.

    The window may be that of training; the caller can give another. Raises ValueError for a value
    that is not a setting.
    """
    settings = {ours: values[legacy] for legacy, ours in LEGACY.items()
             if values.get(legacy) is not None}  # fmt: skip
    layers = settings.get("full_attention_layers")
    if isinstance(layers, str):
        settings["full_attention_layers"] = _indices(layers)
    return AHNConfig.from_dict(settings)


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
