"""One new token of every row: it takes the place of the one it evicts, and nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ahn.layer.base_attention import BaseAttention, Output
from ahn.layer.cache_layer import AHNCacheLayer
from ahn.layer.context import DecodePlacement, LayerContext
from ahn.layer.watched import HARMLESS, watchers_of
from ahn.layer.write_read import Written, memory_query, merge
from ahn.memory import GATES, STATE, Evicted, LinearCell, Memory, Slots
from ahn.memory.slots import PLACE, SCORES
from ahn.ops.backends import choose
from ahn.ops.decoding import (
    Leaving,
    NewToken,
    Ring,
    SlotLayer,
    fused_decoding,
    insert_evicted,
)
from ahn.ops.window_attention import decode_attention

WriteAndRead = Callable[[Any, Tensor, Evicted, LayerContext], Written]


def decode_one_token(
    write_and_read: WriteAndRead,
    base: BaseAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: LayerContext,
) -> Output:
    """Attention `[B, 1, H, V]` of one new token, and weights where the base gave some.

    Args:
        write_and_read: what the mode does with the token that leaves.
    """
    cache, placement = context.cache, context.forward.decode
    assert cache is not None and placement is not None, "decoding is settled by the decoder's hook"
    if placement.is_counted:
        cache.seen += 1
    placement = placement.to_device(query.device)
    uses_memory = context.forward.mode.uses_memory
    if not placement.in_order and _can_fuse(base, context, query, value):
        return _fused(base, query, key, value, context, placement, uses_memory), None
    position = placement.position[:, None] - context.forward.window
    evicted = Evicted(*cache.token_at(placement.ring_index), position, placement.write_mask)
    written = write_and_read(base.module, query, evicted, context)
    if written.states is not None:
        cache.set_states(written.states, in_place=True)
    cache.put(placement.ring_index, key, value, written.write_inputs)
    keys, values = cache.first_tokens(placement.limit)
    if placement.in_order:
        return base.without_mask(query, keys, values)
    filled = None if placement.is_exact else placement.filled
    out = decode_attention(
        query, keys, values, filled=filled, exact_rows=written.exact_rows,
        num_sinks=context.forward.num_sinks, sink_logits=base.sink_logits, scale=base.scaling,
    )  # fmt: skip
    return merge(out.transpose(1, 2), written.read), None


def ring_of(
    cache: AHNCacheLayer, memory: Memory | None, ring_index: Tensor, filled: Tensor,
    write_mask: Tensor, limit: int,
) -> Ring:  # fmt: skip
    """A layer's buffers as the fused kernels take them; the state is made where there is none.

    Args:
        memory: None where nothing is written or read.
    """
    if memory is not None and STATE not in cache.states:
        keys = cache.keys
        cache.set_states(memory.init_states(len(keys), keys.device, keys.dtype))
    gates, state = cache.write_inputs.get(GATES), cache.states.get(STATE)
    return Ring(cache.keys, cache.values, gates, state, ring_index, filled, write_mask, limit)


def slots_of(cache: AHNCacheLayer, slots: Slots) -> SlotLayer:
    """A layer's ring and slots as the kernels take them; its slots are made where it has none."""
    if PLACE not in cache.states:
        cache.set_states(slots.init_states(cache.keys))
    scores, held = cache.write_inputs[SCORES], slots.held_in(cache.states)
    return SlotLayer(cache.keys, cache.values, scores, slots.rate, held)


def _can_fuse(base: BaseAttention, context: LayerContext, query: Tensor, value: Tensor) -> bool:
    """Whether the kernels of a decoding step know all that this layer does.

    A cell or slots with hooks go through their own forward, so that offloading or a probe sees it.
    """
    uses_memory = context.forward.mode.uses_memory
    cell, slots = context.memory, context.slots if uses_memory else None
    watched = (module for module in (cell, slots) if module is not None)
    if context.router is not None or any(watchers_of(module) - HARMLESS for module in watched):
        return False
    asked: dict[str, Any] = {"sink_logits": base.sink_logits}
    if slots is not None:
        asked |= {"slot_bits": slots.bits, "slot_distance": context.forward.distance}
    if choose("fused_decoding", context.forward.kernels, query, value, **asked) == "torch":
        return False
    return not uses_memory or cell is None or isinstance(cell, LinearCell)


def _fused(
    base: BaseAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: LayerContext,
    placement: DecodePlacement,
    uses_memory: bool,
) -> Tensor:
    """`decode_one_token` in two kernels, and one that moves the evicted token into slots."""
    cache: Any = context.cache
    spec, token = None, NewToken(query, key, value)
    memory, slots = (context.memory, context.slots) if uses_memory else (None, None)
    if memory is not None:
        assert isinstance(memory, LinearCell)
        spec, hidden = memory.spec(), context.hidden.to(memory.o_proj.weight.dtype)
        asked = memory_query(base.module, query, 1, context).transpose(1, 2)
        gates = (memory.write_gates(hidden), memory.output_gate(hidden))
        token = NewToken(query, key, value, asked, *gates)
    place = (placement.ring_index, placement.filled, placement.write_mask, placement.limit)
    ring, kernels = ring_of(cache, memory, *place), context.forward.kernels
    if slots is not None:
        held = slots_of(cache, slots)
        window = -context.forward.window
        leaving = Leaving(placement.ring_index, placement.write_mask, placement.position, window)
        insert_evicted(held, leaving, kernels=kernels)
        token = replace(token, scores=slots.scores(context.hidden)[..., 0].contiguous())
        ring = replace(ring, slots=held.slots, scores=held.scores)
    return fused_decoding(token, ring, spec, base.scaling, kernels=kernels)
