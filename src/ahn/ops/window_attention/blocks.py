"""How a whole text is cut for cuDNN's kernel: into blocks of a window, rows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Queries and keys of one call, as parts of the text.

    Attributes:
        is_first: whether its queries are in no piece before it.
        blocks: rows of a batch that both are cut into.
        is_far: backwards, without the last query and the first key of each block, which see and
            are seen by nothing.
    """

    queries: slice
    keys: slice
    is_first: bool = False
    blocks: int = 1
    is_causal: bool = True
    is_far: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Queries and keys of a block."""
        queries, keys = (x.stop - x.start for x in (self.queries, self.keys))
        blocks = max(1, self.blocks)
        return queries // blocks - self.is_far, keys // blocks - self.is_far

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
        from ahn.ops.window_attention.reverse import reverse

        found = torch.empty_like(x, memory_format=torch.contiguous_format)
        reverse(found, x)
        return found

    def has_all(self, x: Tensor) -> bool:
        """Whether these are all tokens of `[T, H, *]`, for the first time."""
        return self.is_first and self.queries.stop - self.queries.start == len(x)

    def added(
        self,
        whole: Tensor | None,
        part: Tensor,
        rows_of: Callable[[Tensor], Tensor],
        like: Tensor,
    ) -> Tensor:
        """The sum by now of a gradient `[T, H, *]`, with what a call gave for some rows of it."""
        if self.has_all(like):
            return rows_in_order(part)
        whole = torch.zeros_like(like) if whole is None else whole
        rows = rows_of(whole)
        if self.is_far:
            from ahn.ops.window_attention.reverse import reverse

            reverse(rows, part.contiguous(), add=True)
        elif self.is_first:
            rows.copy_(part)
        else:
            rows.add_(part)
        return whole


def rows_in_order(x: Tensor) -> Tensor:
    """`[blocks, size, H, *]` as `[T, H, *]`, contiguous.

    Of one block a view would do, but log-sum-exp comes with its heads before its tokens.
    """
    return x.flatten(0, 1).contiguous()


def pieces(length: int, window: int, num_sinks: int, skipped: int = 0) -> list[Piece]:
    """What makes up sinks + window attention of a text; each query's own block comes first.

    Args:
        skipped: first tokens that are no queries, none or those of the budget.
    """
    first = min(num_sinks, length)
    blocks, rest = divmod(length - first, window)
    whole = length - rest
    known = slice(0, 0 if skipped else first)
    aligned, tail = slice(max(first, skipped), whole), slice(whole, length)
    sinks, beyond = slice(0, first), slice(max(first, skipped), length)
    found = [
        Piece(known, known, is_first=True),
        Piece(aligned, aligned, True, blocks - (skipped > 0)),
        Piece(tail, tail, True),
        Piece(beyond, sinks, is_causal=False),
    ]
    if blocks:
        before = whole - window  # the last whole block, which the tail still sees
        found += [
            Piece(
                slice(first + window, whole), slice(first, before), False, blocks - 1, True, True
            ),
            Piece(tail, slice(before + rest, whole), is_causal=False),
            Piece(tail, slice(before, before + rest), is_far=True),
        ]
    return [_shifted(piece, skipped) for piece in found if min(piece.sizes) > 0]


def _shifted(piece: Piece, skipped: int) -> Piece:
    """With its queries counted from the first one on."""
    queries = slice(piece.queries.start - skipped, piece.queries.stop - skipped)
    return piece._replace(queries=queries)
