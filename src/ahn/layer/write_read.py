"""What leaves the window: written into the memory, read by the last queries, added up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ahn.layer.cache_layer import Pieces
from ahn.layer.context import MEMORY, LayerContext, Prefix
from ahn.ops.moving import joined
from ahn.ops.window_attention import columns


class Evicted(NamedTuple):
    """Tokens leaving the window, oldest first; the i-th is read by the i-th of the last queries."""

    key: Tensor  # [B, G, E, K]
    value: Tensor
    gates: Tensor | None  # [B, P, H, n] of those that were cached
    position: Tensor  # [B or 1, E], negative where there is none
    keep: Tensor | None  # [B or 1, E], whether each is written, not a sink or padding; None is all


def evicted_tokens(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    gates: Sequence[Tensor] | None,
    count: int,
    first: int,
    call: LayerContext,
) -> Evicted:
    """The first `count` tokens of those from index `first` on, padding counted.

    Args:
        keys, values: `[B, G, T_i, *]`, in order; gates: `[B, H, P_i, n]` of those cached.
    """
    # In place where it can be: a ring is written over once it has been read, but not before a
    # backward has read it again.
    held = call.cache is None or not torch.is_grad_enabled()
    key, value = (_first(x, count, held) for x in (keys, values))
    past = None if gates is None else _first(gates, count, held).transpose(1, 2)
    position = call.positions(first, count)
    all_written = first - call.step.max_padding >= call.step.num_sinks
    keep = None if all_written else position >= call.step.num_sinks
    return Evicted(key, value, past, position, keep)


def _first(pieces: Sequence[Tensor], count: int, held: bool) -> Tensor:
    if held and len(pieces) == 1 and torch.is_grad_enabled():
        return _Part.apply(pieces[0], 0, count)
    found = columns(pieces, 0, count) or [pieces[0][:, :, :0]]
    return joined(found) if held else torch.cat(found, 2)


def behind_prefix(
    query: Tensor, key: Tensor, value: Tensor, prefix: Prefix, call: LayerContext
) -> tuple[Pieces, Pieces, int, Evicted]:
    """All keys, all values, 0, and what leaves, where only tokens beyond the budget are new.

    Each of them makes one leave, and none that leaves is a sink.
    """
    assert prefix.key is not None and prefix.value is not None and prefix.hidden is not None
    assert call.memory is not None
    sinks, length = call.step.num_sinks, prefix.length + key.shape[2]
    keys, values = (prefix.key, key), (prefix.value, value)
    *_, gates = call.memory(
        prefix.hidden[:, sinks:], query[:, :, :0].transpose(1, 2), key, value, None, None, None
    )
    key_beyond, value_beyond = (columns(x, sinks, length) for x in (keys, values))
    past = (gates.transpose(1, 2),)
    evicted = evicted_tokens(key_beyond, value_beyond, past, query.shape[2], sinks, call)
    return keys, values, 0, evicted


def write_and_read(
    module: Any, query: Tensor, evicted: Evicted, call: LayerContext
) -> tuple[Tensor | None, Tensor | None]:
    """Write what leaves, let the last queries read it; also the new tokens' gates."""
    if call.step.mode != MEMORY or call.memory is None:
        return None, None
    count = evicted.key.shape[2]
    read, state, gates = call.memory(
        call.hidden,
        memory_query(module, query, count, call),
        evicted.key.transpose(1, 2),
        evicted.value.transpose(1, 2),
        evicted.gates,
        evicted.keep,
        None if call.cache is None else call.cache.recurrent_state,
    )
    if call.cache is not None:
        call.cache.set_state(state, in_place=call.step.decoding is not None)
    if call.router is not None and count:
        read = call.router(read, evicted.position - call.step.num_sinks + 1, call.step.window)
    return read, gates


def memory_query(module: Any, query: Tensor, count: int, call: LayerContext) -> Tensor:
    """The last `count` queries `[B, E, H, K]`, or the cell's own map of them before RoPE."""
    first = query.shape[2] - count
    if call.memory is None or call.memory.q_proj is None or call.rope is None:
        last = query[:, :, first:] if first else query
        if first and torch.is_grad_enabled():
            last = _Part.apply(query, first, query.shape[2])
        return last.transpose(1, 2)
    raw = module.q_proj(call.hidden[:, first:]).unflatten(-1, (query.shape[1], -1))
    own = call.memory.q_proj(raw.to(call.memory.q_proj.weight.dtype))
    own = own.to(query.dtype).transpose(1, 2)
    cos, sin = (x[:, first:] for x in call.rope)
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    return rotate(own, own, cos, sin)[0].transpose(1, 2)


def merge(out: Tensor, read: Tensor | None) -> Tensor:
    """Add what the last queries read `[B, E, H, V]` to the exact output `[B, C, H, V]`.

    In place where no gradient is taken: nobody else has seen `out`.
    """
    if read is None or not read.shape[1]:
        return out
    exact = out.shape[1] - read.shape[1]
    if not torch.is_grad_enabled() and out.dtype == read.dtype:
        out[:, exact:].add_(read)
        return out
    if exact and torch.is_grad_enabled() and out.dtype == read.dtype:
        return _AddedToLast.apply(out, read)
    merged = out[:, exact:] + read
    return merged if not exact else torch.cat([out[:, :exact], merged], 1)


class _Part(torch.autograd.Function):
    """Tokens `low` to `high` of `[B, H, T, K]`; the gradient lies as the tensor does.

    A slice's own is in the order of its dimensions: the sum with the other gradients, in the order
    of the projections, would be strided.
    """

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.shape, ctx.low, ctx.high = x.shape, low, high
        ctx.order = sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
        return x[:, :, low:high]

    @staticmethod
    def backward(ctx, gradient):
        found = torch.empty_permuted(
            ctx.shape, ctx.order, dtype=gradient.dtype, device=gradient.device
        )
        found[:, :, : ctx.low] = 0
        found[:, :, ctx.low : ctx.high] = gradient
        found[:, :, ctx.high :] = 0
        return found, None, None


class _AddedToLast(torch.autograd.Function):
    """`read` added to the last tokens of `out`: nothing is padded or summed on the way back."""

    @staticmethod
    def forward(ctx, out, read):
        ctx.count = read.shape[1]
        merged = torch.empty_like(out)
        exact = out.shape[1] - ctx.count
        merged[:, :exact] = out[:, :exact]
        torch.add(out[:, exact:], read, out=merged[:, exact:])
        return merged

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient[:, -ctx.count :]
