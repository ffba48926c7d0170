"""Gradients of what a text's queries read, and of the state that it ends with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.chunk_scan.segments import Segments, join_segments
from ahn.ops.chunk_scan.text import CHUNK, Rule, Text


@dataclass(frozen=True)
class Gradients:
    """Of what made a text, of the same shapes; those of gates and state are float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    strength: Tensor
    log_decay: Tensor
    initial_state: Tensor


@dataclass(frozen=True)
class _Kept:
    """Of every chunk, in the dtype of the values.

    Attributes:
        states: `[B, H, N, K, V]`, what it starts from.
        writes: `[B, H, N CHUNK, V]`, what its tokens add under their keys.
        d_states: `[B, H, N, K, V]`, gradient of the state it ends with.
        d_errors: `[B, H, N CHUNK, V]`, gradient of what its tokens want changed.
    """

    states: Tensor
    writes: Tensor
    d_states: Tensor
    d_errors: Tensor


def gradients(
    text: Text, segments: Segments, rule: Rule, d_out: Tensor, d_final: Tensor
) -> Gradients:
    """From the gradients of out `[B, T, H, V]` and of final_state `[B, H, K, V]`."""
    d_out = d_out.to(text.value.dtype).contiguous()
    states, writes = _retrace(text, segments)
    d_states, d_errors, d_initial = _carry_back(text, segments, d_out, d_final)
    kept = _Kept(states, writes, d_states, d_errors)
    d_query, d_since = _of_queries(text, kept, rule, d_out)
    d_key, d_value, d_strength, d_log_decay = _of_keys(text, kept, rule, d_out, d_since)
    groups = text.key.shape[2]
    d_key, d_value = (_sum_heads(x, groups) for x in (d_key, d_value))
    return Gradients(d_query, d_key, d_value, d_strength, d_log_decay, d_initial)


def _retrace(text: Text, segments: Segments) -> tuple[Tensor, Tensor]:
    from ahn.ops.chunk_scan.triton.backward import retrace

    states, writes = _of_chunks(text)
    retrace[_grid(text, segments.split[0])](
        *text.arguments, segments.starts, states, writes, *text.counts, *segments.split,
        **text.sizes, num_warps=4, num_stages=2,
    )  # fmt: skip
    return states, writes


def _carry_back(
    text: Text, segments: Segments, d_out: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of chunks' states and errors, and of the state that the text starts from."""
    from ahn.ops.chunk_scan.triton.backward import back

    count = segments.split[0]
    d_ends = torch.empty_like(segments.starts)
    d_ends[:, :, -1] = d_final
    d_states, d_errors = _of_chunks(text)
    d_initial = torch.empty_like(segments.starts[:, :, 0])
    arguments = (*text.arguments, d_out, d_ends, d_states, d_errors, d_initial)
    arguments = (*arguments, *text.counts, *segments.split)
    settings = {**text.sizes, "num_warps": 4, "num_stages": 2}
    if count > 1:
        back[_grid(text, count - 1)](*arguments, KEEP=False, **settings)
        join_segments(text, d_ends, segments.moves, back=True)
    back[_grid(text, count)](*arguments, KEEP=True, **settings)
    return d_states, d_errors, d_initial


def _of_queries(text: Text, kept: _Kept, rule: Rule, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """d_query, and the part of the running sums of log decay that lies in what is read."""
    from ahn.ops.chunk_scan.triton.gradients import of_queries

    d_query = torch.empty(text.query.shape, dtype=text.query.dtype, device=text.query.device)
    d_since = torch.empty_like(text.chunks.key_scale)
    of_queries[_chunk_grid(text)](
        *text.arguments, kept.states, kept.writes, d_out, d_query, d_since, *text.counts,
        NORMALIZE=rule.normalize, **text.sizes, num_warps=4, num_stages=2,
    )  # fmt: skip
    return d_query, d_since


def _of_keys(
    text: Text, kept: _Kept, rule: Rule, d_out: Tensor, d_since: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_key and d_value of every query head, d_strength, d_log_decay."""
    from ahn.ops.chunk_scan.triton.gradients import of_keys

    length = text.query.shape[1]
    batch, heads, dim, width = text.shape
    d_key = text.key.new_empty(batch, length, heads, dim)
    d_value = text.value.new_empty(batch, length, heads, width)
    d_strength, d_log_decay = d_since.new_empty(2, batch, length, heads)
    of_keys[_chunk_grid(text)](
        *text.arguments, kept.states, kept.writes, d_out, kept.d_states, kept.d_errors, d_since,
        d_key, d_value, d_strength, d_log_decay, *text.counts,
        NORMALIZE=rule.normalize, **text.sizes, num_warps=8, num_stages=1,
    )  # fmt: skip
    return d_key, d_value, d_strength, d_log_decay


def _of_chunks(text: Text) -> tuple[Tensor, Tensor]:
    """Room for a state and for the tokens' values of every chunk and head."""
    batch, heads, dim, width = text.shape
    states = text.value.new_empty(batch, heads, text.count, dim, width)
    return states, text.value.new_empty(batch, heads, text.count * CHUNK, width)


def _grid(text: Text, segments: int) -> tuple[int, int, int]:
    batch, heads = text.shape[:2]
    return heads * text.blocks, segments, batch


def _chunk_grid(text: Text) -> tuple[int, int, int]:
    batch, heads = text.shape[:2]
    return heads, text.count, batch


def _sum_heads(x: Tensor, groups: int) -> Tensor:
    """`[B, T, H, ...] -> [B, T, G, ...]`: what the heads of a group share, they add up."""
    heads = x.shape[2]
    return x if heads == groups else x.unflatten(2, (groups, heads // groups)).sum(3)
