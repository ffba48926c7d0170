"""A decoder's step of one new token a row, of one row in six kernels a layer, on plain weights.

For decoders whose layers are known by heart: RMSNorm, attention with rotary halves, RMSNorm, a
gated SiLU MLP. Nothing of a module is called, so what hangs on modules (adapters, hooks, quantised
weights) is a reason to go the general way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ahn.hf.support import decoder_layers, head_dim
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.decode import ring_of
from ahn.layer.modes import Mode
from ahn.memory import LinearCell
from ahn.ops.decoding import NewToken, QKTransform, Ring, fused_decoding, why_not_fused
from ahn.ops.decoding.inputs import StepInputs, embed_and_place
from ahn.ops.gated_norm import FusedCell
from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu

LAYERS = {f"{family}DecoderLayer" for family in ("Qwen2", "Qwen3", "Llama", "Mistral")}


@dataclass(frozen=True)
class Layer:
    """A decoder layer's weights, in the order of their use."""

    before: Norm
    inputs: tuple[Linear, ...]  # query, key, value
    query_norm: Tensor | None
    key_norm: Tensor | None
    eps: float  # of these two
    memory: LinearCell
    scale: float
    output: Linear
    after: Norm
    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, layer: Any) -> Layer:
        """Of a transformers layer that `why_not_fused_step` has nothing against."""
        attention, mlp = layer.self_attn, layer.mlp
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        query_norm, key_norm = (None if norm is None else norm.weight for norm in norms)
        return cls(
            before=_norm(layer.input_layernorm),
            inputs=tuple(map(_map, (attention.q_proj, attention.k_proj, attention.v_proj))),
            query_norm=query_norm,
            key_norm=key_norm,
            eps=0.0 if norms[0] is None else norms[0].variance_epsilon,
            memory=layer.ahn.fn,
            scale=attention.scaling,
            output=_map(attention.o_proj),
            after=_norm(layer.post_attention_layernorm),
            gate=_map(mlp.gate_proj),
            up=_map(mlp.up_proj),
            down=_map(mlp.down_proj),
        )


