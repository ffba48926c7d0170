"""Put cells and hooks into a model, and take them out."""

from __future__ import annotations

from typing import Any

import torch

from ahn.config import AHNConfig
from ahn.hf.hooks import AHNLayer, AttentionHook, DecoderHook
from ahn.hf.support import check_supported, decoder_layers, head_dim
from ahn.memory import PositionRouter, build_cell

ATTACHED = "ahn_decoder_hook"  # attribute of the decoder that holds its hook
HANDLES = "ahn_hook_handles"


def attached_state(model: Any) -> DecoderHook:
    """The hook of an attached model; ValueError where nothing is attached."""
    hook = getattr(model.get_decoder(), ATTACHED, None) if hasattr(model, "get_decoder") else None
    if hook is None:
        raise ValueError(f"expected a model with a memory attached, got {type(model).__name__}")
    return hook


def install(model: Any, config: AHNConfig, kernels: str = "auto") -> None:
    """Add a cell to every layer that gets one, and the two kinds of hooks."""
    check_supported(model, config)
    decoder = model.get_decoder()
    handles = []
    layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        if index not in config.full_attention_layers:
            _add_memory(model, layer, config, kernels)
        before = AttentionHook(layer, index, is_last=index == len(layers) - 1)
        handles.append(layer.self_attn.register_forward_pre_hook(before, with_kwargs=True))
    hook = DecoderHook(config)
    handles.append(decoder.register_forward_pre_hook(hook, with_kwargs=True))
    setattr(decoder, ATTACHED, hook)
    setattr(decoder, HANDLES, handles)


def uninstall(model: Any) -> None:
    """Undo `install`."""
    decoder = model.get_decoder()
    for handle in getattr(decoder, HANDLES):
        handle.remove()
    delattr(decoder, HANDLES)
    delattr(decoder, ATTACHED)
    for layer in decoder_layers(model):
        for name in ("ahn", "ahn_router"):
            if hasattr(layer, name):
                delattr(layer, name)


def _add_memory(model: Any, layer: Any, config: AHNConfig, kernels: str) -> None:
    text = model.config.get_text_config(decoder=True)
    cell = build_cell(
        config.memory,
        text.hidden_size,
        text.num_attention_heads,
        head_dim(text),
        use_q_proj=config.use_q_proj,
        kernels=kernels,
    )
    place = _place_of(layer.self_attn.o_proj, model)
    layer.ahn = AHNLayer(cell).to(**place)
    if config.use_router:
        layer.ahn_router = PositionRouter(text.num_attention_heads).to(**place)


def _place_of(linear: Any, model: Any) -> dict[str, Any]:
    """Device and dtype for a cell beside `linear`.

    A quantised or offloaded weight tells neither where nor in what it is computed.
    """
    weight = linear.weight
    hook = getattr(linear, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    dtype = weight.dtype if weight.dtype.is_floating_point else model.dtype
    if not dtype.is_floating_point:
        dtype = torch.float32
    return {"device": weight.device if device is None else device, "dtype": dtype}
