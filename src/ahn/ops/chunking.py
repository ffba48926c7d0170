"""Chunks of 64 tokens, and the state carried over them: shared by the PyTorch recurrences."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_SIZE = 64


def split_chunks(x: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Pad time with zeros and cut it into chunks: `[B, T, H, ...] -> [B, H, N, C, ...]`."""
    x = x.transpose(1, 2)
    missing = -x.shape[2] % chunk_size
    if missing:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], dim=2)
    return x.unflatten(2, (-1, chunk_size))


def join_chunks(x: Tensor, length: int) -> Tensor:
    """Undo `split_chunks`: `[B, H, N, C, V] -> [B, length, H, V]`."""
    return x.flatten(2, 3)[:, :, :length].transpose(1, 2)


def decay_between(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Log decay since the start of the chunk, and decay between any two of its tokens.

    Args:
        log_decay: `[B, H, N, C]`, <= 0.

    Returns:
        total `[B, H, N, C]`, the running sum of log_decay; and between `[B, H, N, C, C]`, the
        factor by which a write of token j has decayed when token i reads it, 0 where j > i.
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
) -> tuple[Tensor, Tensor]:
    """Carry the state over the chunks; only the carrying itself is sequential.

    A chunk that starts from state S writes u = write - erase S, reads query S + scores u, and
    ends with decay S + key^T u. Both are affine in S, so their coefficients are computed for all
    chunks in parallel, and one product a chunk remains.

    Args:
        query, key: `[B, H, N, C, K]`.
        write: `[B, H, N, C, V]`, the write u of each token for a zero state.
        erase: `[B, H, N, C, K]`, how much of the state is subtracted from it; None is nothing.
        log_decay: `[B, H, N, C]`.
        state: `[B, H, K, V]`.

    Returns:
        out `[B, H, N, C, V]`, and the final state.
    """
    total, between = decay_between(log_decay)
    scores = (query @ key.transpose(-1, -2)) * between
    reads = query * total.exp()[..., None]
    decay_to_end = (total[..., -1:] - total).exp()
    key_to_end = (key * decay_to_end[..., None]).transpose(-1, -2)
    decay = total[..., -1].exp()[..., None, None]
    added = key_to_end @ write
    if erase is None:
        starts, state = _carry_scaled(decay, added, state)
    else:
        reads = reads - scores @ erase
        eye = torch.eye(key.shape[-1], dtype=key.dtype, device=key.device)
        starts, state = _carry(decay * eye - key_to_end @ erase, added, state)
    return reads @ starts + scores @ write, state


def _carry(transition: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S <- transition S + added: states at the chunks' starts `[B, H, N, K, V]`, and the last."""
    batch, heads = state.shape[:2]
    starts = [state.flatten(0, 1)]
    # unbind, not indexing: the gradient of an index is a zero tensor of the whole length.
    chunks = (x.flatten(0, 1).unbind(1) for x in (added, transition))
    for new, move in zip(*chunks):
        starts.append(torch.baddbmm(new, move, starts[-1]))
    *starts, last = starts
    return torch.stack(starts, 1).unflatten(0, (batch, heads)), last.view_as(state)


def _carry_scaled(decay: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`_carry` where the transition is one number a head and chunk, `[B, H, N, 1, 1]`."""
    starts = [state]
    for new, factor in zip(added.unbind(2), decay.unbind(2)):
        starts.append(torch.addcmul(new, factor, starts[-1]))
    *starts, last = starts
    return torch.stack(starts, 2), last