class FusedDecoder:
    """Reads one new token of every row into a cache.

    Args:
        model: one that `why_not_fused_step` has nothing against.
        cache: that every row has inputs in.
        mode: the memory, or the window alone, see `ahn.layer.modes`.
    """

    def __init__(self, model: Any, cache: AHNCache, mode: Mode) -> None:
        self.model, self.cache, self.mode = model, cache, mode
        self.layers = [Layer.of(layer) for layer in decoder_layers(model)]
        self.head_dim = head_dim(model.config.get_text_config(decoder=True))

    @torch.no_grad()
    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after `token` `[B]`, at `position` `[B or 1]` of each row.

        The positions are advanced in place.
        """
        decoder, settings = self.model.get_decoder(), self.cache.memory_layers[0]
        embedding, rotary = decoder.embed_tokens.weight, decoder.rotary_emb
        frequencies, scaling = rotary.inv_freq, rotary.attention_scaling
        inputs = embed_and_place(
            token, position, embedding, frequencies, scaling, settings.window, settings.num_sinks
        )
        hidden = inputs.hidden
        for layer, cache in zip(self.layers, self.cache.memory_layers):
            hidden = self._read(layer, cache, inputs, hidden)
        return norm_linear(hidden, _norm(decoder.norm), [_map(self.model.lm_head)])

    def _read(
        self, layer: Layer, cache: AHNCacheLayer, inputs: StepInputs, hidden: Tensor
    ) -> Tensor:
        """One layer, `[B, D]` to `[B, D]`."""
        cell = layer.memory.spec() if self.mode.uses_memory else None
        maps = layer.inputs if cell is None else (*layer.inputs, *cell.gate_maps)
        mapped = norm_linear(hidden, layer.before, maps, starts_chain=hidden is inputs.hidden)
        transform = QKTransform(inputs.cos, inputs.sin, layer.query_norm, layer.key_norm, layer.eps)
        token = self._token(mapped, layer, cell, transform)
        read = fused_decoding(token, self._ring(cache, inputs, layer.memory), cell, layer.scale)
        hidden = linear_add(read.flatten(1), layer.output, hidden)
        inner = norm_swiglu(hidden, layer.after, layer.gate, layer.up)
        return linear_add(inner, layer.down, hidden)

    def _token(
        self, mapped: Tensor, layer: Layer, cell: FusedCell | None, transform: QKTransform
    ) -> NewToken:
        """Views of what all maps gave side by side."""
        sizes = [len(one.weight) for one in layer.inputs]
        heads, rest = mapped.split([sum(sizes), mapped.shape[1] - sum(sizes)], dim=1)
        query, key, value = (
            x.unflatten(1, (-1, 1, self.head_dim)) for x in heads.split(sizes, dim=1)
        )
        if cell is None:
            return NewToken(query, key, value, transform=transform)
        gates = rest.unflatten(1, (len(cell.gate_maps), -1)).transpose(1, 2)[:, None]
        return NewToken(query, key, value, None, gates[..., :-1], gates[..., -1], transform)

    def _ring(self, cache: AHNCacheLayer, inputs: StepInputs, memory: LinearCell) -> Ring:
        place = (inputs.ring_index, inputs.filled, inputs.write_mask, cache.keys.shape[2])
        return ring_of(cache, memory if self.mode.uses_memory else None, *place)


def why_not_fused_step(model: Any) -> str | None:
    """What a `FusedDecoder` would need; None where it can run."""
    layers, text = decoder_layers(model), model.config.get_text_config(decoder=True)
    kinds = {type(layer).__name__ for layer in layers}
    if not kinds <= LAYERS:
        return f"layers of {', '.join(sorted(LAYERS))}, got {', '.join(sorted(kinds))}"
    if getattr(text, "hidden_act", None) not in ("silu", "swish"):
        return f"an MLP with SiLU, got {getattr(text, 'hidden_act', None)}"
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None or 2 * rotary.inv_freq.numel() != head_dim(text):
        return "rotary positions over whole heads"
    reasons = (_why_not_layer(layer) for layer in layers)
    return next(filter(None, reasons), None) or _why_not_weights(model)


def _why_not_layer(layer: Any) -> str | None:
    cell = getattr(getattr(layer, "ahn", None), "fn", None)
    if cell is None or getattr(layer, "ahn_router", None) is not None or cell.q_proj is not None:
        return "a memory in every layer, without router and query map of its own"
    if cell.kernels == "torch" or not isinstance(cell, LinearCell):
        return f"a cell with kernels, got {type(cell).__name__} with kernels={cell.kernels!r}"
    for module in layer.modules():
        own = module is layer.self_attn  # has the hook that `attach` put there
        if module._forward_hooks or (module._forward_pre_hooks and not own):
            return f"no hooks on the layers, got some on {type(module).__name__}"
        if hasattr(module, "_hf_hook"):
            return f"weights in place, got {type(module).__name__} with accelerate's hook"
    for linear in _linears(layer):
        if type(linear) is not nn.Linear or not linear.weight.is_contiguous():
            return f"plain linear maps, got {type(linear).__name__}"
    if any(linear.bias is not None for linear in (layer.mlp.gate_proj, layer.mlp.up_proj)):
        return "an MLP without bias"
    return None


def _why_not_weights(model: Any) -> str | None:
    weights = [p for name, p in model.named_parameters() if "rotary" not in name]
    kinds = {(weight.dtype, weight.device) for weight in weights}
    if len(kinds) > 1:
        return f"weights of one dtype on one device, got {len(kinds)} kinds"
    if (most := max(weight.numel() for weight in weights)) >= 2**31:
        return f"weights of fewer than 2^31 numbers, got {most}"
    head = getattr(model, "lm_head", None)
    if type(head) is not nn.Linear or type(model.get_decoder().embed_tokens) is not nn.Embedding:
        return f"a plain embedding and head, got {type(head).__name__}"
    text = model.config.get_text_config(decoder=True)
    like = weights[0].new_empty(1, 1, 1, head_dim(text))
    return why_not_fused(like, like)


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    inner = [getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    return [*(getattr(attention, name) for name in names), *inner]


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, norm.variance_epsilon)


def _map(linear: nn.Linear) -> Linear:
    return Linear(linear.weight, linear.bias)
