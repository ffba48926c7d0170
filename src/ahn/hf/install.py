"""Put cells and hooks into a model, and take them out."""

from __future__ import annotations

from typing import Any

import torch

from ahn.config import AHNConfig
from ahn.hf.attached_state import ATTACHED, AttachedState, attached_state
from ahn.hf.hooks import AHNLayer, AttentionHook, DecoderHook, ModelHook
from ahn.hf.support import check_supported, decoder_layers, head_dim
from ahn.memory import Memory, PositionRouter, build_memory
from ahn.ops.backends import check_kernels

HANDLES = "ahn_hook_handles"


def install(model: Any, config: AHNConfig, kernels: str = "auto") -> None:
    """Add a cell to every layer that gets one, and the three kinds of hooks."""
    check_supported(model, config)
    decoder = model.get_decoder()
    handles = []
    layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        if config.has_memory(index):
            _add_memory(model, layer, config, kernels)
        before = AttentionHook(layer, index, is_last=index == len(layers) - 1)
        handles.append(layer.self_attn.register_forward_pre_hook(before, with_kwargs=True))
    state = AttachedState(config, kernels)
    for module, hook in ((decoder, DecoderHook(state)), (model, ModelHook(state))):
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    setattr(decoder, ATTACHED, state)
    setattr(decoder, HANDLES, handles)


def use_kernels(model: Any, kernels: str) -> None:
    """Set the choice of kernels of an attached model, as if it had been attached with it."""
    attached_state(model).kernels = check_kernels(kernels)
    for module in model.modules():
        if isinstance(module, Memory):
            module.kernels = kernels


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
    memory = build_memory(
        config.memory,
        text.hidden_size,
        text.num_attention_heads,
        head_dim(text),
        num_key_value_heads=getattr(text, "num_key_value_heads", None),
        kernels=kernels,
        **({"use_q_proj": True} if config.use_q_proj else {}),
    )
    place = _place_of(layer.self_attn.o_proj, model)
    layer.ahn = AHNLayer(memory).to(**place)
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
