"""Which models can take a memory, and why others cannot."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    __version__,
)

from ahn.config import AHNConfig
from ahn.hf.cache_argument import CACHE, takes_other_name
from ahn.hf.decoder_parts import (
    accepts_keywords,
    asks_interface,
    attention_of,
    begins_anew,
    decoder_layers,
    decoder_of,
    output_map,
    own_cache,
    passes_keywords,
)
from ahn.hf.frequencies import MOVING, frequencies_unsupported_reason
from ahn.shapes import (
    FULL,
    NO_MIXER,
    OWN_ATTENTION,
    RECURRENT,
    AttentionSizes,
    attention_sizes,
    layer_types,
    layer_values,
    memory_layers,
    own_window,
    unbounded_layers,
)

# Attention modules with these attributes compute more than transformers' attention interface is
# told: what they do with its result, or with the mask.
_OTHER_ATTENTION = {"lambda_q1": "a difference of two", "prepare_dynamic_mask": "a dynamic mask"}
_RECURRENT_PARTS = ("mamba", "linear_attn", "conv")  # of a layer


class UnsupportedModel(ValueError):
    """The model cannot have a memory; the message says why."""


def check_supported(model: PreTrainedModel, config: AHNConfig) -> None:
    """Raise UnsupportedModel, with the reason, where `model` cannot have this memory."""
    name = type(model).__name__
    reason = (
        _generation_reason(model)
        or _config_reason(model.config, config)
        or _structure_reason(model)
        or _option_reason(model, config)
    )
    if reason:
        raise UnsupportedModel(f"{name}: expected {reason}")


def _generation_reason(model: PreTrainedModel) -> str | None:
    if isinstance(model, GenerationMixin):
        return None
    return "a model that generates token by token (GenerationMixin)"


def _config_reason(config: PreTrainedConfig, settings: AHNConfig) -> str | None:
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        return "a decoder-only model, got an encoder-decoder"
    if not hasattr(text, "num_hidden_layers"):
        return f"a config that counts its layers, got {type(text).__name__}"
    if any(layer_values(text, "kv_lora_rank")):
        return "keys and values per head, got multi-head latent attention (kv_lora_rank)"
    if sharing := getattr(text, "num_kv_shared_layers", None):
        return f"keys and values of each layer's own, got num_kv_shared_layers={sharing}"
    if reason := _layer_types_reason(text, settings):
        return reason
    if any(layer_values(text, "attn_logit_softcapping")):
        return "plain softmax attention, got attn_logit_softcapping"
    # Gemma 4 says "vision": tokens of an image see each other, text does not.
    if (ahead := getattr(text, "use_bidirectional_attention", None)) not in (None, False, "vision"):
        return f"causal attention, got use_bidirectional_attention={ahead}"
    if getattr(text, "alibi", False):
        return "rotary positions, got ALiBi"
    return None


def _layer_types_reason(text: PreTrainedConfig, settings: AHNConfig) -> str | None:
    types = layer_types(text)
    if unknown := set(types) - {FULL, *OWN_ATTENTION, *RECURRENT, *NO_MIXER}:
        return f"layers with full attention or bounded ones, got {', '.join(sorted(unknown))}"
    if not unbounded_layers(text):
        return f"a layer with full attention, got {', '.join(sorted(set(types)))}"
    window, largest = own_window(text), max(settings.windows or (settings.window,))
    if window is not None and largest + settings.num_sinks > window:
        return (
            f"window + num_sinks of at most the model's own sliding_window={window}, "
            f"got {largest + settings.num_sinks}"
        )
    cached = DynamicCache(config=text).layers
    for name, layer in zip(types, cached):
        if name in RECURRENT and not hasattr(layer, "recurrent_states"):
            return f"a transformers whose caches hold {name} layers, got {__version__}"
    return None


def _structure_reason(model: PreTrainedModel) -> str | None:
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return f"a decoder that holds its layers in `layers`, got {type(decoder).__name__}"
    if (own := own_cache(decoder)) is not None:
        return f"a decoder that takes transformers' common caches, got one that makes a {own}"
    if hasattr(decoder, "embed_positions"):
        return f"rotary positions or none, got embeddings of them ({type(decoder).__name__})"
    if takes_other_name(decoder):
        return f"{type(decoder).__name__}.forward to call its cache {CACHE}"
    text = model.config.get_text_config(decoder=True)
    if reason := frequencies_unsupported_reason(decoder):
        return reason
    unbounded = unbounded_layers(text)
    for index, (layer, layer_type) in enumerate(zip(layers, layer_types(text))):
        if reason := _layer_reason(layer, layer_type, index in unbounded):
            return reason
    return None


def _layer_reason(layer: Any, layer_type: str, is_unbounded: bool) -> str | None:
    name, attention = type(layer).__name__, attention_of(layer)
    if not is_unbounded:
        if layer_type in RECURRENT and (module := begins_anew(layer)) is not None:
            return f"recurrences that go on from a cache in chunks, got {type(module).__name__}"
        if (layer_type in OWN_ATTENTION and attention is None) or not accepts_keywords(layer):
            return f"{name}.forward with self_attn and keyword arguments"
        return None
    if attention is None or output_map(attention) is None:
        return f"layers with self_attn and o_proj, got {name}"
    if beside := [part for part in _RECURRENT_PARTS if getattr(layer, part, None) is not None]:
        return f"layers with attention alone, got {name} with {beside[0]}"
    if not asks_interface(attention):
        return "attention that goes through transformers' AttentionInterface"
    for attribute, kind in _OTHER_ATTENTION.items():
        if hasattr(attention, attribute):
            return f"plain softmax attention, got {kind} ({type(attention).__name__})"
    for module in (layer, attention):
        if not passes_keywords(module):
            return f"{type(module).__name__}.forward to pass keyword arguments on"
        if takes_other_name(module):
            return f"{type(module).__name__}.forward to call its cache {CACHE}"
    return None


def _option_reason(model: PreTrainedModel, config: AHNConfig) -> str | None:
    text = model.config.get_text_config(decoder=True)
    types, unbounded = layer_types(text), unbounded_layers(text)
    if missing := [index for index in config.full_attention_layers if index >= len(types)]:
        return f"full_attention_layers below {len(types)}, got {missing}"
    if others := {x: types[x] for x in config.full_attention_layers if x not in unbounded}:
        return f"full_attention_layers that have full attention, got {others}"
    if set(config.full_attention_layers) == set(unbounded):
        return "a layer left for the memory, got all of them in full_attention_layers"
    if reason := _shares_reason(model, config):
        return reason
    if config.use_q_proj:
        attention = attention_of(decoder_layers(model)[unbounded[0]])
        return _query_map_reason(attention, attention_sizes(text, unbounded[0]))
    return None


def _query_map_reason(attention: Any, sizes: AttentionSizes) -> str | None:
    """Why a memory cannot have its own map of a layer's queries before RoPE."""
    name, linear = type(attention).__name__, getattr(attention, "q_proj", None)
    if linear is None or not hasattr(inspect.getmodule(type(attention)), "apply_rotary_pos_emb"):
        return f"a q_proj and rotary positions for use_q_proj, got {name}"
    width = getattr(linear, "out_features", None)
    if width != sizes.heads * sizes.head_dim:
        return f"a q_proj of queries alone for use_q_proj, got {width} outputs ({name})"
    return None


