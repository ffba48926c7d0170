"""What leaves the window: gathered, written into the memory, read by the last queries, added."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ahn.layer.autograd import AddToLast, TokenSlice
from ahn.layer.cache_layer import Views
from ahn.layer.context import LayerContext
from ahn.layer.distance import at_distance
from ahn.layer.ring import gather_rows
from ahn.memory import Evicted, States
from ahn.ops.wide_copy import concat_tokens
from ahn.ops.window_attention import ExactRows, SlotRows, num_tokens, token_slice


class ChunkTokens(NamedTuple):
    """What a chunk of new tokens looks at, and what it pushes out.

    Attributes:
        keys, values: views `[B, G, T_i, *]` of the cached window and the new tokens, in order.
        first: index of the first of them, padding counted.
        sink_key, sink_value: `[B, G, S, *]`.
    """

    keys: Views
    values: Views
    first: int
    sink_key: Tensor
    sink_value: Tensor
    evicted: Evicted


class Written(NamedTuple):
    """What writing and reading gave; the cache takes it in `commit`, when nobody reads it any more.

    Attributes:
        read: `[B, E, H, V]`, of the last E queries; None adds nothing.
        states: of cell and slots, by name; None leaves the cache's.
        write_inputs: of the new tokens `[B, C, h, n]`, by name; None has none.
        exact_rows: pairs that join the softmax.
    """

    read: Tensor | None
    states: States | None = None
    write_inputs: Mapping[str, Tensor] | None = None
    exact_rows: ExactRows | SlotRows | None = None


NOTHING = Written(None)


def gather_chunk(query: Tensor, key: Tensor, value: Tensor, context: LayerContext) -> ChunkTokens:
    """The cached window and the new tokens in order, the sinks, and the oldest, that leave."""
    keys: Views = (key,)
    values: Views = (value,)
    cached = None
    if context.cache is not None and context.seen:
        past_keys, past_values, cached = context.cache.window_tokens()
        keys, values = (*past_keys, key), (*past_values, value)
    first = context.seen + query.shape[2] - num_tokens(keys)
    number = max(0, num_tokens(keys) - context.forward.window)
    evicted = evicted_tokens(keys, values, cached, number, first, context)
    return ChunkTokens(keys, values, first, *_sinks(key, value, context), evicted)


def evicted_tokens(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    cached: Mapping[str, Sequence[Tensor]] | None,
    number: int,
    first: int,
    context: LayerContext,
) -> Evicted:
    """The first `number` tokens of those from index `first` on.

    Args:
        keys, values: `[B, G, T_i, *]`, in order; cached: write inputs `[B, h, P_i, n]` by name.
    """
    # In place where it can be: a ring is written over once it has been read, but not before a
    # backward pass has read it again.
    views = context.cache is None or not torch.is_grad_enabled()
    key, value = (_first(x, number, views) for x in (keys, values))
    write_inputs = None
    if cached is not None:
        write_inputs = {k: _first(x, number, views).transpose(1, 2) for k, x in cached.items()}
    position = context.positions(first, number)
    num_sinks = context.forward.num_sinks
    all_written = first - context.forward.max_padding >= num_sinks
    return Evicted(
        key, value, write_inputs, position, None if all_written else position >= num_sinks
    )


def no_eviction(key: Tensor, value: Tensor, context: LayerContext) -> Evicted:
    """No token at all, for a call that leaves nothing."""
    return evicted_tokens((key,), (value,), None, 0, 0, context)


def _first(views: Sequence[Tensor], number: int, in_place: bool) -> Tensor:
    if in_place and len(views) == 1 and torch.is_grad_enabled():
        return TokenSlice.apply(views[0], 0, number)
    chosen = token_slice(views, 0, number) or [views[0][:, :, :0]]
    return concat_tokens(chosen) if in_place else torch.cat(chosen, 2)


def write_and_read(module: Any, query: Tensor, evicted: Evicted, context: LayerContext) -> Written:
    """Write what leaves into the layer's cell and slots, and let the last queries read both.

    A cell is written all that leaves; the slots keep copies of some.
    """
    written = Written(None, {}, {})
    if context.memory is not None:
        written = _write_cell(module, query, evicted, context)
    if context.slots is None:
        return written
    written = _with_slots(written, evicted, context)
    distance, forward = context.forward.distance, context.forward
    if distance is None or written.exact_rows is None:
        return written
    furthest = context.seen + query.shape[2] + forward.budget  # a prefix is not counted as seen
    if forward.decode is None and furthest <= distance.most:
        return written
    sizes = (forward.window, forward.num_sinks)
    rows = at_distance(written.exact_rows, distance, module, query, evicted, *sizes)
    return written._replace(exact_rows=rows)


def _write_cell(module: Any, query: Tensor, evicted: Evicted, context: LayerContext) -> Written:
    memory, states = context.memory, context.states
    assert memory is not None
    if context.slots is not None:
        specs = context.slots.state_specs()
        states = {name: x for name, x in states.items() if name not in specs}
    number = evicted.key.shape[2]
    own_query = memory_query(module, query, number, context)
    read, states, write_inputs, rows = memory(context.hidden, own_query, evicted, states)
    if context.router is not None and number and read is not None:
        written_before = evicted.position - context.forward.num_sinks + 1
        read = context.router(read, written_before, context.forward.window)
    return Written(read, states, write_inputs, rows)


def _with_slots(written: Written, evicted: Evicted, context: LayerContext) -> Written:
    """What the cell gave, and what the slots give beside it.

    Raises ValueError where the cell has exact rows of its own.
    """
    slots, one_token = context.slots, context.forward.decode is not None
    assert slots is not None
    if written.exact_rows is not None:
        name = type(context.memory).__name__
        raise ValueError(f"slots: expected a memory without exact rows of its own, got {name}")
    kernels = context.forward.kernels
    output = slots(context.hidden, evicted, context.states, in_place=one_token, kernels=kernels)
    states = {**(written.states or {}), **output.states}
    write_inputs = {**(written.write_inputs or {}), **output.write_inputs}
    return Written(written.read, states, write_inputs, output.exact_rows)


def memory_query(module: Any, query: Tensor, number: int, context: LayerContext) -> Tensor:
    """The last `number` queries `[B, E, H, K]`, or the memory's own map of them before RoPE."""
    first = query.shape[2] - number
    memory, rope = context.memory, context.position_embeddings
    if memory is None or memory.q_proj is None or rope is None:
        last = query[:, :, first:] if first else query
        if first and torch.is_grad_enabled():
            last = TokenSlice.apply(query, first, query.shape[2])
        return last.transpose(1, 2)
    raw = module.q_proj(context.hidden[:, first:]).unflatten(-1, (query.shape[1], -1))
    own = memory.q_proj(raw.to(memory.q_proj.weight.dtype))
    own = own.to(query.dtype).transpose(1, 2)
    cos, sin = (x[:, first:] for x in rope)
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    return rotate(own, own, cos, sin)[0].transpose(1, 2)


