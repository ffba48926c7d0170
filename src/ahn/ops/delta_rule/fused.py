"""The (gated) delta rule by Triton kernels; see `ahn.ops.delta_rule` for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.chunk_scan import CHUNK, Chunks, padded, scan


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    *,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.delta_rule` of bfloat16 inputs; out in their dtype, float32 state."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    chunks = solve_chunks(key, beta, log_decay, normalize)
    return scan(query, key, value, chunks, initial_state, normalize=normalize, scale=scale)


def solve_chunks(key: Tensor, beta: Tensor, log_decay: Tensor | None, normalize: bool) -> Chunks:
    """Make of keys `[B, T, G, K]` and gates `[B, T, H]` what the chunks' writes need."""
    import triton.language as tl

    from ahn.ops.delta_rule import kernels

    batch, length, groups, dim = key.shape
    heads, count = beta.shape[2], -(-length // CHUNK)
    key_scale = key.new_empty(batch, heads, count * CHUNK, dtype=torch.float32)
    total = None if log_decay is None else torch.empty_like(key_scale)
    chunks = Chunks(key_scale, total, key.new_empty(batch, heads, count, CHUNK, CHUNK))
    steps = beta if log_decay is None else log_decay
    kernels.solve[(heads, count, batch)](
        key, beta, steps, *chunks.tensors, *key.stride()[:3], *beta.stride(), *steps.stride(),
        length, count, heads, groups, NORMALIZE=normalize, DECAY=log_decay is not None, K=dim,
        PADDED=padded(dim), CHUNK=CHUNK, DOUBLINGS=CHUNK.bit_length() - 1,
        DTYPE=tl.float32 if key.dtype == torch.float32 else tl.float16,
    )  # fmt: skip
    return chunks
