"""A memory on disk, in our layout or the released one; saved atomically, loaded strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ahn.checkpoint.names import (
    BASE_CONFIG,
    BASE_FACTS,
    BASE_WEIGHTS,
    CONFIG_FILE,
    FORMATS,
    WEIGHTS_FILE,
    WEIGHTS_SUM,
)
from ahn.checkpoint.settings import described, read_settings, to_legacy, to_metadata
from ahn.checkpoint.weights import Weights
from ahn.config import AHNConfig
from ahn.hf.attached_state import attached_state
from ahn.io.checksum import has_checksum, write_tensors
from ahn.io.files import write_json
from ahn.io.keys import PREFIX, is_memory
from ahn.shapes import layer_config, unbounded_layers


@dataclass(frozen=True)
class StoredMemory:
    """The content of a memory's folder.

    Attributes:
        settings: cell, window, sinks, ...
        state: tensors by their released names, on the CPU.
        base: the recorded name and revision of the base, and the values of `BASE_FACTS`.
        layout: `ahn` or `released`.
    """

    settings: AHNConfig
    state: dict[str, Tensor]
    base: dict[str, Any]
    layout: str

    def check_base(self, config: PreTrainedConfig) -> None:
        """Raise ValueError where a base of this config is not one the memory was made for."""
        for name, value in base_facts(config).items():
            recorded = self.base.get(name)
            if recorded is not None and recorded != value:
                raise ValueError(f"memory: expected a base with {name}={recorded}, got {value}")


def save_pretrained(
    model: PreTrainedModel, folder: str | os.PathLike[str], *, format: str = "ahn"
) -> None:
    """Write the memory of an attached model, without its base.

    Args:
        folder: made where it is not there.
        format: `ahn`, our layout, or `released`, that of the released checkpoints.

    Raises ValueError where nothing is attached, or the format is neither.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    settings = attached_state(model).config
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_memory(target, memory_state(model), model.config, settings, format)


def write_memory(
    folder: Path,
    state: Mapping[str, Tensor],
    config: PreTrainedConfig,
    settings: AHNConfig,
    layout: str,
) -> None:
    """Write the two files of a memory's folder; `config` is the base's or the attached model's.

    The weights hold settings and base too, and the config names the weights' checksum: whichever of
    the two files a killed write has replaced, what loads is one memory.

    Raises ValueError naming a tensor that is not finite.
    """
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers to save, got others")
    config_name, weights_name = files_of(layout)
    if layout == "released":
        values = released_config(config, settings)  # refuses what that layout has no name for
    else:
        values = {"ahn_config": settings.to_dict(), "base": base_of(config)}
    metadata = to_metadata(*described(folder / config_name, values, layout))
    checksum = write_tensors(folder / weights_name, state, metadata)
    write_json(folder / config_name, {**values, WEIGHTS_SUM: checksum})
    if layout == "released":  # our layout would win over it
        for name in files_of("ahn"):
            (folder / name).unlink(missing_ok=True)


def read_memory(
    folder: str | os.PathLike[str], *, window: int | None = None, num_sinks: int | None = None
) -> StoredMemory:
    """Read a memory's folder of either layout.

    Args:
        window, num_sinks: win over the folder's own.

    Raises:
        ValueError: naming the file or key that is missing, damaged or not of a memory.
    """
    path = Path(folder)
    settings, base, layout = read_settings(path)
    weights = weights_of(path, layout)
    if others := [key for key in weights.files if not is_memory(key)]:
        raise ValueError(f"{path}: expected the tensors of a memory alone, got {others[:3]}")
    if layout == "ahn" and not all(has_checksum(path / name) for name in weights.names):
        raise ValueError(f"{path}: expected weights with a checksum, got them without")
    return StoredMemory(settings.with_budget(window, num_sinks), weights.memory(), base, layout)


def weights_of(folder: Path, layout: str) -> Weights:
    """The weights in a memory's folder of that layout.

    A save in our layout over a released one may have been cut short: its weights are not these.
    """
    return Weights.of(folder) if layout == "ahn" else Weights.of(folder, (BASE_WEIGHTS,))


def files_of(layout: str) -> tuple[str, str]:
    """Names of a layout's config and weights."""
    return (CONFIG_FILE, WEIGHTS_FILE) if layout == "ahn" else (BASE_CONFIG, BASE_WEIGHTS)


def memory_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The memory's tensors under their released names, on the CPU."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if is_memory(name)
    }


@torch.no_grad()
def load_memory_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy a memory's tensors into an attached model.

    Raises ValueError before any copy: as `check_keys`, or naming a tensor with numbers too large
    for the model's dtype.
    """
    target = {name: tensor for name, tensor in model.state_dict().items() if is_memory(name)}
    check_keys(target, state)
    for name, tensor in state.items():
        dtype = target[name].dtype
        if not tensor.to(dtype).isfinite().all():
            raise ValueError(f"{name}: expected numbers that {dtype} can hold, got larger ones")
    for name, tensor in state.items():
        target[name].copy_(tensor)


def check_keys(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError that names a missing, unknown or misshapen tensor."""
    missing, unknown = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"memory: expected the keys of its cell and base, missing {missing[:3]}, "
            f"unknown {unknown[:3]}"
        )
    for name, tensor in state.items():
        shape = expected[name].shape
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")


def base_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of a base's config that a memory depends on, of the layers that can have one."""
    text = config.get_text_config(decoder=True)
    own = layer_config(text, unbounded_layers(text)[0])
    facts = {name: getattr(own, name, None) for name in BASE_FACTS}
    return {**facts, "model_type": config.model_type.removeprefix(PREFIX)}


def base_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The base's facts that our layout records; a local folder's path is cut to its last part."""
    name = config._name_or_path or None
    local = name is not None and Path(name).exists()
    return {
        "name_or_path": Path(name).name if name and local else name,
        "revision": getattr(config, "_commit_hash", None),
        **base_facts(config),
    }


def released_config(config: PreTrainedConfig, settings: AHNConfig) -> dict[str, Any]:
    """A config.json of the released layout: the base's values and the settings' released names."""
    values = config.to_dict()
    for name in ("ahn_config", "auto_map", "architectures", WEIGHTS_SUM):
        values.pop(name, None)
    return {**values, "model_type": base_facts(config)["model_type"], **to_legacy(settings)}
