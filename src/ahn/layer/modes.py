"""The page: how a layer looks back (arXiv 2510.07318).

New tokens push old ones out of the window. What leaves is written into the memory and read by the
new tokens, while the softmax over sinks and window runs. Both are added; the cache takes the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ahn.layer.base_attention import BaseAttention, Output
from ahn.layer.context import LayerContext
from ahn.layer.decode import decode_one_token
from ahn.layer.write_read import (
    NOTHING,
    ChunkTokens,
    Written,
    commit,
    gather_chunk,
    merge,
    no_eviction,
    write_and_read,
)
from ahn.memory import Evicted
from ahn.ops.pooled_attention import POOLINGS, pooled_window_attention
from ahn.ops.side_stream import side_stream
from ahn.ops.window_attention import chosen_backend, window_attention

POOL = "pool"  # name of the state that a pooled layer holds in its memory's place


class Mode(ABC):
    """How the queries of a layer look back. It holds no state of a text.

    Attributes:
        name: as `ahn_mode=` and caches know it.
        is_bounded: whether tokens go into an `AHNCache`.
        decodes_in_place: whether one new token may take the place of the one it evicts.
        uses_memory: whether the layers' memories are written and read.
    """

    name: str
    is_bounded = True
    decodes_in_place = True
    uses_memory = False
    can_end_early = True  # whether `fill` leaves all that a forward leaves

    @abstractmethod
    def __call__(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Output:
        """Attention `[B, C, H, V]` of new tokens; see `ahn.layer.attention.ahn_attention`."""

    def without_memory(self) -> Mode:
        """How layers that have no memory look back meanwhile: as the base does."""
        return FULL

    def splits_documents(self, base: BaseAttention) -> bool:
        """Whether packed documents are attended to one by one."""
        return True

    def document(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Tensor:
        """Attention of one packed document, that no cache takes."""
        return self(base, query, key, value, context)[0]

    def fill(self, module, query, key, value, context) -> None:  # noqa: B027  (nothing to do here)
        """Leave in the cache what a chunk leaves there, without its attention."""

    def __repr__(self) -> str:
        return self.name


class FullAttention(Mode):
    """Every token sees all before it: the base model itself."""

    name = "full"
    is_bounded = False
    decodes_in_place = False

    def __call__(self, base, query, key, value, context):
        """The base's own call: its cache has joined the keys of all tokens before."""
        return base(query, key, value)

    def splits_documents(self, base: BaseAttention) -> bool:
        """SDPA alone needs no mask of all pairs for a document of its own."""
        return base.is_sdpa

    def document(self, base, query, key, value, context):
        """Causal attention without a mask of all pairs."""
        return base.without_mask(query, key, value)[0]


