"""Mamba2's recurrence by Triton kernels; see `ahn.ops.ssd` for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.chunk_scan import CHUNK, Chunks, padded, scan


def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    step: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.ssd` of bfloat16 inputs; out in their dtype, float32 state."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    chunks = weigh_chunks(key, log_decay, step, normalize)
    return scan(query, key, value, chunks, initial_state, normalize=normalize, scale=1.0)


def weigh_chunks(key: Tensor, log_decay: Tensor, step: Tensor | None, normalize: bool) -> Chunks:
    """Make of keys `[B, T, G, K]` and gates `[B, T, H]` what the chunks' writes need."""
    from ahn.ops.ssd import kernels

    batch, length, groups, dim = key.shape
    heads, count = log_decay.shape[2], -(-length // CHUNK)
    key_scale = key.new_empty(batch, heads, count * CHUNK, dtype=torch.float32)
    total = torch.empty_like(key_scale)
    steps = log_decay if step is None else step
    kernels.weigh[(groups, count, batch)](
        key, log_decay, steps, total, key_scale, *key.stride()[:3], *log_decay.stride(),
        *steps.stride(), length, count, heads, groups, NORMALIZE=normalize,
        STEP=step is not None, K=dim, PADDED=padded(dim), CHUNK=CHUNK,
    )  # fmt: skip
    return Chunks(key_scale, total)
