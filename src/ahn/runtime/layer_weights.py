"""The weights of a decoder layer as the fused step computes with them, and when it can."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ahn.hf.declared import SLOTS
from ahn.hf.families import FAMILIES, Family, family_of
from ahn.hf.hooks import AttentionHook
from ahn.layer.watched import HARMLESS, watchers_of
from ahn.memory import LinearCell, Slots
from ahn.ops.gemv import Linear, Norm, linear_add, norm_swiglu


@dataclass(frozen=True)
class GatedMLP:
    """x + down(silu(gate(n)) * up(n)) of the normed x, as two kernels."""

    norm: Norm
    gate: Linear
    up: Linear
    down: Linear

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[B, D]` to `[B, D]`, which may overwrite `hidden`."""
        inner = norm_swiglu(hidden, self.norm, self.gate, self.up)
        return linear_add(inner, self.down, hidden)


@dataclass(frozen=True)
class OwnMLP:
    """x + mlp(norm(x)) by the model's own modules: a mixture of experts."""

    norm: nn.Module
    mlp: nn.Module

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[B, D]` to `[B, D]`."""
        return hidden + self.mlp(self.norm(hidden[:, None]))[:, 0]


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer's weights, in the order of their use."""

    input_norm: Norm
    qkv: tuple[Linear, ...]
    qk_norms: tuple[Norm, Norm] | None
    memory: LinearCell | None
    slots: Slots | None
    scale: float  # factor on the attention scores
    output: Linear
    mlp: GatedMLP | OwnMLP

    @property
    def score_net(self) -> tuple[Linear, Linear]:
        """The two maps that score a token for the slots."""
        assert self.slots is not None
        first, last = self.slots.net[0], self.slots.net[-1]
        return linear_of(first), linear_of(last)

    @classmethod
    def of(cls, layer: Any) -> LayerWeights:
        """Those of a layer for which `layer_unsupported_reason` has none."""
        family = family_of(layer)
        assert family is not None, "asked before: layer_unsupported_reason"
        query, key, value, output = map(linear_of, _attention_maps(layer, family))
        qk_norms = None
        if family.qk_norms is not None:
            query_norm, key_norm = (getattr(layer.self_attn, name) for name in family.qk_norms)
            qk_norms = (norm_of(query_norm, family), norm_of(key_norm, family))
        return cls(
            input_norm=norm_of(getattr(layer, family.input_norm), family),
            qkv=(query, key, value),
            qk_norms=qk_norms,
            memory=layer.ahn.fn if hasattr(layer, "ahn") else None,
            slots=getattr(layer, SLOTS, None),
            scale=layer.self_attn.scaling,
            output=output,
            mlp=_mlp_of(layer, family),
        )


def layer_unsupported_reason(layer: Any, cell: str | None) -> str | None:
    """What the fused step would need of a layer; None where it can compute it.

    Args:
        cell: name of the cell that every layer is to have; None has none.
    """
    family = family_of(layer)
    if family is None or not family.is_its("DecoderLayer", layer):
        return f"layers of {', '.join(FAMILIES)}, got {type(layer).__name__}"
    if reason := _memory_reason(layer, cell) or hooks_reason(layer.modules()):
        return reason
    mlp_maps = _mlp_maps(layer, family)
    for linear in (*_attention_maps(layer, family), *mlp_maps):
        if type(linear) is not nn.Linear or not linear.weight.is_contiguous():
            return f"plain linear maps, got {type(linear).__name__}"
    if any(linear.bias is not None for linear in mlp_maps[:2]):
        return "an MLP without bias"
    return None


def hooks_reason(modules: Iterable[nn.Module]) -> str | None:
    """Names the first module whose call would be missed, were it computed from its weights."""
    for module in modules:
        if watchers := watchers_of(module, own_hooks=(AttentionHook,)) - HARMLESS:
            return f"no hooks, got {min(watchers)} on {type(module).__name__}"
    return None


def _memory_reason(layer: Any, name: str | None) -> str | None:
    cell = getattr(getattr(layer, "ahn", None), "fn", None)
    if cell is None and name is None:
        return None
    if cell is None or getattr(layer, "ahn_router", None) is not None or cell.q_proj is not None:
        return "a memory in every layer, without router and query map of its own"
    if cell.kernels == "torch" or not isinstance(cell, LinearCell):
        return f"a cell with kernels, got {type(cell).__name__} with kernels={cell.kernels!r}"
    return None


def _attention_maps(layer: Any, family: Family) -> list[Any]:
    """Of query, key, value and output."""
    return [getattr(layer.self_attn, name) for name in family.attention_maps]


def _mlp_of(layer: Any, family: Family) -> GatedMLP | OwnMLP:
    norm, maps = getattr(layer, family.post_attention_norm), _mlp_maps(layer, family)
    if not maps:
        return OwnMLP(norm, getattr(layer, family.mlp))
    return GatedMLP(norm_of(norm, family), *map(linear_of, maps))


def _mlp_maps(layer: Any, family: Family) -> list[Any]:
    """Of gate, up and down; none where a mixture of experts is in the MLP's place."""
    mlp = getattr(layer, family.mlp)
    if not family.is_its("MLP", mlp):
        return []
    return [getattr(mlp, name) for name in family.mlp_maps]


def norm_of(module: Any, family: Family) -> Norm:
    """An RMSNorm of a family as the kernels take it."""
    return Norm(module.weight, getattr(module, family.norm_eps))


def linear_of(module: Any) -> Linear:
    """A linear map as the kernels take it."""
    return Linear(module.weight, module.bias)
