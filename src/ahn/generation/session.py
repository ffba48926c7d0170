"""Sessions on disk: a cache is saved, and continued later as if it had never stopped."""

from __future__ import annotations

import json
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ahn.io.files import written_whole
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.modes import MODES

FORMAT = "ahn-session-2"  # 1 had the states of a layer without names
COUNTERS = ("seen", "max_padding", "mode")


def save_session(cache: AHNCache, path: str | os.PathLike[str]) -> None:
    """Write a cache as one safetensors file."""
    tensors, counters = {}, []
    for index, layer in enumerate(cache.layers):
        for name, tensor in _tensors(layer).items():
            tensors[f"{index}.{name}"] = tensor.contiguous().clone()  # layers share their padding
        counters.append({name: getattr(layer, name, None) for name in COUNTERS})
    header = {
        "ahn_config": cache.settings,
        "counters": counters,
        "tensors": {name: _kind(tensor) for name, tensor in tensors.items()},
    }
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "header": json.dumps(header)})


def load_session(path: str | os.PathLike[str], model: PreTrainedModel) -> AHNCache:
    """The cache that `save_session` wrote, on the devices of the model's layers.

    Raises ValueError where the file is damaged or no session, or is one of another model.
    """
    cache = AHNCache(model.config)
    try:
        tensors, metadata = _load(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {metadata.get('format')}")
        header = json.loads(metadata["header"])
        _check(header, tensors, cache, model)
        for layer, values in zip(cache.layers, header["counters"], strict=True):
            _restore_counters(layer, values)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: expected a session of this model, got: {error}") from error
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        target: Any = cache.layers[int(index)]
        place = model.get_decoder().layers[int(index)].self_attn.o_proj.weight.device
        # A copy: what is mapped from a file may lie where sums round differently.
        _put(target, name, tensor.to(place, copy=True))
        if name == "keys":
            target.dtype, target.device = tensor.dtype, place
            target.is_initialized = True
    return cache


def _load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _check(
    header: dict[str, Any], tensors: dict[str, Tensor], cache: AHNCache, model: PreTrainedModel
) -> None:
    """Raise ValueError where settings, names, shapes or dtypes are not what they should be."""
    for name in tensors:
        _check_name(name, cache)
    if header["ahn_config"] != cache.settings:
        raise ValueError(f"settings {header['ahn_config']} instead of {cache.settings}")
    got = {name: _kind(tensor) for name, tensor in tensors.items()}
    if got != header["tensors"]:
        raise ValueError(f"tensors {got} instead of {header['tensors']}")
    config: Any = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, tensor in tensors.items():
        if name.endswith((".keys", ".values")):
            heads = (config.num_key_value_heads, head_dim)
            if (tensor.shape[1], tensor.shape[3]) != heads or tensor.dtype != model.dtype:
                raise ValueError(f"{name} of {_kind(tensor)} instead of {heads}, {model.dtype}")
        elif ".states." in name:
            _check_state(name, tensor, header["counters"], model)


def _check_name(name: str, cache: AHNCache) -> None:
    """Raise ValueError where a tensor's name is none that a layer of the cache has."""
    index, _, rest = name.partition(".")
    layer = cache.layers[int(index)] if index.isdigit() and int(index) < len(cache.layers) else None
    kind, _, key = rest.partition(".")
    known = rest in ("keys", "values")
    if isinstance(layer, AHNCacheLayer):
        known = (rest in layer.PLAIN) or (kind in layer.NAMED and key.isidentifier())
    if layer is None or not known:
        raise ValueError(f"tensor {name!r} of no layer of the model")


def _check_state(name: str, tensor: Tensor, counters: Any, model: PreTrainedModel) -> None:
    """Raise ValueError where a state is not one that the layer's memory holds in that mode."""
    index, _, state = name.split(".", 2)
    memory: Any = model.get_decoder().layers[int(index)].ahn.fn
    sizes = (memory.num_heads, memory.num_key_value_heads, memory.head_dim)
    if MODES[counters[int(index)]["mode"]].uses_memory:
        spec = memory.state_specs(*sizes).get(state)
        expected = None if spec is None else spec.shape
        if tuple(tensor.shape[1:]) != expected:
            raise ValueError(f"{state} of {list(tensor.shape[1:])} instead of {expected}")
    elif tensor.shape[1] != memory.num_key_value_heads:
        raise ValueError(f"{tensor.shape[1]} heads instead of {memory.num_key_value_heads}")


def _restore_counters(layer: Any, values: dict[str, Any]) -> None:
    if isinstance(layer, AHNCacheLayer):
        for name in COUNTERS:
            setattr(layer, name, values[name])


def _tensors(layer: Any) -> dict[str, Tensor]:
    if isinstance(layer, AHNCacheLayer):
        return layer.tensors()
    tensors = {name: getattr(layer, name) for name in ("keys", "values")}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _put(layer: Any, name: str, tensor: Tensor) -> None:
    if isinstance(layer, AHNCacheLayer):
        layer.set_tensor(name, tensor)
    else:
        setattr(layer, name, tensor)


def _kind(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype), list(tensor.shape)]
