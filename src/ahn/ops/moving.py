"""Moving rows `[..., n]` about: PyTorch's strided kernels take as long for 2 bytes as for 16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDER = (torch.complex128, torch.int64, torch.int32)  # numbers of 16, 8 and 4 bytes


def wide(*tensors: Tensor) -> list[Tensor]:
    """The same rows, of one length and dtype, as the widest numbers that fit into all of them.

    Views, to be copied only; the tensors themselves where nothing wider fits, and where a
    gradient is taken.
    """
    if not torch.is_grad_enabled():
        for dtype in WIDER:
            if all(_fits(x, dtype.itemsize) for x in tensors):
                return [x.view(dtype) for x in tensors]
    return list(tensors)


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces `[B, G, T_i, *]` one after the other, `[B, G, T, *]`; one piece stays where it is."""
    if len(pieces) == 1:
        return pieces[0]
    return _as(torch.cat(wide(*pieces), 2), pieces[0].dtype)


def flipped(x: Tensor) -> Tensor:
    """A copy of `[B, G, T, *]` with time reversed."""
    return _as(wide(x)[0].flip(2), x.dtype)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers; no gradient passes a view as another dtype, not even as its own."""
    return x if x.dtype == dtype else x.view(dtype)


def _fits(x: Tensor, size: int) -> bool:
    """Whether every row of `x` begins at, and is, a multiple of so many bytes."""
    steps = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    wider = size > x.itemsize and x.stride(-1) == 1
    return wider and not any(step * x.itemsize % size for step in steps)
