"""Sinks + window attention by dense and causal blocks of cuDNN's kernel, joined by log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.ops.moving import flipped, joined
from ahn.ops.window_attention.ring_views import columns, count


class Part(NamedTuple):
    """Attention of some queries over some of their keys."""

    out: Tensor  # [B, H, C, V]
    lse: Tensor  # [B, H, C], log-sum-exp of the scores, float32


def dense_window_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; every query is past the sinks."""
    doubled = max(0, sink_key.shape[2] - start)  # columns that are sinks as well
    first = count(keys) - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    blocks = query.split(window, dim=2)
    # Laid out as the queries are, that is as the output projection reads it.
    shape = (query.shape[0], query.shape[2], query.shape[1], values[0].shape[-1])
    whole = query.new_empty(shape).transpose(1, 2) if len(blocks) > 1 else None
    for number, block in enumerate(blocks):
        before = first + number * window
        sizes = (before, block.shape[2], window, doubled)
        keys_seen, values_seen = _bands(sink_key, keys, *sizes), _bands(sink_value, values, *sizes)
        parts = _attend_bands(block, keys_seen, values_seen, scale)
        rows = slice(before - first, before - first + block.shape[2])
        out = parts[0].out if whole is None else whole[:, :, rows]
        merge_lse(out, *parts)
    return out if whole is None else whole


class Bands(NamedTuple):
    """Keys or values of a block of C queries, in order, `[B, G, N, *]`; None where there are none.

    Only the two triangles compute scores that are thrown away, and cuDNN skips most of those.
    """

    near: Tensor  # of the block itself: a triangle
    shared: Tensor | None  # of the sinks, and of what all queries see
    far: Tensor | None  # a triangle too: the first queries lose them one by one


def _bands(
    sinks: Tensor, tokens: Sequence[Tensor], before: int, queries: int, window: int, doubled: int
) -> Bands:
    """What the queries behind `before` tokens look at; `doubled` first tokens are sinks as well."""
    after = before + queries
    low, lowest = (max(doubled, x) for x in (after - window, before + 1 - window))
    known = columns([sinks], 0, sinks.shape[2]) + columns(tokens, low, before)
    lost = columns(tokens, lowest, low)
    return Bands(
        joined(columns(tokens, before, after)),
        joined(known) if known else None,
        joined(lost) if lost else None,
    )


def _attend_bands(
    query: Tensor, keys: Bands, values: Bands, scale: float
) -> tuple[Part, Part | None, Part | None]:
    near, shared, far = attend(query, keys.near, values.near, True, scale), None, None
    if keys.shared is not None and values.shared is not None:
        shared = attend(query, keys.shared, values.shared, False, scale)
    if keys.far is not None and values.far is not None:
        # Backwards in queries and keys this triangle is a causal one. Its last query is the
        # first to see nothing there.
        last, key, value = map(flipped, (query[:, :, :-1], keys.far, values.far))
        far = attend(last, key, value, True, scale)
    return near, shared, far


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> Part:
    """Attention of `[B, H, C, K]` over `[B, G, N, *]`; causal is j <= i from the first on."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scale
    )
    return Part(out, lse.reshape(out.shape[:3]))


def merge_lse(
    out: Tensor, near: Part, shared: Part | None, far: Part | None, with_lse: bool = False
) -> None:
    """Write attention over the keys of all parts into `out` `[B, H, C, V]`, which may be `near`'s.

    Args:
        far: of the first P <= C queries, in reverse order.
        with_lse: write the log-sum-exp of all keys into `near` as well.
    """
    from ahn.ops.window_attention.merge_lse import merge_lse_kernel

    if shared is None and far is None and out is near.out:
        return
    batch, heads, rows, dim = out.shape
    tensors = [out, *(x for part in (near, shared or near, far or near) for x in part)]
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    block = 32
    merge_lse_kernel[(-(-rows // block), batch * heads)](
        *tensors, *strides, heads, rows, 0 if far is None else far.out.shape[2],
        HAS_SHARED=shared is not None, HAS_FAR=far is not None, WITH_LSE=with_lse,
        BLOCK=block, DIM=dim, PADDED=1 << (dim - 1).bit_length(),
    )  # fmt: skip
