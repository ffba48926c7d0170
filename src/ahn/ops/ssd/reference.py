"""Mamba2's recurrence in plain PyTorch: token by token, and in parallel over chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.chunking import join_chunks, scan_chunks, split_chunks
from ahn.ops.layout import l2_normalize, prepare, repeat_heads
from ahn.ops.recurrence import RECURRENT_LENGTH


def ssd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    *,
    dt: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """`ahn.ops.ssd` on any device, by the form that suits the number of tokens."""
    if normalize:
        query, key = l2_normalize(query), l2_normalize(key)
    if dt is not None:
        key = repeat_heads(key, query.shape[2]) * dt[..., None]
        value = repeat_heads(value, query.shape[2])
    form = recurrent_ssd if query.shape[1] <= RECURRENT_LENGTH else chunk_ssd
    return form(query, key, value, log_decay, initial_state)


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
