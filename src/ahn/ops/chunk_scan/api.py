"""The recurrence with its gradients, as one function that autograd knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ahn.ops.chunk_scan.backward import gradients
from ahn.ops.chunk_scan.forward import read_text
from ahn.ops.chunk_scan.segments import Segments, start_segments
from ahn.ops.chunk_scan.text import Chunks, Rule, Text, in_chunks


def scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor | None,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """Write each token, then read it; see `ahn.ops.delta_rule` and `ahn.ops.ssd`.

    Args:
        query: `[B, T, H, K]`; key: `[B, T, G, K]`; value: `[B, T, G, V]`; one dtype.
        strength: `[B, T, H]`, of the writes; None is 1.
        log_decay: `[B, T, H]`; None is no decay.
        initial_state: `[B, H, K, V]`; None is zeros.

    Returns:
        out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    with torch.cuda.device_of(query):
        return _Scan.apply(query, key, value, strength, log_decay, initial_state, rule)


class _Scan(torch.autograd.Function):
    """Keeps its inputs, the chunks' parts and the states that segments start from."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        query, key, value, strength, log_decay, initial_state, rule = inputs
        text = in_chunks(query, key, value, strength, log_decay, rule)
        segments = start_segments(text, initial_state)
        kept = (*text.chunks.tensors, segments.starts, segments.moves)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.rule, ctx.length = rule, segments.length
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:-1]]
        return read_text(text, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *parts, starts, moves = ctx.saved_tensors
        text = Text(query, key, value, Chunks(*parts))
        with torch.cuda.device_of(query):
            found = gradients(text, Segments(starts, moves, ctx.length), ctx.rule, d_out, d_final)
        every = (
            found.query, found.key, found.value, found.strength, found.log_decay,
            found.initial_state,
        )  # fmt: skip
        typed = (x if dtype is None else x.to(dtype) for x, dtype in zip(every, ctx.dtypes))
        wanted = zip(typed, ctx.needs_input_grad)
        return *(x if needed else None for x, needed in wanted), None
