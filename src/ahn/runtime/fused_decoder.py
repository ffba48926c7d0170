"""A decoder's forward of one new token a row, on plain weights: six kernels a layer at batch 1.

It knows the families of `ahn.hf.families` and calls none of the model's modules. Whatever hangs on
a module (an adapter, a hook, quantised weights) is therefore a reason not to run it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ahn.hf.attached_state import attached_state
from ahn.hf.declared import SLOTS
from ahn.hf.decoder_parts import decoder_layers
from ahn.hf.families import family_of, has_silu
from ahn.layer.cache import AHNCache
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.decode import ring_of, slots_of
from ahn.layer.modes import Mode
from ahn.ops.backends import unsupported_reason
from ahn.ops.decoding import Leaving, NewToken, QKTransform, StepInsertion, fused_decoding
from ahn.ops.decoding.inputs import StepInputs, embed_and_place
from ahn.ops.gated_norm import CellSpec
from ahn.ops.gemv import linear_add, norm_linear, norm_net
from ahn.runtime.layer_weights import (
    LayerWeights,
    hooks_reason,
    layer_unsupported_reason,
    linear_of,
    norm_of,
)
from ahn.shapes import attention_sizes


class FusedDecoder:
    """Reads one new token of every row into a cache.

    Args:
        model: one for which `fused_unsupported_reason` has none.
        cache: it has read at least one token of every row.
        mode: the memory, or the window alone, see `ahn.layer.modes`.
    """

    def __init__(self, model: Any, cache: AHNCache, mode: Mode) -> None:
        decoder, layers = model.get_decoder(), decoder_layers(model)
        family = family_of(layers[0])
        assert family is not None, "asked before: fused_unsupported_reason"
        self.cache, self.uses_memory = cache, mode.uses_memory
        self.layers = [LayerWeights.of(layer) for layer in layers]
        self.insert_evicted = StepInsertion()
        self.final_norm, self.head = norm_of(decoder.norm, family), linear_of(model.lm_head)
        self.embedding, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.head_dim = attention_sizes(model.config.get_text_config(decoder=True), 0).head_dim

    @torch.no_grad()
    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after `token` `[B]`, at `position` `[B or 1]` of each row.

        The positions are advanced in place.
        """
        settings = self.cache.memory_layers[0]
        inputs = embed_and_place(
            token,
            position,
            self.embedding.weight,
            self.rotary.inv_freq,
            self.rotary.attention_scaling,
            settings.window,
            settings.num_sinks,
        )
        self._insert_evicted(inputs, position)
        hidden = inputs.hidden
        for layer, cache in zip(self.layers, self.cache.memory_layers):
            hidden = self._layer(layer, cache, inputs, hidden)
        return norm_linear(hidden, self.final_norm, [self.head])

    def _insert_evicted(self, inputs: StepInputs, position: Tensor) -> None:
        """Move the token that leaves into the slots of all layers; positions have been advanced."""
        if not self.uses_memory:
            return
        layers = zip(self.layers, self.cache.memory_layers)
        held = [slots_of(cache, layer.slots) for layer, cache in layers if layer.slots is not None]
        if held:
            offset = -self.cache.memory_layers[0].window - 1
            leaving = Leaving(inputs.ring_index, inputs.write_mask, position, offset)
            self.insert_evicted(held, leaving)

    def _layer(
        self, layer: LayerWeights, cache: AHNCacheLayer, inputs: StepInputs, hidden: Tensor
    ) -> Tensor:
        """One decoder layer, `[B, D]` to `[B, D]`."""
        memory = layer.memory if self.uses_memory else None
        cell = None if memory is None else memory.spec()
        maps = layer.qkv if cell is None else (*layer.qkv, *cell.gate_maps)
        is_first = hidden is inputs.hidden
        mapped = norm_linear(hidden, layer.input_norm, maps, starts_chain=is_first)
        token = self._new_token(mapped, layer, cell, inputs)
        place = (inputs.ring_index, inputs.filled, inputs.write_mask, cache.keys.shape[2])
        ring = ring_of(cache, memory, *place)
        if self.uses_memory and layer.slots is not None:
            held = slots_of(cache, layer.slots)
            scores = norm_net(hidden, layer.input_norm, *layer.score_net)
            token = replace(token, scores=scores)
            ring = replace(ring, slots=held.slots, scores=held.scores)
        attended = fused_decoding(token, ring, cell, layer.scale)
        return layer.mlp(linear_add(attended.flatten(1), layer.output, hidden))

    def _new_token(
        self, mapped: Tensor, layer: LayerWeights, cell: CellSpec | None, inputs: StepInputs
    ) -> NewToken:
        """Views of the maps' outputs, which lie side by side in `mapped`."""
        sizes = [len(linear.weight) for linear in layer.qkv]
        heads, gates = mapped.split([sum(sizes), mapped.shape[1] - sum(sizes)], dim=1)
        query, key, value = (
            x.unflatten(1, (-1, 1, self.head_dim)) for x in heads.split(sizes, dim=1)
        )
        transform = QKTransform(inputs.cos, inputs.sin)
        if layer.qk_norms is not None:
            query_norm, key_norm = layer.qk_norms
            weights = (query_norm.weight, key_norm.weight)
            transform = QKTransform(inputs.cos, inputs.sin, *weights, query_norm.eps)
        if cell is None:
            return NewToken(query, key, value, transform=transform)
        gates = gates.unflatten(1, (len(cell.gate_maps), -1)).transpose(1, 2)[:, None]
        return NewToken(query, key, value, None, gates[..., :-1], gates[..., -1], transform)