def commit(key: Tensor, value: Tensor, written: Written, context: LayerContext) -> None:
    """Let the cache take the new tokens and the memory's states."""
    if context.cache is None:
        return
    if written.states is not None:
        context.cache.set_states(written.states)
    context.cache.append(key, value, written.write_inputs)


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
        return AddToLast.apply(out, read)
    merged = out[:, exact:] + read
    return merged if not exact else torch.cat([out[:, :exact], merged], 1)


def _sinks(key: Tensor, value: Tensor, context: LayerContext) -> tuple[Tensor, Tensor]:
    """The first S tokens of each row, `[B, G, S, *]`, from the cache and the new tokens.

    All tokens, where there are fewer than S.
    """
    number, cache = min(context.forward.num_sinks, context.seen + key.shape[2]), context.cache
    if cache is not None and context.seen - context.forward.max_padding >= number:
        return cache.first_tokens(number)
    column = -context.positions(context.seen, 1) + torch.arange(number, device=key.device)
    new = [gather_rows(x, column.clamp(0, x.shape[2] - 1)) for x in (key, value)]
    if cache is None or not context.seen:
        return new[0], new[1]
    is_cached = (column < 0)[:, None, :, None]
    cached = cache.first_tokens(number)
    return torch.where(is_cached, cached[0], new[0]), torch.where(is_cached, cached[1], new[1])
