"""What a session holds of each layer of a cache: by what names, shapes, dtypes and counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ahn.generation.layer_content import COUNTERS, FULL, MEMORY, OTHERS, Counters, LayerContent
from ahn.hf.decoder_parts import decoder_layers
from ahn.hf.fingerprint import Fingerprint
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.modes import MODES
from ahn.layer.other_layers import counters_of, set_counters, set_tensor, tensors_of
from ahn.memory import StateSpec

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def content_of(cache: AHNCache) -> tuple[list[Counters], dict[str, Tensor]]:
    """Counters of each layer, and all tensors by `INDEX.NAME`."""
    layers, tensors = [], {}
    for index, layer in enumerate(cache.layers):
        kind = _kind(layer, index)
        layers.append({"kind": kind, **_counters(layer, kind)})
        for name, tensor in _tensors(layer).items():
            tensors[f"{index}.{name}"] = tensor.contiguous().clone()  # layers share their padding
    return layers, tensors


def check_layers(
    cache: AHNCache, layers: Any, tensors: Mapping[str, Tensor], owner: Fingerprint
) -> None:
    """Raise ValueError naming a counter or tensor that is not what these layers hold.

    Args:
        cache: one with such layers; only their kinds and settings count.
        layers, tensors: as `content_of` gives them.
        owner: of the model that wrote them.
    """
    kinds = [_kind(layer, index) for index, layer in enumerate(cache.layers)]
    if not isinstance(layers, list) or [x.get("kind") for x in layers] != kinds:
        raise ValueError(f"layers {layers} instead of {kinds}")
    _check_counters([x for x in layers if x["kind"] == MEMORY])
    first = f"{kinds.index(MEMORY)}.keys"
    if first not in tensors or tensors[first].ndim != 4:
        raise ValueError(f"no {first} of 4 dimensions")
    keys = tensors[first]
    expected: dict[str, StateSpec] = {}
    for index in range(len(layers)):
        found = {name for name in tensors if name.startswith(f"{index}.")}
        kept = (keys.shape[0], keys.dtype, owner, cache.sizes[index])
        content = LayerContent(index, layers[index], *kept)
        named = content.expected(cache, _seen(layers), tensors)
        expected |= named
        if wrong := sorted(found ^ named.keys()):
            what = "none" if wrong[0] in found else "one"
            raise ValueError(f"{wrong[0]}: expected {what}, got {len(found)} tensors of the layer")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"tensor {name!r} of no layer of the model")
        _check_tensor(name, tensor, expected[name], keys.dtype)


def restore(
    cache: AHNCache,
    layers: list[Counters],
    tensors: Mapping[str, Tensor],
    model: PreTrainedModel,
) -> None:
    """Put what `check_layers` has found right into a new cache."""
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        layer: Any = cache.layers[int(index)]
        place = _device(decoder_layers(model)[int(index)])
        # A copy: what is mapped from a file may lie where sums round differently.
        tensor = tensor.to(place, copy=True)
        if isinstance(layer, AHNCacheLayer):
            layer.set_tensor(name, tensor)
        else:
            set_tensor(layer, name, tensor)
        if name == "keys":
            layer.dtype, layer.device, layer.is_initialized = tensor.dtype, place, True
    for layer, counters in zip(cache.layers, layers):
        values = {name: value for name, value in counters.items() if name != "kind"}
        if isinstance(layer, AHNCacheLayer):
            for name in COUNTERS:
                setattr(layer, name, values[name])
        else:
            set_counters(layer, values)


def _counters(layer: Any, kind: str) -> Counters:
    if kind == MEMORY:
        return {name: getattr(layer, name) for name in COUNTERS}
    return {} if kind == FULL else counters_of(layer)


def _kind(layer: Any, index: int) -> str:
    """Raises ValueError for a layer that a session cannot hold."""
    if isinstance(layer, AHNCacheLayer):
        return MEMORY
    if type(layer) is DynamicLayer:
        return FULL
    name = type(layer).__name__
    if name not in OTHERS:
        raise ValueError(f"layer {index}: expected a layer that a session can hold, got a {name}")
    return name


def _tensors(layer: Any) -> dict[str, Tensor]:
    return layer.tensors() if isinstance(layer, AHNCacheLayer) else tensors_of(layer)


def _device(layer: Any) -> torch.device:
    """Where a decoder layer computes; its weights may be offloaded."""
    hook = getattr(layer, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    return next(layer.parameters()).device if place is None else torch.device(place)


def _check_counters(layers: list[Counters]) -> None:
    """All layers with a memory have read the same tokens, in the same mode."""
    for counters in layers:
        for name in ("seen", "max_padding"):
            value = counters.get(name)
            if type(value) is not int or not 0 <= value < 2**62:
                raise ValueError(f"{name} of {value!r} instead of a number of tokens")
        if counters["seen"] < max(1, counters["max_padding"]):
            raise ValueError(f"seen={counters['seen']} of max_padding={counters['max_padding']}")
        mode = MODES.get(counters.get("mode"))  # type: ignore[arg-type]
        if mode is None or not mode.is_bounded:
            raise ValueError(f"mode {counters.get('mode')!r} instead of a bounded one")
    if any(counters != layers[0] for counters in layers):
        raise ValueError(f"counters that differ from layer to layer: {layers}")


def _seen(layers: list[Counters]) -> int:
    return next(x["seen"] for x in layers if x["kind"] == MEMORY)


def _check_tensor(name: str, tensor: Tensor, spec: StateSpec, keys: torch.dtype) -> None:
    """Raise ValueError for another shape or dtype, or numbers that are not finite."""
    if tuple(tensor.shape) != spec.shape:
        raise ValueError(f"{name} of {list(tensor.shape)} instead of {list(spec.shape)}")
    # What waits beside a token has the memory's own dtype, and a model in float64 has states in it.
    allowed = {spec.dtype or keys}
    if spec.dtype is None and ".write_inputs." in name:
        allowed |= set(FLOATS)
    elif spec.dtype == torch.float32 and keys == torch.float64:
        allowed.add(keys)
    if tensor.dtype not in allowed:
        raise ValueError(f"{name} of {tensor.dtype} instead of {spec.dtype or keys}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{name} with numbers that are not finite")
