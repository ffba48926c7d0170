"""Put cells and hooks into a model, and take them out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ahn.config import AHNConfig
from ahn.hf.attached_state import ATTACHED, AttachedState, attached_state
from ahn.hf.declared import SLOTS
from ahn.hf.decoder_hook import DecoderHook
from ahn.hf.decoder_parts import (
    accepts_keywords,
    attention_of,
    decoder_layers,
    decoder_of,
    output_map,
)
from ahn.hf.frequencies import unpin_frequencies
from ahn.hf.hooks import AHNLayer, AttentionHook, OtherLayerHook
from ahn.hf.model_hook import ModelHook
from ahn.hf.support import check_supported
from ahn.layer.distance import Distance
from ahn.memory import Memory, PositionRouter, Slots, build_memory
from ahn.ops.backends import check_kernels
from ahn.shapes import FULL, OWN_ATTENTION, attention_sizes, layer_types, memory_layers, other_types

HANDLES = "ahn_hook_handles"


def install(model: Any, config: AHNConfig, kernels: str = "auto") -> None:
    """Add a cell to every layer that gets one, and the hooks."""
    check_supported(model, config)
    decoder, text = decoder_of(model), model.config.get_text_config(decoder=True)
    handles = []
    layers, chosen = decoder_layers(model), memory_layers(text, config)
    for index, (layer, layer_type) in enumerate(zip(layers, layer_types(text))):
        if index in chosen:
            _add_memory(model, layer, index, config, kernels)
        for module, hook in _hooks(layer, index, layer_type, index in chosen, len(layers)):
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    head, others = model.get_output_embeddings(), other_types(text, config)
    state = AttachedState(config, kernels, _distance(decoder, config), others, head)
    for module, hook in ((decoder, DecoderHook(state)), (model, ModelHook(state))):
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    setattr(decoder, ATTACHED, state)
    setattr(decoder, HANDLES, handles)


def _hooks(
    layer: Any, index: int, layer_type: str, has_memory: bool, num_layers: int
) -> list[tuple[nn.Module, Any]]:
    """Modules of a layer, and the hook of each."""
    if has_memory or layer_type == FULL:
        is_last = index == num_layers - 1
        return [(attention_of(layer), AttentionHook(layer, index, is_last, has_memory))]
    attention = attention_of(layer) if layer_type in OWN_ATTENTION else None
    return [
        (child, OtherLayerHook(layer_type, child is attention))
        for child in layer.children()
        if accepts_keywords(child)
    ]


def use_kernels(model: Any, kernels: str) -> None:
    """Set the choice of kernels of an attached model, as if it had been attached with it."""
    attached_state(model).kernels = check_kernels(kernels)
    for module in model.modules():
        if isinstance(module, Memory):
            module.kernels = kernels


def uninstall(model: Any) -> None:
    """Undo `install`."""
    decoder = model.get_decoder()
    unpin_frequencies(decoder)
    for handle in getattr(decoder, HANDLES):
        handle.remove()
    delattr(decoder, HANDLES)
    delattr(decoder, ATTACHED)
    for layer in decoder_layers(model):
        for name in ("ahn", "ahn_router", SLOTS):
            if hasattr(layer, name):
                delattr(layer, name)


def _distance(decoder: Any, config: AHNConfig) -> Distance | None:
    if config.slot_distance is None:
        return None
    return Distance(config.slot_distance, config.slot_beyond, getattr(decoder, "rotary_emb", None))


def _add_memory(model: Any, layer: Any, index: int, config: AHNConfig, kernels: str) -> None:
    text = model.config.get_text_config(decoder=True)
    place = _place_of(output_map(attention_of(layer)), model)
    sizes = attention_sizes(text, index)
    slots_of_heads = config.slots_of(index, sizes.groups)
    if any(slots_of_heads):
        slots = Slots(text.hidden_size, slots_of_heads, sizes.head_dim, bits=config.slot_bits)
        slots.reset_parameters()
        # Priorities decide what is kept: they are computed in float32, beside a base of any dtype.
        layer.ahn_slots = slots.to(
            place["device"], torch.promote_types(place["dtype"], torch.float32)
        )
    if config.memory is None:
        return
    memory = build_memory(
        config.memory,
        text.hidden_size,
        sizes.heads,
        sizes.head_dim,
        num_key_value_heads=sizes.groups,
        kernels=kernels,
        **({"use_q_proj": True} if config.use_q_proj else {}),
    )
    layer.ahn = AHNLayer(memory).to(**place)
    if config.use_router:
        layer.ahn_router = PositionRouter(sizes.heads).to(**place)


def _place_of(linear: Any, model: Any) -> dict[str, Any]:
    """Device and dtype for a cell beside `linear`.

    A quantised or offloaded weight tells neither where nor in what it is computed.
    """
    weight = getattr(linear, "weight", None)
    weight = next(linear.parameters()) if weight is None else weight
    hook = getattr(linear, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    dtype = weight.dtype if weight.dtype.is_floating_point else model.dtype
    if not dtype.is_floating_point:
        dtype = torch.float32
    return {"device": weight.device if device is None else device, "dtype": dtype}
