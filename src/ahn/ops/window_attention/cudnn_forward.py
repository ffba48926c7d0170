"""Sinks + window attention without gradients, by cuDNN's kernel on blocks of a window.

The keys of a block of queries fall into three parts, by which of the queries see them: a causal
one, a full one and an anti-causal one. Their attentions are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.ops.wide_copy import concat_tokens, reverse_tokens
from ahn.ops.window_attention.ring_views import num_tokens, token_slice


class PartialAttention(NamedTuple):
    """Attention of some queries over some of their keys."""

    out: Tensor  # [B, H, C, V]
    lse: Tensor  # [B, H, C], log-sum-exp of the scores, float32


def cudnn_window_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
    lse: Tensor | None = None,
) -> Tensor:
    """See `ahn.ops.window_attention`; every query is behind the sinks.

    Args:
        lse: `[B, H, C]` float32, filled with the log-sum-exp of each query's scores.
    """
    num_repeated = max(0, sink_key.shape[2] - start)  # first keys that are sinks as well
    first = num_tokens(keys) - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    blocks = query.split(window, dim=2)
    # Tokens before heads in memory, since the output projection reads it that way.
    shape = (query.shape[0], query.shape[2], query.shape[1], values[0].shape[-1])
    result = query.new_empty(shape).transpose(1, 2) if len(blocks) > 1 else None
    for number, block in enumerate(blocks):
        before = first + number * window
        sizes = (before, block.shape[2], window, num_repeated)
        block_keys = _block_keys(sink_key, keys, *sizes)
        parts = _attend_block(block, block_keys, _block_keys(sink_value, values, *sizes), scale)
        rows = slice(before - first, before - first + block.shape[2])
        out = parts[0].out if result is None else result[:, :, rows]
        merge_lse(out, *parts, with_lse=lse is not None)
        if lse is not None:
            lse[:, :, rows] = parts[0].lse
    return out if result is None else result


class BlockKeys(NamedTuple):
    """Keys or values of a block of C queries, in order, `[B, G, N, *]`; None where there are none.

    Attributes:
        causal: the queries' own tokens, of which query i sees the first i + 1.
        full: the sinks, and tokens before the block that every query sees.
        anticausal: tokens before those. The last query sees none of them, the query before it
            sees the last one, and so on.

    Only the causal and the anti-causal part compute scores that are masked, and cuDNN skips most
    of these.
    """

    causal: Tensor
    full: Tensor | None
    anticausal: Tensor | None


def _block_keys(
    sinks: Tensor,
    tokens: Sequence[Tensor],
    before: int,
    num_queries: int,
    window: int,
    num_repeated: int,
) -> BlockKeys:
    """What the queries behind `before` tokens see; the first `num_repeated` tokens are sinks."""
    after = before + num_queries
    low, lowest = (max(num_repeated, x) for x in (after - window, before + 1 - window))
    full = token_slice([sinks], 0, sinks.shape[2]) + token_slice(tokens, low, before)
    anticausal = token_slice(tokens, lowest, low)
    return BlockKeys(
        concat_tokens(token_slice(tokens, before, after)),
        concat_tokens(full) if full else None,
        concat_tokens(anticausal) if anticausal else None,
    )


def _attend_block(
    query: Tensor, keys: BlockKeys, values: BlockKeys, scale: float
) -> tuple[PartialAttention, PartialAttention | None, PartialAttention | None]:
    causal, full, anticausal = attend(query, keys.causal, values.causal, True, scale), None, None
    if keys.full is not None and values.full is not None:
        full = attend(query, keys.full, values.full, False, scale)
    if keys.anticausal is not None and values.anticausal is not None:
        # In reverse order an anti-causal mask is a causal one. The last query sees none of these.
        inputs = (query[:, :, :-1], keys.anticausal, values.anticausal)
        q, k, v = map(reverse_tokens, inputs)
        anticausal = attend(q, k, v, True, scale)
    return causal, full, anticausal


def attend(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float
) -> PartialAttention:
    """Attention of `[B, H, C, K]` over `[B, G, N, *]`; causal: query i sees the keys j <= i."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scale
    )
    return PartialAttention(out, lse.reshape(out.shape[:3]))


def merge_lse(
    out: Tensor,
    base: PartialAttention,
    full: PartialAttention | None,
    anticausal: PartialAttention | None,
    with_lse: bool = False,
) -> None:
    """Merge attentions over different keys into `out` `[B, H, C, V]`, which may be the base's.

    Args:
        full: of the same queries as the base.
        anticausal: of the first P <= C queries, in reverse order.
        with_lse: write the log-sum-exp over all keys into the base's.
    """
    from ahn.ops.window_attention.triton import merge_lse_kernel

    if full is None and anticausal is None and out is base.out:
        return
    batch, heads, queries, dim = out.shape
    tensors = [out, *(x for part in (base, full or base, anticausal or base) for x in part)]
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    block = 32
    merge_lse_kernel[(-(-queries // block), batch * heads)](
        *tensors, *strides, heads, queries, 0 if anticausal is None else anticausal.out.shape[2],
        HAS_FULL=full is not None, HAS_ANTICAUSAL=anticausal is not None, WITH_LSE=with_lse,
        BLOCK=block, DIM=dim, PADDED=1 << (dim - 1).bit_length(),
    )  # fmt: skip
