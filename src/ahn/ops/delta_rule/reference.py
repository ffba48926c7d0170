"""The (gated) delta rule in plain PyTorch: token by token, and in parallel over chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.chunking import decay_between, join_chunks, scan_chunks, split_chunks
from ahn.ops.layout import l2_normalize, prepare
from ahn.ops.recurrence import RECURRENT_LENGTH


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
    """`ahn.ops.delta_rule` on any device, by the form that suits the number of tokens."""
    if normalize:
        query, key = l2_normalize(query), l2_normalize(key)
    query = query if scale == 1 else query * scale
    form = recurrent_delta_rule if query.shape[1] <= RECURRENT_LENGTH else chunk_delta_rule
    return form(query, key, value, beta, log_decay, initial_state)


def recurrent_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time; see `ahn.ops.delta_rule` for the contract."""
    query, key, value, state = prepare(query, key, value, initial_state)
    beta = beta.to(state.dtype)
    decay = None if log_decay is None else log_decay.to(state.dtype).exp()
    outputs = []
    for t in range(query.shape[1]):
        if decay is not None:
            state = state * decay[:, t, :, None, None]
        k = key[:, t, :, :, None]
        error = value[:, t, :, None, :] - k.transpose(-1, -2) @ state
        state = state + k @ (beta[:, t, :, None, None] * error)
        outputs.append(query[:, t, :, None, :] @ state)
    return torch.stack(outputs, 1).squeeze(-2), state


def chunk_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same function, parallel within chunks of 64 tokens (arXiv 2412.06464, section 3.3).

    Within a chunk the writes u solve (I + A) u = beta (v - decay k^T S), where A is strictly
    lower triangular and holds what each write reads of the earlier ones.
    """
    query, key, value, state = prepare(query, key, value, initial_state)
    length = query.shape[1]
    beta = beta.to(state.dtype)
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay.to(state.dtype)
    query, key, value, beta, log_decay = map(split_chunks, (query, key, value, beta, log_decay))
    total, between = decay_between(log_decay)
    strength = beta[..., None]
    earlier = ((key * strength) @ key.transpose(-1, -2) * between).tril(-1)
    targets = torch.cat([value * strength, key * (strength * total.exp()[..., None])], dim=-1)
    solved = torch.linalg.solve_triangular(earlier, targets, upper=False, unitriangular=True)
    write, erase = solved.split([value.shape[-1], key.shape[-1]], dim=-1)
    out, state = scan_chunks(query, key, write, erase, log_decay, state)
    return join_chunks(out, length), state
