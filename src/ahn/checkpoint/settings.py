"""A memory's settings on disk, in our layout and the released one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoint.names import (
    BASE_CONFIG,
    BASE_FACTS,
    BASE_WEIGHTS,
    CONFIG_FILE,
    MARK,
    WEIGHTS_FILE,
    WEIGHTS_SUM,
    WRITTEN_WITH,
)
from ahn.config import AHNConfig
from ahn.io.checksum import CHECKSUM, metadata_of, read_json

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
    """Settings, what is recorded of the base, and the layout of a memory's folder.

    Raises ValueError where the config is missing, or says something else than the weights that were
    written with it.
    """
    is_ours = (folder / CONFIG_FILE).is_file() or not (folder / BASE_CONFIG).is_file()
    path = folder / (CONFIG_FILE if is_ours else BASE_CONFIG)
    layout, values = "ahn" if is_ours else "released", read_json(path)
    settings, base = described(path, values, layout)
    weights = folder / (WEIGHTS_FILE if is_ours else BASE_WEIGHTS)
    metadata = metadata_of(weights) if weights.is_file() else {}
    if WRITTEN_WITH in metadata and CHECKSUM not in metadata:
        raise ValueError(f"{weights}: expected a checksum beside {WRITTEN_WITH}, got none")
    if WRITTEN_WITH in metadata:
        settings, base = _as_written(path, values, (settings, base), weights, metadata)
    elif is_ours and WEIGHTS_SUM in values:  # other tools may rewrite weights of a released layout
        raise ValueError(
            f"{weights}: expected the checksum that {path.name} names, got none or another"
        )
    return settings, base, layout


def described(path: Path, values: Mapping[str, Any], layout: str) -> tuple[AHNConfig, dict]:
    """Settings and base in the config of a memory's folder; ValueError where there are none."""
    if layout == "released":
        if MARK not in values:
            raise ValueError(f"{path.parent}: expected a memory ({MARK} in {path.name}), got none")
        facts = {name: values.get(name) for name in ("_name_or_path", *BASE_FACTS)}
        return from_legacy(values), facts
    for name in ("ahn_config", "base"):
        if not isinstance(values.get(name), dict):
            raise ValueError(f"{path}: expected the key {name}, got {list(values)}")
    return AHNConfig.from_dict(values["ahn_config"]), values["base"]


def to_metadata(settings: AHNConfig, base: Mapping[str, Any]) -> dict[str, str]:
    """The safetensors metadata of a memory: its settings, and facts of its base.

    The base's name is left out: the same memory has the same weights wherever its base was.
    """
    written = {"ahn_config": settings.to_dict(), "base": _facts(base)}
    return {WRITTEN_WITH: json.dumps(written, sort_keys=True)}


def _as_written(
    path: Path,
    values: Mapping[str, Any],
    in_config: tuple[AHNConfig, dict],
    weights: Path,
    metadata: Mapping[str, str],
) -> tuple[AHNConfig, dict]:
    """Settings and base that the weights hold: a save replaces these first, then its config.

    So a save that was killed in between leaves a whole memory, with the config of the one before.
    """
    try:
        written = json.loads(metadata[WRITTEN_WITH])
        in_weights = AHNConfig.from_dict(written["ahn_config"]), written["base"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{weights}: expected settings in its header, got {error}") from error
    if values.get(WEIGHTS_SUM) == metadata.get(CHECKSUM):
        if (in_config[0], _facts(in_config[1])) != in_weights:
            raise ValueError(
                f"{path}: expected the settings and the base that {weights.name} was saved with, "
                "got others (window= and num_sinks= of ahn.from_pretrained win over both)"
            )
        return in_config
    warnings.warn(
        f"{path}: expected the config of {weights.name}, got that of other weights, as a save "
        "leaves that was cut short; the settings are those in the weights",
        stacklevel=2,
    )
    return in_weights


def _facts(base: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a base that decide whether a memory is for it."""
    return {name: base.get(name) for name in BASE_FACTS}


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
    """The same settings under their released names; ValueError for one that has none."""
    values = settings.to_dict()
    if others := sorted(values.keys() - set(LEGACY.values())):
        raise ValueError(
            f"format: expected ahn for a memory with {', '.join(others)}, got released"
        )
    values["full_attention_layers"] = ",".join(map(str, settings.full_attention_layers))
    return {legacy: values[ours] for legacy, ours in LEGACY.items()}


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"fa_layer_ids: expected indices like '0,3', got {text!r}") from None
