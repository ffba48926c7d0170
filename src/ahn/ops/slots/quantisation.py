"""Keys and values in 8 or 4 bits a number: codes, and one scale for every few numbers.

A pair is quantised once, when it leaves the window, and is read from its codes from then on. So
what is read does not depend on how the text was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.layout import compute_dtype

BITS = (16, 8, 4)  # 16 keeps the numbers as they are
LARGEST_GROUP = 32  # numbers that share a scale
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, torch.finfo(torch.float16).max


def quantised_shapes(dim: int, bits: int) -> tuple[int, int]:
    """Bytes of the codes of `dim` numbers, and how many scales they have."""
    return dim * bits // 8, dim // group_size(dim)


def group_size(dim: int) -> int:
    """Numbers that share a scale: the largest divisor of `dim` up to 32."""
    return next(n for n in range(min(LARGEST_GROUP, dim), 0, -1) if dim % n == 0)


def quantised(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes `[..., K * bits / 8]` uint8 and scales `[..., K / group]` float16 of `[..., K]`.

    A number is `scale * (code - 2^(bits - 1))`. The scale is rounded before the codes are taken,
    and codes are symmetric about zero. Of two 4-bit codes in a byte the first is the lower half.
    """
    offset = 2 ** (bits - 1)
    groups = x.to(compute_dtype(x)).unflatten(-1, (-1, group_size(x.shape[-1])))
    scale = groups.abs().amax(-1) / (offset - 1)
    scale = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)
    codes = (groups / scale[..., None].to(groups.dtype)).round().clamp(1 - offset, offset - 1)
    codes = (codes.flatten(-2) + offset).to(torch.uint8)
    return (codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4), scale


def dequantised(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The numbers `[..., K]` that `quantised` made codes of, in `dtype`."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    wide = torch.promote_types(dtype, torch.float32)
    groups = (codes.to(wide) - 2 ** (bits - 1)).unflatten(-1, (scale.shape[-1], -1))
    return (groups * scale[..., None].to(wide)).flatten(-2).to(dtype)