def _shares_reason(model: PreTrainedModel, config: AHNConfig) -> str | None:
    """What slots and shares would need of the model's layers and heads; None where they fit."""
    text, layers = model.config.get_text_config(decoder=True), len(decoder_layers(model))
    chosen = memory_layers(text, config)
    sizes = {attention_sizes(text, index) for index in chosen}
    heads = {x.groups for x in sizes}
    if config.slot_shares is not None:
        got = [len(config.slot_shares), len(config.slot_shares[0])]
        if [layers] != got[:1] or heads != set(got[1:]):
            return f"slot_shares of [layers, key heads] = {[layers, *sorted(heads)]}, got {got}"
    if config.window_shares is not None and len(config.window_shares) != layers:
        return f"window_shares of {layers} layers, got {len(config.window_shares)}"
    for index, share in enumerate(config.window_shares or ()):
        if index in chosen and not share:
            return f"window_shares above 0 in layers with a memory, got 0 in layer {index}"
        if index not in chosen and share:
            return f"window_shares of 0 in layers without a memory, got {share:g} in layer {index}"
    if config.slot_distance is not None and config.slot_beyond == "clamp":
        return _turning_reason(model, chosen)
    odd = [x.head_dim for x in sizes if x.head_dim % 2]
    if config.slots and config.slot_bits == 4 and odd:
        return f"an even head size for slot_bits=4, got {odd[0]}"
    return None


def _turning_reason(model: PreTrainedModel, chosen: list[int]) -> str | None:
    """Why keys cannot be turned to another position; None where they can."""
    decoder = decoder_of(model)
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    rope_type = getattr(getattr(decoder, "rotary_emb", None), "rope_type", None)
    if not isinstance(rope_type, str) or rope.get("rope_type") in MOVING:
        return f"rotary positions that do not change with length for slot_distance, got {rope}"
    for index in chosen:
        attention = attention_of(decoder_layers(model)[index])
        rotates = hasattr(inspect.getmodule(type(attention)), "apply_rotary_pos_emb")
        if not rotates or not getattr(attention, "use_rope", True):
            return f"rotary positions for slot_distance, got {type(attention).__name__}"
    return None
