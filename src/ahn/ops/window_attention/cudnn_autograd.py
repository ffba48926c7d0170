"""Sinks + window attention of a whole text, with gradients, by cuDNN's kernel on its blocks.

The text is cut into blocks of a window. A query sees its own block up to itself, of the block
before what its own does not reach (backwards in queries and keys that triangle is causal as
well), and the sinks. Blocks are rows of a batch, so that a text of any length takes a few calls.

The softmax is one over all pieces. Scores of a piece, joint log-sum-exp and joint output are all
that the gradient of the piece depends on (arXiv 2205.14135, appendix B.2), so the kernel's own
backward pass is given those in place of the piece's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ahn.ops.window_attention.blocks import Piece, pieces, rows_in_order
from ahn.ops.window_attention.cudnn_forward import Part, merge_lse
from ahn.ops.window_attention.saved import SavedOutputs


def has_single_tokens(length: int, window: int, num_sinks: int, skipped: int) -> bool:
    """Whether a call would be of one query or key, which torch keeps from cuDNN; see `pieces`."""
    found = pieces(length, window, num_sinks, skipped)
    return any(1 in piece.sizes for piece in found)


def whole_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    scale: float | None,
    kept: SavedOutputs | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; the keys are of all tokens from position 0 on.

    The queries are of the same tokens, or of those beyond the budget.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    length = key.shape[2]
    sinks = min(sink_key.shape[2], length)
    if sinks:
        key = torch.cat([sink_key[:, :, :sinks], key[:, :, sinks:]], 2)
        value = torch.cat([sink_value[:, :, :sinks], value[:, :, sinks:]], 2)
    inputs = (x.transpose(1, 2) for x in (query, key, value))
    found = pieces(length, window, sinks, skipped=length - query.shape[2])
    return _Pieces.apply(*inputs, found, scale, kept).transpose(1, 2)


class _Pieces(torch.autograd.Function):
    """`[B, C, H, K]`, `[B, T, G, K]` and `[B, T, G, V]` give `[B, C, H, V]`."""

    @staticmethod
    def forward(ctx, query, key, value, pieces, scale, kept):
        query, key, value = (x.contiguous() for x in (query, key, value))
        ctx.pieces, ctx.scale = pieces, scale
        compute = partial(_by_row, attend_pieces, ctx, query, key, value)
        out, lse = compute() if kept is None else kept.get(compute)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        given = (query, key, value, gradient.contiguous(), out, lse)
        return *_by_row(attend_pieces_backward, ctx, *given), None, None, None


def _by_row(run: Callable[..., list[Tensor]], ctx: Any, *inputs: Tensor) -> Sequence[Tensor]:
    """Of every row by itself, put together; of a single row without a copy."""
    rows = [run(*row, ctx.pieces, ctx.scale) for row in zip(*inputs)]
    return [x[0][None] if len(x) == 1 else torch.stack(x) for x in zip(*rows)]


def attend_pieces(
    query: Tensor, key: Tensor, value: Tensor, pieces: list[Piece], scale: float
) -> list[Tensor]:
    """Attention `[C, H, V]` and log-sum-exp `[C, H]` or `[C, H, 1]` of a row."""
    found: list[Tensor] = []
    for piece in pieces:
        inputs = (piece.of_queries(query), piece.of_keys(key), piece.of_keys(value))
        parts = attend(*map(piece.turned, inputs), causal=piece.is_causal, scale=scale)
        if piece.has_all(query):
            found = [rows_in_order(part) for part in parts]
            continue
        found = found or [x.new_empty(len(query), *x.shape[2:]) for x in parts]
        own = [piece.of_queries(x) for x in found]
        if piece.is_first:
            for x, part in zip(own, parts):
                x.copy_(part)
        else:
            known, new = _part(*own), _part(*parts)
            shared, far = (None, new) if piece.is_far else (new, None)
            merge_lse(known.out, known, shared, far, with_lse=True)
    return found


def attend_pieces_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    out: Tensor,
    lse: Tensor,
    pieces: list[Piece],
    scale: float,
) -> list[Tensor]:
    """Gradients by query, key and value of a row, from that of its output."""
    tokens = (query, key, value)
    found: list[Tensor | None] = [None, None, None]
    for piece in pieces:
        rows_of = (piece.of_queries, piece.of_keys, piece.of_keys)
        inputs = [rows(x) for rows, x in zip(rows_of, tokens)]
        inputs += [piece.of_queries(x) for x in (gradient, out, lse)]
        parts = attend_backward(*map(piece.turned, inputs), causal=piece.is_causal, scale=scale)
        for i, part in enumerate(parts):
            found[i] = piece.added(found[i], part, rows_of[i], tokens[i])
    return [torch.zeros_like(x) if y is None else y for x, y in zip(tokens, found)]


def _part(out: Tensor, lse: Tensor) -> Part:
    """Of tokens before heads, as views."""
    return Part(out.transpose(1, 2), lse.flatten(2).transpose(1, 2))


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention `[B, C, H, V]` and log-sum-exp `[B, C, H]` or `[B, C, H, 1]`, as torch has it.

    All tokens come before heads, here and in the backward pass.
    """
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        None, True, 0.0, causal, False, scale=scale,
    )  # fmt: skip
    return out.transpose(1, 2), lse.transpose(1, 2)


def attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients by query, key and value; `out` and `lse` may be of more keys than these."""
    q, k, v, g, o = (x.transpose(1, 2) for x in (query, key, value, gradient, out))
    seed = query.new_empty((), dtype=torch.int64)  # of no dropout
    found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        g, q, k, v, o, lse.transpose(1, 2).contiguous(), seed, seed, None, None, None,
        q.shape[2], k.shape[2], 0.0, causal, scale=scale,
    )  # fmt: skip
    return tuple(x.transpose(1, 2) for x in found)
