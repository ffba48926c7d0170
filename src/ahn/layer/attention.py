"""The paper on one page: exact window -> what leaves it -> memory -> merge (arXiv 2510.07318)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ahn.layer.cache_layer import Pieces
from ahn.layer.context import FULL, POOLED, AllKept, LayerContext, LazyMask
from ahn.layer.decode import decode_one_token
from ahn.layer.ring import gather_rows
from ahn.layer.write_read import Evicted, behind_prefix, evicted_tokens, merge, write_and_read
from ahn.ops.backends import choose
from ahn.ops.pooled_attention import pooled_window_attention
from ahn.ops.side_stream import side_stream
from ahn.ops.window_attention import count, window_attention

Document = Callable[[Tensor, Tensor, Tensor, LayerContext], Tensor]

NAME = "ahn"  # of the attention function, as transformers knows it


def ahn_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    ahn: LayerContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of an attached model, as transformers calls it.

    Args:
        query: `[B, H, C, K]`.
        key, value: `[B, G, C, K]` of the new tokens (of a full-attention layer: all tokens).

    Returns:
        `[B, C, H, V]`, and attention weights where the base's own function gave some.

    Raises:
        AllKept: the call is the last of a forward of which only the cache is wanted.
    """
    if ahn is None:
        raise RuntimeError(f"{type(module).__name__}: expected attach's hook to run before it")

    def base(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = attention_mask.base if isinstance(attention_mask, LazyMask) else attention_mask
        mask = None if ahn.step.decoding is not None else mask  # one query sees all keys
        return _base_function(module)(module, query, key, value, mask, **options)

    options = {"scaling": scaling, "dropout": dropout, **kwargs}
    if ahn.ends and ahn.step.mode not in POOLED:  # a pool is made by its own attention
        _keep(module, query, key, value, ahn)
        raise AllKept
    if ahn.step.mode == FULL or ahn.memory is None:
        if ahn.step.prefix is not None:
            ahn.step.prefix.fill(key, value, ahn.hidden)
        if ahn.step.segments is None or module.config.ahn_backend != "sdpa":
            return base(key, value)
        return _documents(_full_document(module, options), query, key, value, ahn), None
    if ahn.step.decoding is not None:
        return decode_one_token(base, module, query, key, value, scaling, ahn)
    if ahn.step.segments is not None:
        document = partial(_many_tokens, module, scaling=scaling, dropout=dropout)
        return _documents(document, query, key, value, ahn), None
    if _all_fits(ahn, query) and not _prefers_blocks(module, query, value, dropout, ahn):
        return _within_budget(base, module, query, key, value, ahn)
    return _many_tokens(module, query, key, value, ahn, scaling=scaling, dropout=dropout), None


def _all_fits(call: LayerContext, query: Tensor) -> bool:
    in_order = call.seen == 0 or call.step.padding is None
    return in_order and call.seen + query.shape[2] <= call.step.budget


def _prefers_blocks(
    module: Any, query: Tensor, value: Tensor, dropout: float, call: LayerContext
) -> bool:
    """Whether a later chunk is better off without the base's call, that needs a mask of all pairs.

    Only for SDPA, which leaves the choice of a kernel to whoever runs it.
    """
    plain = call.seen > 0 and call.cache is not None and module.config.ahn_backend == "sdpa"
    if not plain or call.memory is None:
        return False
    kernels = call.memory.kernels
    return choose("window_attention", kernels, query, value, dropout=dropout) == "cudnn"


def _within_budget(
    base: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: LayerContext,
) -> tuple[Tensor, Tensor | None]:
    """Nothing has left the window: the base model's own call."""
    if call.cache is None:
        return base(key, value)
    nothing = evicted_tokens((key,), (value,), None, 0, 0, call)
    _, gates = write_and_read(module, query, nothing, call)
    keys, values = key, value
    if call.seen:
        past_key, past_value = call.cache.held(call.seen)
        keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    call.cache.store(key, value, gates)
    return base(keys, values)


def _many_tokens(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: LayerContext,
    *,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """A chunk: the cached window and the new tokens in order; the oldest leave."""
    keys, values, first, evicted = _in_order(query, key, value, call)
    start: int | Tensor = first - call.step.max_padding
    is_pooled = call.step.mode in POOLED
    if call.step.padding is not None and (start < call.step.num_sinks or is_pooled):
        # Rows differ in what is a sink, what padding, and what is pooled with what.
        start = call.positions(first, 1)[:, 0]
    state = None if call.cache is None else call.cache.recurrent_state
    with side_stream(query.device) as wait:
        read, gates = write_and_read(module, query, evicted, call)
    attend = partial(_pooled, call)
    if not is_pooled:
        kernels = "auto" if call.memory is None else call.memory.kernels
        attend = partial(window_attention, saved=call.step.kept, kernels=kernels)
    out = attend(
        query, keys, values, *_sinks(key, value, call),
        window=call.step.window, start=start, scale=scaling, dropout=dropout,
    )  # fmt: skip
    wait()
    del state  # that what runs beside has read: until here its memory may not be given away
    if call.cache is not None:
        call.cache.store(key, value, gates)
    return merge(out.transpose(1, 2), read)


def _keep(module: Any, query: Tensor, key: Tensor, value: Tensor, call: LayerContext) -> None:
    """What `ahn_attention` leaves in the cache, without the attention.

    A layer with full attention, and one without a memory, has kept its tokens before.
    """
    if call.cache is None or call.step.mode == FULL:
        return
    *_, evicted = _in_order(query, key, value, call)
    _, gates = write_and_read(module, query, evicted, call)
    call.cache.store(key, value, gates)


def _in_order(
    query: Tensor, key: Tensor, value: Tensor, call: LayerContext
) -> tuple[Pieces, Pieces, int, Evicted]:
    """The cached window and the new tokens, keys and values; the first one's index; what leaves."""
    keys: Pieces = (key,)
    values: Pieces = (value,)
    past_gates = None
    if call.cache is not None and call.seen:
        past_keys, past_values, past_gates = call.cache.recent()
        keys, values = (*past_keys, key), (*past_values, value)
    if call.step.prefix is not None:
        return behind_prefix(query, key, value, call.step.prefix, call)
    first = call.seen + query.shape[2] - count(keys)
    number = max(0, count(keys) - call.step.window)
    return keys, values, first, evicted_tokens(keys, values, past_gates, number, first, call)


def _pooled(
    call: LayerContext,
    query: Tensor,
    keys: Pieces,
    values: Pieces,
    sink_key: Tensor,
    sink_value: Tensor,
    **rest: Any,
) -> Tensor:
    """`window_attention` over a pool of what has left as well, that takes the memory's place."""
    pool = None if call.cache is None else call.cache.recurrent_state
    tokens = (torch.cat(keys, 2), torch.cat(values, 2), sink_key, sink_value)
    pooling = POOLED[call.step.mode]
    out, pool = pooled_window_attention(query, *tokens, pool=pool, pooling=pooling, **rest)
    if call.cache is not None:
        call.cache.set_state(pool)
    return out


def _sinks(key: Tensor, value: Tensor, call: LayerContext) -> tuple[Tensor, Tensor]:
    """The first S tokens of each row, `[B, G, S, *]`, from the cache and the new tokens."""
    count, cache, prefix = call.step.num_sinks, call.cache, call.step.prefix
    if prefix is not None and prefix.key is not None and prefix.value is not None:
        return prefix.key[:, :, :count], prefix.value[:, :, :count]
    if cache is not None and call.seen - call.step.max_padding >= count:
        return cache.held(count)
    column = -call.positions(call.seen, 1) + torch.arange(count, device=key.device)
    new = [gather_rows(x, column.clamp(0, x.shape[2] - 1)) for x in (key, value)]
    if cache is None or not call.seen:
        return new[0], new[1]
    known = (column < 0)[:, None, :, None]
    held = cache.held(count)
    return torch.where(known, held[0], new[0]), torch.where(known, held[1], new[1])


def _documents(
    attend: Document, query: Tensor, key: Tensor, value: Tensor, call: LayerContext
) -> Tensor:
    """Packed rows: every document on its own."""
    rows = []
    for row, documents in enumerate(call.step.segments or ()):
        parts = []
        for first, last in documents:
            q, k, v = (x[row : row + 1, :, first:last] for x in (query, key, value))
            parts.append(attend(q, k, v, call.part(row, first, last)))
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def _full_document(module: Any, options: dict[str, Any]) -> Document:
    """The base's own attention of a document: causal, so no mask of all pairs is needed."""

    def attend(query: Tensor, key: Tensor, value: Tensor, call: LayerContext) -> Tensor:
        return _base_function(module)(module, query, key, value, None, **options)[0]

    return attend


def _base_function(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    name = module.config.ahn_backend
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


AttentionInterface.register(NAME, ahn_attention)
AttentionMaskInterface.register(NAME, LazyMask)
