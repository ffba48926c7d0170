"""Triton kernel that copies or adds tokens in reverse order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # numbers a program


def reverse(to: Tensor, x: Tensor, add: bool = False) -> None:
    """Write `x` `[N, C, *]` into `to`, of the same shape, with C reversed; `add`: add it there.

    The numbers of a token lie one after the other in both.
    """
    assert to.shape == x.shape and all(y[0, 0].is_contiguous() for y in (to, x))
    rows, count, size = x.shape[0], x.shape[1], x[0, 0].numel()
    reverse_kernel[(count, rows, -(-size // BLOCK))](
        to, x, *to.stride()[:2], *x.stride()[:2], count, size, ADD=add,
        BLOCK=min(BLOCK, 1 << (size - 1).bit_length()),
    )  # fmt: skip


@triton.jit
def reverse_kernel(
    to, x, to_b, to_t, x_b, x_t, count, size, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    to += b * to_b + t.to(tl.int64) * to_t + i
    found = tl.load(x + b * x_b + (count - 1 - t).to(tl.int64) * x_t + i, i < size)
    if ADD:
        found = (tl.load(to, i < size).to(tl.float32) + found.to(tl.float32)).to(found.dtype)
    tl.store(to, found, i < size)
