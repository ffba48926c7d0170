"""Which models can take a memory, and why others cannot."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ahn.config import AHNConfig
from ahn.hf.cache_argument import CACHE, takes_other_name

# Attention modules with these attributes compute more than transformers' attention interface is
# told: what they do with its result, or with the mask.
_OTHER_ATTENTION = {"lambda_q1": "a difference of two", "prepare_dynamic_mask": "a dynamic mask"}


class UnsupportedModel(ValueError):
    """The model cannot have a memory; the message says why."""


def check_supported(model: PreTrainedModel, config: AHNConfig) -> None:
    """Raise UnsupportedModel, with the reason, where `model` cannot have this memory."""
    name = type(model).__name__
    reason = (
        _config_reason(model.config) or _structure_reason(model) or _option_reason(model, config)
    )
    if reason:
        raise UnsupportedModel(f"{name}: expected {reason}")


def decoder_layers(model: PreTrainedModel) -> Any:
    """The decoder's layers in order."""
    return model.get_decoder().layers


def head_dim(config: PreTrainedConfig) -> int:
    """Size of one head's keys and values."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _config_reason(config: PreTrainedConfig) -> str | None:
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        return "a decoder-only model, got an encoder-decoder"
    if getattr(text, "kv_lora_rank", None):
        return "keys and values per head, got multi-head latent attention (kv_lora_rank)"
    if others := set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        return f"full attention in every layer, got layers of type {', '.join(sorted(others))}"
    sliding = getattr(text, "sliding_window", None)
    if sliding is not None and getattr(text, "use_sliding_window", True):
        return f"no sliding window of the model's own, got sliding_window={sliding}"
    if getattr(text, "attn_logit_softcapping", None):
        return "plain softmax attention, got attn_logit_softcapping"
    if getattr(text, "alibi", False):
        return "rotary positions, got ALiBi"
    return None


def _structure_reason(model: PreTrainedModel) -> str | None:
    decoder: Any = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return "a decoder with a list of layers"
    if takes_other_name(decoder):
        return f"{type(decoder).__name__}.forward to call its cache {CACHE}"
    if not getattr(model, "_supports_attention_backend", False):
        return "attention that goes through transformers' AttentionInterface"
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if attention is None or not hasattr(attention, "o_proj"):
            return f"layers with self_attn and o_proj, got {type(layer).__name__}"
        if getattr(attention, "sinks", None) is not None:
            return f"softmax attention without sink logits, got {type(attention).__name__}.sinks"
        for name, kind in _OTHER_ATTENTION.items():
            if hasattr(attention, name):
                return f"plain softmax attention, got {kind} ({type(attention).__name__})"
        for module in (layer, attention):
            if not _takes_keywords(module):
                return f"{type(module).__name__}.forward to pass keyword arguments on"
            if takes_other_name(module):
                return f"{type(module).__name__}.forward to call its cache {CACHE}"
    return None


def _takes_keywords(module: nn.Module) -> bool:
    """Whether `forward` takes any keyword arguments and passes them on to another call."""
    forward = type(module).forward
    parameters = inspect.signature(forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    return bool(names) and inspect.getsource(inspect.unwrap(forward)).count(f"**{names[0]}") > 1


def _option_reason(model: PreTrainedModel, config: AHNConfig) -> str | None:
    layers = decoder_layers(model)
    if missing := [index for index in config.full_attention_layers if index >= len(layers)]:
        return f"full_attention_layers below {len(layers)}, got {missing}"
    if len(config.full_attention_layers) == len(layers):
        return "a layer left for the memory, got all of them in full_attention_layers"
    if config.use_q_proj:
        attention = layers[0].self_attn
        module = inspect.getmodule(type(attention))
        if not hasattr(attention, "q_proj") or not hasattr(module, "apply_rotary_pos_emb"):
            return f"a q_proj and rotary positions for use_q_proj, got {type(attention).__name__}"
    return None