class WindowAttention(Mode):
    """Sinks and window; what leaves the window is gone."""

    name = "window"

    def __call__(self, base, query, key, value, context):
        """One new token in place, a text within the budget by the base, or a chunk."""
        if context.forward.decode is not None:
            return decode_one_token(self.write_and_read, base, query, key, value, context)
        if self._fits(context, query) and not _prefers_blocks(base, query, value, context):
            return self._within_budget(base, query, key, value, context)
        return self.attend_chunk(base, query, key, value, context), None

    def document(self, base, query, key, value, context):
        """A text without a cache, whatever its length."""
        return self.attend_chunk(base, query, key, value, context)

    def attend_chunk(
        self, base: BaseAttention, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> Tensor:
        """A chunk of new tokens, `[B, C, H, V]`; the oldest of the window leave."""
        chunk = self.gather(query, key, value, context)
        with side_stream(query.device) as wait:
            written = self.write_and_read(base.module, query, chunk.evicted, context)
        if written.exact_rows is not None:
            wait()  # the softmax needs them
        out = self.attend(base, query, chunk, written, context)
        wait()
        commit(key, value, written, context)
        return merge(out.transpose(1, 2), written.read).contiguous()  # some bases view it flat

    def gather(
        self, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> ChunkTokens:
        """The cached window and the new tokens, the sinks, and what leaves."""
        return gather_chunk(query, key, value, context)

    def write_and_read(
        self, module: Any, query: Tensor, evicted: Evicted, context: LayerContext
    ) -> Written:
        """What becomes of the tokens that leave, and what the last queries read of them."""
        return NOTHING

    def attend(
        self,
        base: BaseAttention,
        query: Tensor,
        chunk: ChunkTokens,
        written: Written,
        context: LayerContext,
        **options: Any,
    ) -> Tensor:
        """Softmax over sinks, window and the memory's exact rows, `[B, H, C, V]`."""
        return window_attention(
            query, chunk.keys, chunk.values, chunk.sink_key, chunk.sink_value,
            window=context.forward.window, start=self.start(chunk, context), scale=base.scaling,
            dropout=base.dropout, exact_rows=written.exact_rows, sink_logits=base.sink_logits,
            kernels=context.forward.kernels, **options,
        )  # fmt: skip

    def start(self, chunk: ChunkTokens, context: LayerContext) -> int | Tensor:
        """Position of the first key: a number where all rows agree on what is a sink."""
        start = chunk.first - context.forward.max_padding
        if context.forward.padding is not None and start < context.forward.num_sinks:
            return context.positions(chunk.first, 1)[:, 0]
        return start

    def fill(self, module, query, key, value, context):
        """See `Mode.fill`."""
        evicted = self.gather(query, key, value, context).evicted
        commit(key, value, self.write_and_read(module, query, evicted, context), context)

    def _fits(self, context: LayerContext, query: Tensor) -> bool:
        """Whether nothing leaves the window, and the ring's rows are the tokens in order."""
        in_order = context.seen == 0 or context.forward.padding is None
        return in_order and context.seen + query.shape[2] <= context.forward.budget

    def _within_budget(self, base, query, key, value, context) -> Output:
        """Nothing has left the window: the base model's own call."""
        if context.cache is None:
            return base(query, key, value)
        written = self.write_and_read(base.module, query, no_eviction(key, value, context), context)
        keys, values = key, value
        if context.seen:
            past_key, past_value = context.cache.first_tokens(context.seen)
            keys, values = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        commit(key, value, written, context)
        return base(query, keys, values)


class MemoryAttention(WindowAttention):
    """Sinks, window, and the memory of what has left it."""

    name = "memory"
    uses_memory = True

    def write_and_read(self, module, query, evicted, context):
        """Written into the layer's memory, and read by the last queries."""
        return write_and_read(module, query, evicted, context)


class PooledAttention(WindowAttention):
    """The Compressive Transformer: a pool of what has left takes the memory's place."""

    decodes_in_place = False
    can_end_early = False  # its own attention makes the pool

    def __init__(self, pooling: str) -> None:
        self.pooling, self.name = pooling, f"compressive-{pooling}"

    def attend(self, base, query, chunk, written, context, **options):
        """One softmax over pool, sinks and window; the pool takes what leaves."""
        keys, values = torch.cat(chunk.keys, 2), torch.cat(chunk.values, 2)
        out, pool = pooled_window_attention(
            query, keys, values, chunk.sink_key, chunk.sink_value,
            pool=context.states.get(POOL), pooling=self.pooling, window=context.forward.window,
            start=self.start(chunk, context), scale=base.scaling, dropout=base.dropout,
            sink_logits=base.sink_logits,
        )  # fmt: skip
        if context.cache is not None:
            context.cache.set_states({POOL: pool})
        return out

    def start(self, chunk: ChunkTokens, context: LayerContext) -> int | Tensor:
        """Padded rows differ in what is pooled with what, wherever they are."""
        padded = context.forward.padding is not None
        return context.positions(chunk.first, 1)[:, 0] if padded else chunk.first


FULL, WINDOW, MEMORY = FullAttention(), WindowAttention(), MemoryAttention()
POOLED = {pooling: PooledAttention(pooling) for pooling in POOLINGS}
MODES: dict[str, Mode] = {mode.name: mode for mode in (FULL, WINDOW, MEMORY, *POOLED.values())}


def mode_named(name: str) -> Mode:
    """The mode of that name; ValueError lists them all."""
    if name not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {name!r}")
    return MODES[name]


def _prefers_blocks(
    base: BaseAttention, query: Tensor, value: Tensor, context: LayerContext
) -> bool:
    """Whether a later chunk is better off without the base's call, that needs a mask of all pairs.

    Only for SDPA, which leaves the choice of a kernel to whoever runs it.
    """
    if not (context.seen > 0 and context.cache is not None and base.is_causal_sdpa):
        return False
    kernels, window = context.forward.kernels, context.forward.window
    return chosen_backend(kernels, window, query, value, dropout=base.dropout) != "torch"
