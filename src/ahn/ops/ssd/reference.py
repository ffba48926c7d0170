"""Mamba2's recurrence in plain PyTorch: token by token, and in parallel over chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.chunking import join_chunks, scan_chunks, split_chunks
from ahn.ops.layout import prepare


def recurrent_ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time; see `ahn.ops.ssd` for the contract."""
    query, key, value, state = prepare(query, key, value, initial_state)
    decay = log_decay.to(state.dtype).exp()
    outputs = []
    for t in range(query.shape[1]):
        written = key[:, t, :, :, None] @ value[:, t, :, None, :]
        state = state * decay[:, t, :, None, None] + written
        outputs.append(query[:, t, :, None, :] @ state)
    return torch.stack(outputs, 1).squeeze(-2), state


def chunk_ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same function, parallel within chunks of 64 tokens (arXiv 2405.21060, section 6)."""
    query, key, value, state = prepare(query, key, value, initial_state)
    length = query.shape[1]
    log_decay = log_decay.to(state.dtype)
    query, key, value, log_decay = map(split_chunks, (query, key, value, log_decay))
    out, state = scan_chunks(query, key, value, None, log_decay, state)
    return join_chunks(out, length), state
