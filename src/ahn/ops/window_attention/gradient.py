"""Sinks + window attention of a whole text, with gradients, by cuDNN's kernel on its blocks.

The text is cut into blocks of a window. A query sees its own block up to itself, of the block
before what its own does not reach (backwards in queries and keys that triangle is causal as
well), and the sinks. Blocks are rows of a batch, so that a text of any length takes a few calls.

The softmax is one over all pieces. Scores of a piece, joint log-sum-exp and joint output are all
that the gradient of the piece depends on (arXiv 2205.14135, appendix B.2), so the kernel's own
backward pass is given those in place of the piece's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ahn.ops.window_attention.dense import Part, join


class Piece(NamedTuple):
    """Queries and keys of one call, as parts of the text.

    Attributes:
        blocks: rows of a batch that both are cut into.
        is_far: backwards, without the last query and the first key of each block, which see and
            are seen by nothing.
    """

    queries: slice
    keys: slice
    blocks: int = 1
    is_causal: bool = True
    is_far: bool = False

    @property
    def is_first(self) -> bool:
        """Whether its queries are in no piece before it."""
        return self.queries == self.keys

    @property
    def is_empty(self) -> bool:
        size = (self.queries.stop - self.queries.start) // max(1, self.blocks) - self.is_far
        return size <= 0 or self.keys.stop <= self.keys.start

    def of_queries(self, x: Tensor) -> Tensor:
        """The part of `[T, H, *]`, in order: a view `[blocks, size, H, *]`."""
        found = x[self.queries].unflatten(0, (self.blocks, -1))
        return found[:, :-1] if self.is_far else found

    def of_keys(self, x: Tensor) -> Tensor:
        """As `of_queries`."""
        found = x[self.keys].unflatten(0, (self.blocks, -1))
        return found[:, 1:] if self.is_far else found

    def turned(self, x: Tensor) -> Tensor:
        """As the call has it, or back: `[blocks, size, H, *]`.

        Contiguous: torch keeps cuDNN's plan by the strides of query, key and value alone.
        """
        return (x.flip(1) if self.is_far else x).contiguous()


def pieces(length: int, window: int, num_sinks: int) -> list[Piece]:
    """What makes up sinks + window attention of a text; each query's own block comes first."""
    first = min(num_sinks, length)
    blocks, rest = divmod(length - first, window)
    whole = length - rest
    sinks, aligned, tail = slice(0, first), slice(first, whole), slice(whole, length)
    found = [Piece(sinks, sinks), Piece(aligned, aligned, blocks), Piece(tail, tail)]
    found.append(Piece(slice(first, length), sinks, is_causal=False))
    if blocks:
        before = whole - window  # the last whole block, which the tail still sees
        found += [
            Piece(slice(first + window, whole), slice(first, before), blocks - 1, is_far=True),
            Piece(tail, slice(before + rest, whole), is_causal=False),
            Piece(tail, slice(before, before + rest), is_far=True),
        ]
    return [piece for piece in found if not piece.is_empty]


def whole_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    scale: float | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; the keys are those of the queries, from position 0 on."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    sinks = min(sink_key.shape[2], query.shape[2])
    if sinks:
        key = torch.cat([sink_key[:, :, :sinks], key[:, :, sinks:]], 2)
        value = torch.cat([sink_value[:, :, :sinks], value[:, :, sinks:]], 2)
    rows = zip(*(x.transpose(1, 2) for x in (query, key, value)))
    found = [_Pieces.apply(*row, window, sinks, scale) for row in rows]
    return (found[0][None] if len(found) == 1 else torch.stack(found)).transpose(1, 2)


class _Pieces(torch.autograd.Function):
    """Of one row: `[T, H, K]`, `[T, G, K]` and `[T, G, V]` give `[T, H, V]`."""

    @staticmethod
    def forward(ctx, query, key, value, window, num_sinks, scale):
        query, key, value = (x.contiguous() for x in (query, key, value))
        out, lse = query.new_empty(*query.shape[:2], value.shape[-1]), None
        ctx.pieces, ctx.scale = pieces(len(query), window, num_sinks), scale
        for piece in ctx.pieces:
            inputs = (piece.of_queries(query), piece.of_keys(key), piece.of_keys(value))
            part, part_lse = attend(*map(piece.turned, inputs), causal=piece.is_causal, scale=scale)
            if lse is None:
                lse = part_lse.new_empty(*query.shape[:2], *part_lse.shape[3:])
            own, own_lse = piece.of_queries(out), piece.of_queries(lse)
            if piece.is_first:
                own.copy_(part)
                own_lse.copy_(part_lse)
            else:
                known, new = _part(own, own_lse), _part(part, part_lse)
                shared, far = (None, new) if piece.is_far else (new, None)
                join(known.out, known, shared, far, with_lse=True)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for piece in ctx.pieces:
            inputs = [piece.of_queries(query), piece.of_keys(key), piece.of_keys(value)]
            inputs += [piece.of_queries(x) for x in (gradient, out, lse)]
            parts = attend_backward(
                *map(piece.turned, inputs), causal=piece.is_causal, scale=ctx.scale
            )
            by_query, by_key, by_value = map(piece.turned, parts)
            own = piece.of_queries(of_query)
            own.copy_(by_query) if piece.is_first else own.add_(by_query)
            piece.of_keys(of_key).add_(by_key)
            piece.of_keys(of_value).add_(by_value)
        return of_query, of_key, of_value, None, None, None


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
