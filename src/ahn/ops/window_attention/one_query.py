"""Exact attention of one query a row, over a ring that is read where it lies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.window_attention.exact_rows import ExactRows, SeenRows, SlotRows


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    filled: Tensor | None = None,
    exact_rows: ExactRows | SlotRows | None = None,
    num_sinks: int = 0,
    sink_logits: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query a row over a ring, in whatever order its tokens lie.

    Args:
        query: `[B, H, 1, K]`; key: `[B, G, N, K]`; value: `[B, G, N, V]`, read in place.
        filled: `[B]`, number of leading ring rows that hold a token; None is all N.
        exact_rows: pairs of a memory that join the softmax; reader 0 is the query.
        num_sinks: leading rows that are sinks, for rows that are read at another distance.
        sink_logits: `[H]`, one more term of each head's log-sum-exp, to which no value belongs.
        scale: factor on the scores; None is K^-1/2.

    Returns:
        `[B, H, 1, V]`.
    """
    batch, heads, _, dim = query.shape
    groups, rows = key.shape[1], key.shape[2]
    mask = None
    if filled is not None:
        mask = (torch.arange(rows, device=key.device) < filled[:, None])[:, None, None]
    # The heads of a group become rows of one query block: no key is copied for each of them.
    grouped = query.reshape(batch, groups, heads // groups, dim)
    if exact_rows is None and sink_logits is None:
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    else:
        seen = None if exact_rows is None else exact_rows.seen_by(0, 1, key[:, :, :num_sinks])
        out = _by_definition(grouped, key, value, mask, seen, sink_logits, scale)
    return out.reshape(batch, heads, 1, value.shape[-1])


def _by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: SeenRows | None,
    sink_logits: Tensor | None,
    scale: float | None,
) -> Tensor:
    """One softmax over ring, rows and sink logit, without copies; query `[B, G, H / G, K]`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    parts = [(query, key, value, mask)]
    if rows is not None:
        parts.append((query, rows.key, rows.value, rows.visible))
    if rows is not None and rows.far is not None:
        sinks = rows.far.key.shape[2] - rows.key.shape[2]
        far = (rows.far.visible[..., :sinks], rows.far.visible[..., sinks:])
        near = F.pad(~far[0], (0, key.shape[2] - sinks), value=True)
        parts[0] = (query, key, value, near if mask is None else near & mask)
        asked = rows.far.query.reshape(query.shape)
        parts.append((asked, rows.far.key[:, :, :sinks], value[:, :, :sinks], far[0]))
        parts.append((asked, rows.far.key[:, :, sinks:], rows.value, far[1]))
    scores = []
    for asked, keys, _, visible in parts:
        x = (asked * scale) @ keys.mT
        scores.append(x if visible is None else x.masked_fill_(~visible, -torch.inf))
    if sink_logits is not None:
        shape = (1, *query.shape[1:3], 1)
        scores.append(sink_logits.to(query.dtype).view(shape).expand(len(query), -1, -1, -1))
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = torch.cat(scores, -1).to(wide).softmax(-1).to(query.dtype)
    shares = weights.split([x.shape[-1] for x in scores], -1)
    return sum(share @ values for share, (_, _, values, _) in zip(shares, parts))
