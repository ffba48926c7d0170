"""Tiny configs for any class of transformers: the sizes under every name that families know."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ahn.shapes import FULL, SLIDING, layer_types

LAYERS, OWN_WINDOW = 4, 8
REPLACED_WINDOW = 24  # of a model that slides in every layer: more than the budget that is tried
TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_num_shared_experts": 1,
    "shared_intermediate_size": 32,
    "intermediate_size_mlp": 96,
    # Embeddings of each layer.
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 97,
    # Latent attention.
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    # Recurrences.
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_n_groups": 1,
    "ssm_state_size": 16,
    "n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    # GPT's names.
    "n_embd": 64,
    "n_head": 4,
    "n_layer": LAYERS,
    "n_positions": 4096,
    "n_inner": 96,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": LAYERS,
    "max_seq_len": 4096,
    "attention_chunk_size": OWN_WINDOW,
    # Gemma 4's layers with full attention.
    "num_global_key_value_heads": 2,
    "global_head_dim": 16,
}
OTHER: dict[str, Any] = {  # what sees or hears
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 56,
    "patch_size": 14,
    "depth": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
}


def tiny_config(config_class: type[PreTrainedConfig], more: dict[str, Any]) -> PreTrainedConfig:
    """A config of tiny sizes; those of `more` go first."""
    values = _values(config_class(), TEXT, more)
    config = config_class(**values)
    text = config.get_text_config(decoder=True)
    if (window := _window(text)) is None or "sliding_window" in str(more):
        return config
    if text is config:
        return config_class(**{**values, "sliding_window": window})
    for name in config.sub_configs:
        if getattr(config, name, None) is text:
            values[name] = {**values[name], "sliding_window": window}
    return config_class(**values)


def _rope(default: PreTrainedConfig) -> dict[str, Any] | None:
    """Rotary parameters with sections of time, height and width for a tiny head, if it has such."""
    rope = getattr(default, "rope_parameters", None) or {}
    if "mrope_section" not in rope:
        return None
    pairs = int(TEXT["head_dim"] * rope.get("partial_rotary_factor", 1) / 2)
    third = pairs * 3 // 8
    return {**rope, "mrope_section": [pairs - 2 * third, third, third]}


def _window(text: PreTrainedConfig) -> int | None:
    """A window that makes sliding layers forget within a short text; None without such layers."""
    if not hasattr(text, "num_hidden_layers"):
        return None
    types = set(layer_types(text))
    if SLIDING not in types or not hasattr(text, "sliding_window"):
        return None
    return OWN_WINDOW if FULL in types else REPLACED_WINDOW


def _values(default: PreTrainedConfig, sizes: dict[str, Any], more: dict[str, Any]) -> dict:
    fields = {*default.to_dict(), *(getattr(type(default), "attribute_map", None) or {})}
    values = {name: value for name, value in sizes.items() if name in fields}
    if "qk_rope_head_dim" in values:
        values.pop("head_dim", None)  # it is that of the rotated part
    if rope := _rope(default):
        values["rope_parameters"] = rope
    text = default.get_text_config(decoder=True)
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig) and part is not default:
            own = more.get(name, {})
            values[name] = _values(part, TEXT if part is text else OTHER, own)
            if AutoConfig in (default.sub_configs[name],):
                values[name]["model_type"] = part.model_type
    return {**values, **{k: v for k, v in more.items() if k not in default.sub_configs}}
