"""Attention over sinks and window in one Triton kernel; no gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOG2E = 1.4426950408889634


def flash_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int | Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `ahn.ops.window_attention`; a query that sees nothing gets zeros.

    Returns:
        The output `[B, H, C, V]`, and the log-sum-exp of each query's scores, `[B, H, C]` float32.
    """
    from ahn.ops.window_attention.flash_triton import window_kernel

    batch, heads, number, _ = query.shape
    queries, options = _options(query, value)
    inputs = (query, key, value, sink_key, sink_value)
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in inputs]
    starts = torch.as_tensor(start, dtype=torch.int32, device=query.device).reshape(-1)
    # Tokens before heads in memory, since the output projection reads it that way.
    out = query.new_empty(batch, number, heads, value.shape[-1]).transpose(1, 2)
    lse = query.new_empty(batch, heads, number, dtype=torch.float32)
    window_kernel[(-(-number // queries), batch * heads)](
        *tensors, starts, out, lse, *(stride for x in (*tensors, out) for stride in x.stride()[:3]),
        scale * LOG2E, heads, key.shape[1], number, key.shape[2], sink_key.shape[2], window,
        START_STRIDE=int(len(starts) > 1), QUERIES=queries, **options,
    )  # fmt: skip
    return out, lse


def _options(query: Tensor, value: Tensor) -> tuple[int, dict[str, Any]]:
    """Queries of a program, and how the kernels are compiled: the fastest on an H200."""
    dim, width = query.shape[-1], value.shape[-1]
    queries, block, options = 128, 128, {"num_warps": 8, "num_stages": 3}
    if max(dim, width) > 128:
        block, options = 64, {"num_warps": 8, "num_stages": 2}
    if query.dtype == torch.float32:
        queries, block, options = 32, 32, {"num_warps": 4, "num_stages": 1}
    precision = "ieee" if query.dtype == torch.float32 else "tf32"
    sizes = {"K": dim, "V": width, "BK": _padded(dim), "BV": _padded(width), "BLOCK": block}
    return queries, {**sizes, "PRECISION": precision, **options}


def _padded(n: int) -> int:
    """The next power of two, at least 64; see `ahn.ops.chunk_scan.prepare.padded`."""
    return max(64, 1 << (n - 1).bit_length())
