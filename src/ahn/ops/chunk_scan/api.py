"""The chunkwise recurrence and its gradients as one function that autograd knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ahn.ops.chunk_scan.backward import gradients
from ahn.ops.chunk_scan.forward import chunk_outputs
from ahn.ops.chunk_scan.prepare import ChunkedInputs, ChunkFactors, Rule, prepare_chunks
from ahn.ops.chunk_scan.segments import Segments, segment_states


def scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """Write each token into the state, then read it; see `ahn.ops.delta_rule` and `ahn.ops.ssd`.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`; all of one dtype.
        beta: `[B, T, H]`, write strength (for Mamba2 its dt); None is 1.
        log_decay: `[B, T, H]`; None is no decay.
        initial_state: `[B, H, K, V]`; None is zeros.

    Returns:
        out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    with torch.cuda.device_of(query):
        return _Scan.apply(query, key, value, beta, log_decay, initial_state, rule)


class _Scan(torch.autograd.Function):
    """Saves its inputs, the chunks' factors and what the segments start from."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        query, key, value, beta, log_decay, initial_state, rule = inputs
        chunked = prepare_chunks(query, key, value, beta, log_decay, rule)
        segments = segment_states(chunked, initial_state)
        saved = (*chunked.factors.tensors, segments.h0, segments.transitions)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.rule, ctx.length = rule, segments.length
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:-1]]
        return chunk_outputs(chunked, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *factors, h0, transitions = ctx.saved_tensors
        chunked = ChunkedInputs(query, key, value, ChunkFactors(*factors))
        segments = Segments(h0, transitions, ctx.length)
        with torch.cuda.device_of(query):
            grads = gradients(chunked, segments, ctx.rule, d_out, d_final)
        in_order = (
            grads.query, grads.key, grads.value, grads.beta, grads.log_decay, grads.initial_state,
        )  # fmt: skip
        cast = (x if dtype is None else x.to(dtype) for x, dtype in zip(in_order, ctx.dtypes))
        return *(x if needed else None for x, needed in zip(cast, ctx.needs_input_grad)), None
