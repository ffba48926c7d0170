"""How a sequence is cut into calls of cuDNN's kernel, whose batch rows are blocks of a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

REVERSE_BLOCK = 2048  # numbers that a program of `reverse` copies


class BlockedCall(NamedTuple):
    """One call of the kernel: queries and keys of the sequence, cut into blocks.

    Attributes:
        queries, keys: their tokens in the sequence.
        is_first: whether no call before has these queries.
        num_blocks: blocks that queries and keys are cut into; the rows of the kernel's batch.
        is_causal: whether the kernel masks causally.
        is_anticausal: whether query i of a block sees only the keys j > i. Both are then given to
            the kernel in reverse order, which makes this mask a causal one. The last query and the
            first key of each block are left out, since they see and are seen by nothing.
    """

    queries: slice
    keys: slice
    is_first: bool = False
    num_blocks: int = 1
    is_causal: bool = True
    is_anticausal: bool = False

    @property
    def block_sizes(self) -> tuple[int, int]:
        """Queries and keys of a block."""
        queries, keys = (x.stop - x.start for x in (self.queries, self.keys))
        num_blocks = max(1, self.num_blocks)
        return queries // num_blocks - self.is_anticausal, keys // num_blocks - self.is_anticausal

    def query_blocks(self, x: Tensor) -> Tensor:
        """The queries of `[T, H, *]` in order, as a view `[num_blocks, size, H, *]`."""
        blocks = x[self.queries].unflatten(0, (self.num_blocks, -1))
        return blocks[:, :-1] if self.is_anticausal else blocks

    def key_blocks(self, x: Tensor) -> Tensor:
        """The keys of `[T, G, *]` in order, as a view `[num_blocks, size, G, *]`."""
        blocks = x[self.keys].unflatten(0, (self.num_blocks, -1))
        return blocks[:, 1:] if self.is_anticausal else blocks

    def kernel_input(self, blocks: Tensor) -> Tensor:
        """The blocks `[num_blocks, size, H, *]` in the order in which the kernel takes them.

        They are contiguous, because torch looks up cuDNN's plan by the strides of query, key and
        value alone.
        """
        if not self.is_anticausal:
            return blocks.contiguous()
        reversed_blocks = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        reverse(reversed_blocks, blocks)
        return reversed_blocks

    def covers(self, x: Tensor) -> bool:
        """Whether the queries are all tokens of `[T, H, *]`, for the first time."""
        return self.is_first and self.queries.stop - self.queries.start == len(x)

    def accumulate(
        self,
        total: Tensor | None,
        part: Tensor,
        blocks_of: Callable[[Tensor], Tensor],
        like: Tensor,
    ) -> Tensor:
        """Add a call's gradient to the total `[T, H, *]`, at the tokens that `blocks_of` chooses.

        Args:
            total: None before the first call.
            like: a tensor of the total's shape and dtype.
        """
        if self.covers(like):
            return merge_blocks(part)
        total = torch.zeros_like(like) if total is None else total
        blocks = blocks_of(total)
        if self.is_anticausal:
            reverse(blocks, part.contiguous(), add=True)
        elif self.is_first:
            blocks.copy_(part)
        else:
            blocks.add_(part)
        return total


def merge_blocks(x: Tensor) -> Tensor:
    """`[num_blocks, size, H, *]` as `[T, H, *]`, contiguous.

    The log-sum-exp comes with heads before tokens, so a view is not enough even for one block.
    """
    return x.flatten(0, 1).contiguous()


def reverse(to: Tensor, x: Tensor, add: bool = False) -> None:
    """Copy `x` `[N, C, *]` into `to`, of the same shape, with the tokens C in reverse order.

    The numbers of a token must be contiguous in both. With `add` they are added to `to`.
    """
    from ahn.ops.window_attention.triton import reverse_kernel

    assert to.shape == x.shape and all(y[0, 0].is_contiguous() for y in (to, x))
    rows, tokens, size = x.shape[0], x.shape[1], x[0, 0].numel()
    reverse_kernel[(tokens, rows, -(-size // REVERSE_BLOCK))](
        to, x, *to.stride()[:2], *x.stride()[:2], tokens, size, ADD=add,
        BLOCK=min(REVERSE_BLOCK, 1 << (size - 1).bit_length()),
    )  # fmt: skip


def plan_calls(length: int, window: int, num_sinks: int, num_skipped: int = 0) -> list[BlockedCall]:
    """The calls that make up sinks + window attention; a query's own block is in the first.

    Args:
        num_skipped: first tokens that are no queries, none or those of the budget.
    """
    sinks_end = min(num_sinks, length)
    num_blocks, rest = divmod(length - sinks_end, window)
    tail_start = length - rest
    sink_queries = slice(0, 0 if num_skipped else sinks_end)
    aligned, tail = slice(max(sinks_end, num_skipped), tail_start), slice(tail_start, length)
    sinks, beyond = slice(0, sinks_end), slice(max(sinks_end, num_skipped), length)
    calls = [
        BlockedCall(sink_queries, sink_queries, is_first=True),
        BlockedCall(aligned, aligned, True, num_blocks - (num_skipped > 0)),
        BlockedCall(tail, tail, True),
        BlockedCall(beyond, sinks, is_causal=False),
    ]
    if num_blocks:
        last = tail_start - window  # the last full block starts here; the tail still sees its end
        queries, keys = slice(sinks_end + window, tail_start), slice(sinks_end, last)
        calls += [
            BlockedCall(queries, keys, False, num_blocks - 1, True, True),
            BlockedCall(tail, slice(last + rest, tail_start), is_causal=False),
            BlockedCall(tail, slice(last, last + rest), is_anticausal=True),
        ]
    return [_without_skipped(call, num_skipped) for call in calls if min(call.block_sizes) > 0]


def _without_skipped(call: BlockedCall, num_skipped: int) -> BlockedCall:
    """The call with its queries counted from the first one on that is not skipped."""
    queries = slice(call.queries.start - num_skipped, call.queries.stop - num_skipped)
    return call._replace(queries=queries)
