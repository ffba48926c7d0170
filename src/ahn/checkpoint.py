"""Memories on disk: a folder with `ahn_config.json` and `ahn_model.safetensors`; strict."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ahn.attach import attach, of_model
from ahn.config import AHNConfig
from ahn.files import written_whole

CONFIG_FILE = "ahn_config.json"
WEIGHTS_FILE = "ahn_model.safetensors"
EMBEDDED = "embedded"  # the word for the model that ships with the package
EMBEDDED_FOLDER = Path(__file__).parent / EMBEDDED
PARTS = (".ahn.", ".ahn_router.")  # what tells a memory's key from the base's


def save_pretrained(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write the memory of an attached model, without its base.

    Raises ValueError where nothing is attached.
    """
    settings = of_model(model).config
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    values = {"ahn_config": settings.to_dict(), "base": _base_of(model)}
    with written_whole(target / WEIGHTS_FILE) as temporary:
        save_file(memory_state(model), temporary, metadata={"format": "pt"})
    with written_whole(target / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def from_pretrained(
    base: str | os.PathLike[str],
    memory: str | os.PathLike[str] | None = None,
    *,
    window: int | None = None,
    num_sinks: int | None = None,
    kernels: str = "auto",
    **hf_kwargs: Any,
) -> PreTrainedModel:
    """A base model with a memory attached, in evaluation mode.

    Args:
        base: hub id or folder of a causal language model, or `embedded`.
        memory: folder that `save_pretrained` wrote, or with the embedded base the cell of a
            shipped memory; None gives the plain base model.
        window, num_sinks: win over the memory's own settings.
        kernels: see `attach`.
        hf_kwargs: passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: a file or key is missing, unknown or of another shape; the message names it.
    """
    if base == EMBEDDED:
        base = EMBEDDED_FOLDER / "base"
        shipped = None if memory is None else EMBEDDED_FOLDER / "memories" / memory
        memory = shipped if shipped is not None and shipped.is_dir() else memory
    if memory is None:
        for name, value in (("window", window), ("num_sinks", num_sinks)):
            if value is not None:
                raise ValueError(f"{name}: expected a memory to go with it, got none")
        return AutoModelForCausalLM.from_pretrained(base, **hf_kwargs)
    settings, state = read_memory(memory, window=window, num_sinks=num_sinks)
    model = AutoModelForCausalLM.from_pretrained(base, **hf_kwargs)
    attach(model, settings, kernels=kernels)
    load_memory_state(model, state)
    return model.eval()


def read_memory(
    folder: str | os.PathLike[str], *, window: int | None = None, num_sinks: int | None = None
) -> tuple[AHNConfig, dict[str, Tensor]]:
    """Settings and weights of a memory folder; raises ValueError naming what is wrong."""
    path = Path(folder)
    values = _read_json(path / CONFIG_FILE)
    if not isinstance(values.get("ahn_config"), dict):
        raise ValueError(f"{path / CONFIG_FILE}: expected the key ahn_config, got {list(values)}")
    settings = dict(values["ahn_config"])
    settings |= {} if window is None else {"window": window}
    settings |= {} if num_sinks is None else {"num_sinks": num_sinks}
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise ValueError(f"{path}: expected {WEIGHTS_FILE}, got a folder without it")
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights}: expected a safetensors file, got {error}") from error
    return AHNConfig.from_dict(settings), state


def memory_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The memory's tensors under their released names, on the CPU."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if any(part in name for part in PARTS)
    }


@torch.no_grad()
def load_memory_state(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Copy a memory's tensors into an attached model.

    Raises ValueError for a missing, unknown or misshapen key, before anything is copied.
    """
    own = {n: t for n, t in model.state_dict().items() if any(part in n for part in PARTS)}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"memory: expected the keys of {type(model).__name__}, missing {missing[:3]}, "
            f"unknown {unknown[:3]}"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name}: expected {list(own[name].shape)}, got {list(tensor.shape)}")
    for name, tensor in state.items():
        own[name].copy_(tensor)


def _base_of(model: PreTrainedModel) -> dict[str, Any]:
    """What the memory was made for."""
    config = model.config
    return {
        "model_type": config.model_type.removeprefix("ahn_"),
        "name_or_path": Path(config._name_or_path).name if config._name_or_path else None,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent}: expected {path.name}, got a folder without it")
    try:
        values = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