def fused_unsupported_reason(model: Any) -> str | None:
    """What a `FusedDecoder` would need; None where it can run."""
    config = attached_state(model).config
    if config.memory is None and attached_state(model).kernels == "torch":
        return "slots with kernels, got kernels='torch'"
    reasons = (layer_unsupported_reason(x, config.memory) for x in decoder_layers(model))
    if config.windows is not None:
        return "one window in all layers, got window_shares"
    return next(filter(None, reasons), None) or _decoder_reason(model) or _weights_reason(model)


def _decoder_reason(model: Any) -> str | None:
    text, decoder = model.config.get_text_config(decoder=True), model.get_decoder()
    if not has_silu(text):
        return f"an MLP with SiLU, got {getattr(text, 'hidden_act', None)}"
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None or 2 * rotary.inv_freq.numel() != attention_sizes(text, 0).head_dim:
        return "rotary positions over whole heads"
    head = getattr(model, "lm_head", None)
    if type(head) is not nn.Linear or type(decoder.embed_tokens) is not nn.Embedding:
        return f"a plain embedding and head, got {type(head).__name__}"
    return hooks_reason((decoder.embed_tokens, rotary, decoder.norm, head))


def _weights_reason(model: Any) -> str | None:
    named = [(name, p) for name, p in model.named_parameters() if "rotary" not in name]
    weights = [p for name, p in named if SLOTS not in name]
    if other := {(p.dtype, p.device) for name, p in named if SLOTS in name} - {
        (torch.float32, weights[0].device)
    }:
        return f"slots whose scores are float32 beside the model, got {min(map(str, other))}"
    kinds = {(weight.dtype, weight.device) for weight in weights}
    if len(kinds) > 1:
        return f"weights of one dtype on one device, got {len(kinds)} kinds"
    if (most := max(weight.numel() for weight in weights)) >= 2**31:
        return f"weights of fewer than 2^31 numbers, got {most}"
    text = model.config.get_text_config(decoder=True)
    like = weights[0].new_empty(1, 1, 1, attention_sizes(text, 0).head_dim)
    config = attached_state(model).config
    asked = {"slot_bits": config.slot_bits, "slot_distance": config.slot_distance}
    return unsupported_reason("fused_decoding", "triton", like, like, **asked)
