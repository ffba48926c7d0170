"""What the chunk-parallel forms of the recurrences share."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_SIZE = 64


def split_chunks(x: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Pad time with zeros and cut it: `[B, T, H, ...] -> [B, H, N, chunk_size, ...]`."""
    x = x.transpose(1, 2)
    missing = -x.shape[2] % chunk_size
    if missing:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], dim=2)
    return x.unflatten(2, (-1, chunk_size))


def join_chunks(chunks: list[Tensor], length: int) -> Tensor:
    """Undo `split_chunks`: N pieces `[B, H, C, V] -> [B, length, H, V]`."""
    return torch.cat(chunks, dim=2)[:, :, :length].transpose(1, 2)


def decay_between(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Decay from the chunk's start and between any two of its tokens.

    Args:
        log_decay: `[B, H, N, C]`, <= 0.

    Returns:
        total `[B, H, N, C]`, the running sum of log_decay; and between `[B, H, N, C, C]`, what a
        write at column j has decayed by when row i reads it, 0 where j > i.
    """
    total = log_decay.cumsum(-1)
    distance = total[..., :, None] - total[..., None, :]
    future = torch.ones(distance.shape[-2:], dtype=torch.bool, device=distance.device).triu(1)
    # The mask comes before exp: above the diagonal the exponent is positive and may overflow.
    return total, distance.masked_fill(future, float("-inf")).exp()


def scan_chunks(
    query: Tensor,
    key: Tensor,
    write: Tensor,
    erase: Tensor | None,
    log_decay: Tensor,
    state: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Carry the state over the chunks, reading within each chunk in parallel.

    Args:
        query, key: `[B, H, N, C, K]`.
        write: `[B, H, N, C, V]`, what each token adds under its key if the state were zero.
        erase: `[B, H, N, C, K]`, what the state takes off those writes; None takes nothing.
        log_decay: `[B, H, N, C]`.
        state: `[B, H, K, V]`.

    Returns:
        N outputs `[B, H, C, V]`, and the final state.
    """
    total, between = decay_between(log_decay)
    scores = (query @ key.transpose(-1, -2)) * between
    query = query * total.exp()[..., None]
    kept_to_end = (total[..., -1:] - total).exp()
    key_to_end = (key * kept_to_end[..., None]).transpose(-1, -2)
    state_decay = total[..., -1].exp()[..., None, None]
    outputs = []
    # unbind, not indexing: the gradient of an index is a zero tensor of the whole length.
    parts = [x.unbind(2) for x in (query, scores, write, key_to_end, state_decay)]
    erased = [None] * len(parts[0]) if erase is None else erase.unbind(2)
    for *chunk, taken_off in zip(*parts, erased):
        q, score, written, to_end, decay = chunk
        if taken_off is not None:
            written = written - taken_off @ state
        outputs.append(q @ state + score @ written)
        state = state * decay + to_end @ written
    return outputs, state
