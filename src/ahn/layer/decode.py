"""One new token of every row: it takes the slot of the one it evicts, nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ahn.layer.context import WINDOW, DecodePlacement, LayerContext
from ahn.layer.write_read import Evicted, memory_query, merge, write_and_read
from ahn.ops.backends import choose
from ahn.ops.decoding import NewToken, Ring, fused_decoding
from ahn.ops.window_attention import slot_attention


def decode_one_token(
    base: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    call: LayerContext,
) -> tuple[Tensor, Tensor | None]:
    """Attention `[B, 1, H, V]` of one new token, and weights where the base gave some."""
    cache, decoding = call.cache, call.step.decoding
    assert cache is not None and decoding is not None, "decoding is settled by the decoder's hook"
    decoding = decoding.on(query.device)
    if not decoding.in_order and _can_fuse(call, query, value):
        return _fused(module, query, key, value, scaling, call, decoding), None
    position = decoding.position[:, None] - call.step.window
    evicted = Evicted(*cache.at(decoding.slot), position=position, keep=decoding.keep)
    read, gates = write_and_read(module, query, evicted, call)
    cache.put(decoding.slot, key, value, gates)
    keys, values = cache.held(decoding.limit)
    if decoding.in_order:
        return base(keys, values)
    filled = None if decoding.is_exact else decoding.filled
    out = slot_attention(query, keys, values, filled=filled, scale=scaling)
    return merge(out.transpose(1, 2), read), None


def _can_fuse(call: LayerContext, query: Tensor, value: Tensor) -> bool:
    """Whether the kernels of a decoding step know all that this layer does.

    A cell with hooks goes through its own forward, so that offloading or a probe sees it.
    """
    cell = call.memory
    assert cell is not None, "layers without a memory do not decode here"
    watched = cell._forward_hooks or cell._forward_pre_hooks or hasattr(cell, "_hf_hook")
    if call.router is not None or watched:
        return False
    if choose("fused_decoding", cell.kernels, query, value) == "torch":
        return False
    return call.step.mode == WINDOW or cell.fused() is not None


def _fused(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    call: LayerContext,
    decoding: DecodePlacement,
) -> Tensor:
    """`decode_one_token` in two kernels."""
    assert call.memory is not None, "layers without a memory do not decode here"
    cache: Any = call.cache
    cell, token = None, NewToken(query, key, value)
    if call.step.mode != WINDOW:
        cell, memory = call.memory.fused(), call.memory
        hidden = call.hidden.to(memory.o_proj.weight.dtype)
        asked = memory_query(module, query, 1, call).transpose(1, 2)
        gates = (memory.write_gates(hidden), memory.output_gate(hidden))
        token = NewToken(query, key, value, asked, *gates)
        if cache.recurrent_state is None:
            cache.set_state(memory.init_state(len(query), query.device, torch.float32))
    tensors = (cache.keys, cache.values, cache.gates, cache.recurrent_state)
    places = (decoding.slot, decoding.filled, decoding.keep, decoding.limit)
    return fused_decoding(
        token, Ring(*tensors, *places), cell, scaling, kernels=call.memory.kernels
    )
