"""The weights of a decoder layer as the fused step computes with them, and when it can."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ahn.hf.families import FAMILIES, Family, family_of
from ahn.hf.hooks import AttentionHook
from ahn.layer.watched import HARMLESS, watchers_of
from ahn.memory import LinearCell
from ahn.ops.gemv import Linear, Norm


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer's weights, in the order of their use."""

    input_norm: Norm
    qkv: tuple[Linear, ...]
    qk_norms: tuple[Norm, Norm] | None
    memory: LinearCell
    scale: float  # factor on the attention scores
    output: Linear
    post_attention_norm: Norm
    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, layer: Any) -> LayerWeights:
        """Those of a layer for which `layer_unsupported_reason` has none."""
        family = family_of(layer)
        assert family is not None, "asked before: layer_unsupported_reason"
        query, key, value, output = map(linear_of, _attention_maps(layer, family))
        gate, up, down = map(linear_of, _mlp_maps(layer, family))
        qk_norms = None
        if family.qk_norms is not None:
            query_norm, key_norm = (getattr(layer.self_attn, name) for name in family.qk_norms)
            qk_norms = (norm_of(query_norm, family), norm_of(key_norm, family))
        return cls(
            input_norm=norm_of(getattr(layer, family.input_norm), family),
            qkv=(query, key, value),
            qk_norms=qk_norms,
            memory=layer.ahn.fn,
            scale=layer.self_attn.scaling,
            output=output,
            post_attention_norm=norm_of(getattr(layer, family.post_attention_norm), family),
            gate=gate,
            up=up,
            down=down,
        )


def layer_unsupported_reason(layer: Any) -> str | None:
    """What the fused step would need of a layer; None where it can compute it."""
    family = family_of(layer)
    if family is None or not family.is_its("DecoderLayer", layer):
        return f"layers of {', '.join(FAMILIES)}, got {type(layer).__name__}"
    if reason := _memory_reason(layer) or hooks_reason(layer.modules()):
        return reason
    for linear in (*_attention_maps(layer, family), *_mlp_maps(layer, family)):
        if type(linear) is not nn.Linear or not linear.weight.is_contiguous():
            return f"plain linear maps, got {type(linear).__name__}"
    gate, up, _ = _mlp_maps(layer, family)
    if gate.bias is not None or up.bias is not None:
        return "an MLP without bias"
    return None


def hooks_reason(modules: Iterable[nn.Module]) -> str | None:
    """Names the first module whose call would be missed, were it computed from its weights."""
    for module in modules:
        if watchers := watchers_of(module, own_hooks=(AttentionHook,)) - HARMLESS:
            return f"no hooks, got {min(watchers)} on {type(module).__name__}"
    return None


def _memory_reason(layer: Any) -> str | None:
    cell = getattr(getattr(layer, "ahn", None), "fn", None)
    if cell is None or getattr(layer, "ahn_router", None) is not None or cell.q_proj is not None:
        return "a memory in every layer, without router and query map of its own"
    if cell.kernels == "torch" or not isinstance(cell, LinearCell):
        return f"a cell with kernels, got {type(cell).__name__} with kernels={cell.kernels!r}"
    return None


def _attention_maps(layer: Any, family: Family) -> list[Any]:
    """Of query, key, value and output."""
    return [getattr(layer.self_attn, name) for name in family.attention_maps]


def _mlp_maps(layer: Any, family: Family) -> list[Any]:
    """Of gate, up and down."""
    return [getattr(getattr(layer, family.mlp), name) for name in family.mlp_maps]


def norm_of(module: Any, family: Family) -> Norm:
    """An RMSNorm of a family as the kernels take it."""
    return Norm(module.weight, getattr(module, family.norm_eps))


def linear_of(module: Any) -> Linear:
    """A linear map as the kernels take it."""
    return Linear(module.weight, module.bias)
