"""Sinks + window attention of a sequence, with gradients, by cuDNN's kernel on blocks of it.

The sequence is cut into blocks of a window. A query sees its own block up to itself (causal), the
part of the block before that is still in its window (anti-causal), and the sinks (without a mask).
The blocks are rows of a batch, so that a sequence of any length takes a few calls.

The softmax is one over the keys of all calls. The gradient of a call depends only on its scores, on
the log-sum-exp over all keys and on the output over all keys (arXiv 2205.14135, appendix B.2). So
the kernel's own backward is given these two in place of the call's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ahn.ops.window_attention.blocks import BlockedCall, merge_blocks, plan_calls
from ahn.ops.window_attention.cudnn_forward import PartialAttention, merge_lse
from ahn.ops.window_attention.ring_views import num_tokens
from ahn.ops.window_attention.saved import SavedOutputs


def has_single_tokens(length: int, window: int, num_sinks: int, num_skipped: int) -> bool:
    """Whether a call would have one query or one key, which torch does not give to cuDNN."""
    calls = plan_calls(length, window, num_sinks, num_skipped)
    return any(1 in call.block_sizes for call in calls)


def cudnn_sequence_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    scale: float | None,
    saved: SavedOutputs | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; the keys are those of all tokens from position 0 on.

    The queries are of the same tokens, or of those beyond the budget.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    length = key.shape[2]
    sinks = min(sink_key.shape[2], length)
    if sinks:
        key = torch.cat([sink_key[:, :, :sinks], key[:, :, sinks:]], 2)
        value = torch.cat([sink_value[:, :, :sinks], value[:, :, sinks:]], 2)
    inputs = (x.transpose(1, 2) for x in (query, key, value))
    calls = plan_calls(length, window, sinks, num_skipped=length - query.shape[2])
    return _SequenceAttention.apply(*inputs, calls, scale, saved).transpose(1, 2)


class _SequenceAttention(torch.autograd.Function):
    """`[B, C, H, K]`, `[B, T, G, K]` and `[B, T, G, V]` give `[B, C, H, V]`."""

    @staticmethod
    def forward(ctx, query, key, value, calls, scale, saved):
        query, key, value = (x.contiguous() for x in (query, key, value))
        ctx.calls, ctx.scale = calls, scale
        compute = partial(_for_each_row, run_calls, ctx, query, key, value)
        out, lse = compute() if saved is None else saved.get(compute)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, d_out):
        query, key, value, out, lse = ctx.saved_tensors
        inputs = (query, key, value, d_out.contiguous(), out, lse)
        return *_for_each_row(run_calls_backward, ctx, *inputs), None, None, None


def _for_each_row(run: Callable[..., list[Tensor]], ctx: Any, *inputs: Tensor) -> Sequence[Tensor]:
    """Run each row of the batch on its own and stack the results; one row is not copied."""
    rows = [run(*row, ctx.calls, ctx.scale) for row in zip(*inputs)]
    return [x[0][None] if len(x) == 1 else torch.stack(x) for x in zip(*rows)]


def run_calls(
    query: Tensor, key: Tensor, value: Tensor, calls: list[BlockedCall], scale: float
) -> list[Tensor]:
    """Attention `[C, H, V]` and log-sum-exp `[C, H]` or `[C, H, 1]` of a row."""
    merged: list[Tensor] = []
    for call in calls:
        inputs = (call.query_blocks(query), call.key_blocks(key), call.key_blocks(value))
        results = attend(*map(call.kernel_input, inputs), causal=call.is_causal, scale=scale)
        if call.covers(query):
            merged = [merge_blocks(x) for x in results]
            continue
        merged = merged or [x.new_empty(len(query), *x.shape[2:]) for x in results]
        blocks = [call.query_blocks(x) for x in merged]
        if call.is_first:
            for x, result in zip(blocks, results):
                x.copy_(result)
        else:
            base, new = _heads_first(*blocks), _heads_first(*results)
            full, anticausal = (None, new) if call.is_anticausal else (new, None)
            merge_lse(base.out, base, full, anticausal, with_lse=True)
    return merged


def run_calls_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    calls: list[BlockedCall],
    scale: float,
) -> list[Tensor]:
    """Gradients of query, key and value of a row, from that of its output."""
    tokens = (query, key, value)
    totals: list[Tensor | None] = [None, None, None]
    for call in calls:
        blocks_of = (call.query_blocks, call.key_blocks, call.key_blocks)
        inputs = [blocks(x) for blocks, x in zip(blocks_of, tokens)]
        inputs += [call.query_blocks(x) for x in (d_out, out, lse)]
        parts = attend_backward(*map(call.kernel_input, inputs), causal=call.is_causal, scale=scale)
        for i, part in enumerate(parts):
            totals[i] = call.accumulate(totals[i], part, blocks_of[i], tokens[i])
    return [torch.zeros_like(x) if total is None else total for x, total in zip(tokens, totals)]


def _heads_first(out: Tensor, lse: Tensor) -> PartialAttention:
    """Views with heads before tokens, of output and log-sum-exp with tokens before heads."""
    return PartialAttention(out.transpose(1, 2), lse.flatten(2).transpose(1, 2))


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention `[B, C, H, V]` and log-sum-exp `[B, C, H]` or `[B, C, H, 1]`, as torch gives it.

    Tokens come before heads in all tensors, here and in `attend_backward`.
    """
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        None, True, 0.0, causal, False, scale=scale,
    )  # fmt: skip
    return out.transpose(1, 2), lse.transpose(1, 2)


def attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value; `out` and `lse` may be over more keys than these."""
    q, k, v, do, o = (x.transpose(1, 2) for x in (query, key, value, d_out, out))
    seed = query.new_empty((), dtype=torch.int64)  # not read without dropout
    gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        do, q, k, v, o, lse.transpose(1, 2).contiguous(), seed, seed, None, None, None,
        q.shape[2], k.shape[2], 0.0, causal, scale=scale,
    )  # fmt: skip
    return tuple(x.transpose(1, 2) for x in gradients)


def fits_sequence(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int | Tensor,
) -> bool:
    """Whether cuDNN's form with gradients fits: keys from position 0, and queries of the same
    tokens or of those beyond the budget, which cut into blocks without single tokens."""
    if not isinstance(start, int) or start:
        return False
    length, sinks = num_tokens(keys), sink_key.shape[2]
    before = length - query.shape[2]
    return before in (0, sinks + window) and not has_single_tokens(length, window, sinks, before)
