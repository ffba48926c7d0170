"""Sessions on disk: a cache saved, and read on with as if it had never stopped."""

from __future__ import annotations

import json
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ahn.cache import AHNCache
from ahn.cache_layer import BATCHED, AHNCacheLayer
from ahn.files import written_whole

FORMAT = "ahn-session-1"


def save_session(cache: AHNCache, path: str | os.PathLike[str]) -> None:
    """Write a cache as one safetensors file."""
    tensors = {}
    layers: list[dict[str, Any]] = []
    for index, layer in enumerate(cache.layers):
        names = BATCHED if isinstance(layer, AHNCacheLayer) else ("keys", "values")
        for name in names:
            if (tensor := getattr(layer, name)) is not None:
                tensors[f"{index}.{name}"] = tensor.contiguous()
        layers.append(_counters(layer))
    metadata = {"format": FORMAT, "layers": json.dumps(layers)}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_session(path: str | os.PathLike[str], model: PreTrainedModel) -> AHNCache:
    """A cache as `save_session` left it, on the devices of the model's layers.

    Raises ValueError where the file is not a session, or not one of this model's settings.
    """
    cache = AHNCache(model.config)
    decoder_layers = model.get_decoder().layers
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path}: expected a session ({FORMAT}), got another file")
            counters = json.loads(metadata["layers"])
            expected = [_settings(layer) for layer in cache.layers]
            got = [entry["settings"] for entry in counters]
            if got != expected:
                raise ValueError(f"{path}: expected a session of layers {expected}, got {got}")
            for key in file.keys():  # noqa: SIM118
                index, name = key.split(".")
                device = decoder_layers[int(index)].self_attn.o_proj.weight.device
                setattr(cache.layers[int(index)], name, file.get_tensor(key).to(device))
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
    for layer, entry in zip(cache.layers, counters):
        _restore(layer, entry)
    return cache


def _settings(layer: Any) -> list[int] | None:
    """Window and sinks of a layer with a memory, None of one with full attention."""
    return [layer.window, layer.num_sinks] if isinstance(layer, AHNCacheLayer) else None


def _counters(layer: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"settings": _settings(layer)}
    if isinstance(layer, AHNCacheLayer):
        values |= {"seen": layer.seen, "max_padding": layer.max_padding, "mode": layer.mode}
    return values


def _restore(layer: Any, entry: dict[str, Any]) -> None:
    if layer.keys is None:
        return
    layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
    layer.is_initialized = True
    if isinstance(layer, AHNCacheLayer):
        layer.seen, layer.max_padding = entry["seen"], entry["max_padding"]
        layer.mode = entry["mode"]
