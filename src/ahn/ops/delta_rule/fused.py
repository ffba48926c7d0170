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
    chunks = solve_chunks(key, beta, log_decay, normalize)
    return scan(query, key, value, chunks, initial_state, normalize=normalize, scale=scale)


def solve_chunks(key, beta, log_decay, normalize) -> Chunks:
    from ahn.ops.delta_rule import kernels

    batch, length, groups, dim = key.shape
    heads = beta.shape[2]
    count = -(-length // CHUNK)
    key_scale = key.new_empty(batch, heads, count * CHUNK, dtype=torch.float32)
    total = None if log_decay is None else torch.empty_like(key_scale)
    solved = key.new_empty(batch, heads, count, CHUNK, CHUNK)
    steps = beta if log_decay is None else log_decay
    kernels.solve[(heads, count, batch)](
        key, beta, steps, solved, key_scale if total is None else total, key_scale,
        *key.stride()[:3], *beta.stride(), *steps.stride(), length, count, heads, groups,
        NORMALIZE=normalize, DECAY=log_decay is not None, K=dim, PADDED=padded(dim), CHUNK=CHUNK,
        DOUBLINGS=6, PRECISION="ieee" if key.dtype == torch.float32 else "tf32",
        SOLVE_PRECISION="ieee" if key.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    return Chunks(total, key_scale, solved)
