"""Exact attention over sinks + window: contract and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.wide_copy import concat_tokens
from ahn.ops.window_attention.cudnn_autograd import cudnn_sequence_attention, has_single_tokens
from ahn.ops.window_attention.cudnn_forward import (
    cudnn_window_attention,
    why_not_cudnn,
    why_not_dense,
)
from ahn.ops.window_attention.exact_rows import ExactRows
from ahn.ops.window_attention.reference import blocked_window_attention, with_exact_rows
from ahn.ops.window_attention.ring_views import num_tokens, token_slice
from ahn.ops.window_attention.saved import SavedOutputs

__all__ = [
    "ExactRows",
    "SavedOutputs",
    "decode_attention",
    "num_tokens",
    "token_slice",
    "why_not_dense",
    "window_attention",
]


def window_attention(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    *,
    window: int,
    start: int | Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    kept: SavedOutputs | None = None,
    exact_rows: ExactRows | None = None,
) -> Tensor:
    """Softmax attention of each query over the sinks and its last `window` tokens, itself included.

    Positions count real tokens of a row from 0; padding on the left has negative ones. Key
    column j has position `start + j`; the queries are the last C of those tokens.

    Args:
        query: `[B, H, C, K]`.
        key: `[B, G, T, K]`; value: `[B, G, T, V]`, with T >= C; or each as pieces `[B, G, T_i, *]`
            of these, in order, as they lie in a ring: dense blocks never copy the whole.
        sink_key: `[B, G, S, K]`; sink_value: `[B, G, S, V]`: the tokens at positions 0 to S - 1.
            Columns of `key` at those positions are not looked at a second time.
        start: position of the first key, one for all rows or `[B]`.
        scale: factor on the scores; None is K^-1/2.
        dropout: probability of dropping an attention weight.
        kept: of a layer that is computed again for its gradient. The form with gradients for GPUs
            leaves there what it computes, and takes it from there; the others compute it again.
        exact_rows: pairs that join the same softmax, by the reference alone.

    Returns:
        `[B, H, C, V]`. A query that is padding gets a finite value without meaning.

    Raises:
        ValueError: T < C.
    """
    keys, values = ([x] if isinstance(x, Tensor) else x for x in (key, value))
    before = num_tokens(keys) - query.shape[2]
    if before < 0:
        raise ValueError(
            f"window_attention: expected at least {query.shape[2]} keys, got {num_tokens(keys)}"
        )
    budget = sink_key.shape[2] + window
    whole = start == 0 and before in (0, budget) if isinstance(start, int) else False
    whole = (
        whole
        and exact_rows is None
        and torch.is_grad_enabled()
        and why_not_cudnn(query, values[0], dropout) is None
    )
    if whole and not has_single_tokens(num_tokens(keys), window, sink_key.shape[2], before):
        tokens = (concat_tokens(keys), concat_tokens(values))
        return cudnn_sequence_attention(query, *tokens, sink_key, sink_value, window, scale, kept)
    reference = partial(
        blocked_window_attention,
        sink_key=sink_key, sink_value=sink_value,
        window=window, start=start, scale=scale, dropout=dropout, exact_rows=exact_rows,
    )  # fmt: skip
    if not isinstance(start, int) or exact_rows is not None:
        return reference(query, concat_tokens(keys), concat_tokens(values))
    if why_not_dense(query, values[0], dropout):
        return reference(query, concat_tokens(keys), concat_tokens(values))
    known = min(max(0, sink_key.shape[2] - start - before), query.shape[2])
    parts = []  # queries that are sinks themselves come in a text's first chunk alone
    if known:
        key, value = (concat_tokens(token_slice(x, 0, before + known)) for x in (keys, values))
        parts.append(reference(query[:, :, :known], key, value))
    if known < query.shape[2]:
        rest = (query[:, :, known:], keys, values, sink_key, sink_value)
        parts.append(cudnn_window_attention(*rest, window, start, scale))
    return concat_tokens(parts)


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    filled: Tensor | None = None,
    exact_rows: ExactRows | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query a row over a ring, in whatever order its tokens lie.

    Args:
        query: `[B, H, 1, K]`; key: `[B, G, N, K]`; value: `[B, G, N, V]`, read in place.
        filled: `[B]`, number of leading ring rows that hold a token; None is all N.
        exact_rows: pairs of a memory that join the softmax; reader 0 is the query.
        scale: factor on the scores; None is K^-1/2.

    Returns:
        `[B, H, 1, V]`.
    """
    batch, heads, _, dim = query.shape
    groups, rows = key.shape[1], key.shape[2]
    mask = None
    if filled is not None:
        mask = (torch.arange(rows, device=key.device) < filled[:, None])[:, None, None]
    if exact_rows is not None:
        mask = query.new_ones(1, 1, 1, rows, dtype=torch.bool) if mask is None else mask
        mask = with_exact_rows(mask, exact_rows, groups, 0)
        key, value = torch.cat([key, exact_rows.key], 2), torch.cat([value, exact_rows.value], 2)
    # The heads of a group become rows of one query block: no key is copied for each of them.
    grouped = query.reshape(batch, groups, heads // groups, dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, 1, value.shape[-1])
