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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ahn.ops.window_attention.dense import Part, join
from ahn.ops.window_attention.kept import KeptOutputs


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
    def length(self) -> int:
        """Tokens of the text that are its own, queries and keys; 0 where it has none."""
        return self.queries.stop - self.queries.start if self.is_first else 0

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
        """As the call has it: `[blocks, size, H, *]`.

        Contiguous: torch keeps cuDNN's plan by the strides of query, key and value alone.
        """
        if not self.is_far:
            return x.contiguous()
        from ahn.ops.window_attention.turn import turn

        found = torch.empty_like(x, memory_format=torch.contiguous_format)
        turn(found, x)
        return found

    def add(self, whole: Tensor, part: Tensor) -> None:
        """Add to a part of the text `[blocks, size, H, *]` what a call gave for it."""
        if self.is_far:
            from ahn.ops.window_attention.turn import turn

            turn(whole, part.contiguous(), add=True)
        else:
            whole.add_(part)


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
    kept: KeptOutputs | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; the keys are those of the queries, from position 0 on."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    sinks = min(sink_key.shape[2], query.shape[2])
    if sinks:
        key = torch.cat([sink_key[:, :, :sinks], key[:, :, sinks:]], 2)
        value = torch.cat([sink_value[:, :, :sinks], value[:, :, sinks:]], 2)
    inputs = (x.transpose(1, 2) for x in (query, key, value))
    return _Pieces.apply(*inputs, pieces(query.shape[2], window, sinks), scale, kept).transpose(
        1, 2
    )


class _Pieces(torch.autograd.Function):
    """`[B, T, H, K]`, `[B, T, G, K]` and `[B, T, G, V]` give `[B, T, H, V]`."""

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
    """Attention `[T, H, V]` and log-sum-exp `[T, H]` or `[T, H, 1]` of a row `[T, H or G, *]`."""
    found: list[Tensor] = []
    for piece in pieces:
        inputs = (piece.of_queries(query), piece.of_keys(key), piece.of_keys(value))
        parts = attend(*map(piece.turned, inputs), causal=piece.is_causal, scale=scale)
        if len(query) == piece.length:
            found = [part.flatten(0, 1) for part in parts]
            continue
        found = found or [x.new_empty(len(query), *x.shape[2:]) for x in parts]
        own = [piece.of_queries(x) for x in found]
        if piece.is_first:
            for x, part in zip(own, parts):
                x.copy_(part)
        else:
            known, new = _part(*own), _part(*parts)
            shared, far = (None, new) if piece.is_far else (new, None)
            join(known.out, known, shared, far, with_lse=True)
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
    found: list[Tensor] = []
    for piece in pieces:
        inputs = [piece.of_queries(query), piece.of_keys(key), piece.of_keys(value)]
        inputs += [piece.of_queries(x) for x in (gradient, out, lse)]
        parts = attend_backward(*map(piece.turned, inputs), causal=piece.is_causal, scale=scale)
        if len(query) == piece.length:
            found = [part.flatten(0, 1) for part in parts]
            continue
        found = found or [torch.empty_like(x) for x in (query, key, value)]
        of_query, *of_tokens = found
        own = [piece.of_queries(of_query), *map(piece.of_keys, of_tokens)]
        for x, part in zip(own, parts):
            x.copy_(part) if piece.is_first else piece.add(x, part)
    return found


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
