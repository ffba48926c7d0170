"""The backward: gradients of all inputs, from those of the outputs and of the final state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.chunk_scan.prepare import CHUNK_SIZE, ChunkedInputs, Rule
from ahn.ops.chunk_scan.segments import Segments, pass_states


@dataclass(frozen=True)
class Gradients:
    """Gradients of the inputs, in their shapes; those of gates and state are float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    log_decay: Tensor
    initial_state: Tensor


@dataclass(frozen=True)
class _ChunkStates:
    """States and writes of every chunk and their gradients, in the dtype of the values.

    Attributes:
        h: `[B, H, N, K, V]`, the state a chunk starts from.
        u: `[B, H, N CHUNK_SIZE, V]`, what each token adds to the state under its key.
        dh: `[B, H, N, K, V]`, gradient of the state a chunk ends with.
        de: `[B, H, N CHUNK_SIZE, V]`, gradient of each token's error.
    """

    h: Tensor
    u: Tensor
    dh: Tensor
    de: Tensor


def gradients(
    chunked: ChunkedInputs, segments: Segments, rule: Rule, d_out: Tensor, d_final: Tensor
) -> Gradients:
    """All gradients, from those of out `[B, T, H, V]` and of final_state `[B, H, K, V]`."""
    d_out = d_out.to(chunked.value.dtype).contiguous()
    h, u = _recompute_states(chunked, segments)
    dh, de, d_initial = _state_gradients(chunked, segments, d_out, d_final)
    states = _ChunkStates(h, u, dh, de)
    d_query, dg_cumsum = _query_gradients(chunked, states, rule, d_out)
    of_heads = _key_value_gradients(chunked, states, rule, d_out, dg_cumsum)
    d_key, d_value, d_beta, d_log_decay = of_heads
    groups = chunked.key.shape[2]
    d_key, d_value = (_sum_heads(x, groups) for x in (d_key, d_value))
    return Gradients(d_query, d_key, d_value, d_beta, d_log_decay, d_initial)


def _recompute_states(chunked: ChunkedInputs, segments: Segments) -> tuple[Tensor, Tensor]:
    """The state that every chunk starts from, and the writes of its tokens."""
    from ahn.ops.chunk_scan.triton.backward import recompute_states_kernel

    h, u = _empty_states(chunked)
    recompute_states_kernel[_segment_grid(chunked, segments.counts[0])](
        *chunked.arguments, segments.h0, h, u, *chunked.counts, *segments.counts,
        **chunked.constants, num_warps=4, num_stages=2,
    )  # fmt: skip
    return h, u


def _state_gradients(
    chunked: ChunkedInputs, segments: Segments, d_out: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the chunks' states, of the tokens' errors and of the initial state."""
    from ahn.ops.chunk_scan.triton.backward import state_gradient_kernel

    num_segments = segments.counts[0]
    dht = torch.empty_like(segments.h0)
    dht[:, :, -1] = d_final
    dh, de = _empty_states(chunked)
    dh0 = torch.empty_like(segments.h0[:, :, 0])
    arguments = (*chunked.arguments, d_out, dht, dh, de, dh0)
    arguments = (*arguments, *chunked.counts, *segments.counts)
    settings = {**chunked.constants, "num_warps": 4, "num_stages": 2}
    if num_segments > 1:
        grid = _segment_grid(chunked, num_segments - 1)
        state_gradient_kernel[grid](*arguments, STORE_CHUNKS=False, **settings)
        pass_states(chunked, dht, segments.transitions, reverse=True)
    grid = _segment_grid(chunked, num_segments)
    state_gradient_kernel[grid](*arguments, STORE_CHUNKS=True, **settings)
    return dh, de, dh0


def _query_gradients(
    chunked: ChunkedInputs, states: _ChunkStates, rule: Rule, d_out: Tensor
) -> tuple[Tensor, Tensor]:
    """d_query, and the part of the gradient of g_cumsum that comes from what queries read."""
    from ahn.ops.chunk_scan.triton.gradients import dq_kernel

    query = chunked.query
    d_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    dg_cumsum = torch.empty_like(chunked.factors.key_scale)
    dq_kernel[_chunk_grid(chunked)](
        *chunked.arguments, states.h, states.u, d_out, d_query, dg_cumsum, *chunked.counts,
        NORMALIZE=rule.normalize, **chunked.constants, num_warps=4, num_stages=2,
    )  # fmt: skip
    return d_query, dg_cumsum


def _key_value_gradients(
    chunked: ChunkedInputs, states: _ChunkStates, rule: Rule, d_out: Tensor, dg_cumsum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_key and d_value of every query head, d_beta, d_log_decay."""
    from ahn.ops.chunk_scan.triton.gradients import dkv_kernel

    length = chunked.query.shape[1]
    batch, heads, dim, width = chunked.state_shape
    d_key = chunked.key.new_empty(batch, length, heads, dim)
    d_value = chunked.value.new_empty(batch, length, heads, width)
    d_beta, d_log_decay = dg_cumsum.new_empty(2, batch, length, heads)
    dkv_kernel[_chunk_grid(chunked)](
        *chunked.arguments, states.h, states.u, d_out, states.dh, states.de, dg_cumsum,
        d_key, d_value, d_beta, d_log_decay, *chunked.counts,
        NORMALIZE=rule.normalize, **chunked.constants, num_warps=8, num_stages=1,
    )  # fmt: skip
    return d_key, d_value, d_beta, d_log_decay


def _empty_states(chunked: ChunkedInputs) -> tuple[Tensor, Tensor]:
    """Empty tensors for a state of every chunk and for a row of width V of every token."""
    batch, heads, dim, width = chunked.state_shape
    states = chunked.value.new_empty(batch, heads, chunked.num_chunks, dim, width)
    rows = chunked.value.new_empty(batch, heads, chunked.num_chunks * CHUNK_SIZE, width)
    return states, rows


def _segment_grid(chunked: ChunkedInputs, num_segments: int) -> tuple[int, int, int]:
    batch, heads = chunked.state_shape[:2]
    return heads * chunked.value_blocks, num_segments, batch


def _chunk_grid(chunked: ChunkedInputs) -> tuple[int, int, int]:
    batch, heads = chunked.state_shape[:2]
    return heads, chunked.num_chunks, batch


def _sum_heads(x: Tensor, groups: int) -> Tensor:
    """`[B, T, H, ...] -> [B, T, G, ...]`: the sum over the query heads that share a key head."""
    heads = x.shape[2]
    return x if heads == groups else x.unflatten(2, (groups, heads // groups)).sum(3)
