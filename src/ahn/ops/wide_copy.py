"""Copies of rows `[..., n]` as wider numbers.

PyTorch's strided copy kernels take one time for a number of any size, so 16 bytes at a time are
copied eight times as fast as 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDE_DTYPES = (torch.complex128, torch.int64, torch.int32)  # of 16, 8 and 4 bytes


def widest_views(*tensors: Tensor) -> list[Tensor]:
    """Views of tensors of one dtype as the widest dtype that fits the rows of all of them.

    The views are for copies only. The tensors themselves are returned where no wider dtype fits,
    and where gradients are recorded.
    """
    if not torch.is_grad_enabled():
        for dtype in WIDE_DTYPES:
            if all(_fits(x, dtype.itemsize) for x in tensors):
                return [x.view(dtype) for x in tensors]
    return list(tensors)


def concat_tokens(blocks: Sequence[Tensor]) -> Tensor:
    """Concatenate `[B, G, T_i, *]` to `[B, G, T, *]`; a single block is returned uncopied."""
    if len(blocks) == 1:
        return blocks[0]
    return _view_as(torch.cat(widest_views(*blocks), 2), blocks[0].dtype)


def reverse_tokens(x: Tensor) -> Tensor:
    """A copy of `[B, G, T, *]` with the tokens in reverse order."""
    return _view_as(widest_views(x)[0].flip(2), x.dtype)


def _view_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` viewed as `dtype`; `x` itself where it has it: a view as a dtype cuts gradients."""
    return x if x.dtype == dtype else x.view(dtype)


def _fits(x: Tensor, size: int) -> bool:
    """Whether every row of `x` begins at a multiple of `size` bytes and is a multiple as long."""
    offsets = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    is_wider = size > x.itemsize and x.stride(-1) == 1
    return is_wider and not any(offset * x.itemsize % size for offset in offsets)
