"""Launches of the kernels for linear maps of one new token a row.

For one row each function is a kernel that sums products of numbers, its norm included. For 2 to
BATCH rows it is a matrix product by a kernel, after PyTorch's norm. For more rows PyTorch does the
large products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ahn.ops.gemv.reference import rms_norm
from ahn.ops.gemv.weights import Linear, Norm, concat_linear

SHORT = 2048  # largest hidden state whose loops are unrolled; beyond it registers run out
# For one row, by the size of the hidden state: rows of a weight a program, numbers of a weight's
# row it loads together, how many of these blocks it loads before it has the input, and warps.
# Measured on an H200 with hidden states of 2,048, 3,584 and 5,120 numbers.
_BOTH = {"output": (2, 1024, 2, 4), "gated": (2, 1024, 1, 4), "down": (2, 1024, 2, 4)}
_SHORT = {"maps": (4, 1024, 2, 4), "head": (4, 1024, 2, 4)}
_LONG = {"maps": (4, 1024, 1, 4), "head": (8, 1024, 1, 4)}
FORMS = {"short": _BOTH | _SHORT, "long": _BOTH | _LONG}
# For 2 to BATCH rows: rows of a weight a program, numbers of a row a block, pipeline stages, warps.
# Products this narrow use the older matrix instructions: Triton 3.6 miscompiles Hopper's.
NET_ROWS = 4  # rows of a net's first weight a program: all of it is small
BATCH = 32
BATCH_FORMS = {
    "maps": (16, 128, 6, 2),
    "output": (16, 256, 4, 2),
    "gated": (32, 128, 4, 2),
    "down": (16, 128, 6, 2),
}


def norm_linear(x: Tensor, norm: Norm, maps: Sequence[Linear], starts_chain: bool) -> Tensor:
    """`ahn.ops.gemv.norm_linear` on a GPU."""
    if len(x) == 1:
        form = "head" if len(maps) == 1 else "maps"
        return _run_vector(x, maps, form, norm=norm, starts_chain=starts_chain)
    x = rms_norm(x, norm)
    # A single map is the LM head: one product, which PyTorch does as fast.
    is_small = len(x) <= BATCH and len(maps) > 1
    return _run_rows(x, maps, "maps") if is_small else concat_linear(x, maps)


def norm_swiglu(x: Tensor, norm: Norm, gate: Linear, up: Linear) -> Tensor:
    """`ahn.ops.gemv.norm_swiglu` on a GPU."""
    if len(x) == 1:
        return _run_vector(x, [gate], "gated", norm=norm, up_weight=up.weight)
    x = rms_norm(x, norm)
    if len(x) <= BATCH:
        return _run_rows(x, [gate], "gated", up_weight=up.weight)
    from ahn.ops.gated_mlp.triton import silu_mul_

    return silu_mul_(F.linear(x, gate.weight), F.linear(x, up.weight))


def norm_net(x: Tensor, norm: Norm, first: Linear, last: Linear) -> Tensor:
    """`ahn.ops.gemv.norm_net` on a GPU: a kernel of its own, since x has another dtype."""
    from ahn.ops.dependent_launch import launch_options
    from ahn.ops.gemv.net_triton import norm_hidden

    assert first.bias is not None and last.bias is not None, "asked for in the contract"
    size, width = x.shape[1], len(first.weight)
    hidden = first.weight.new_empty(len(x), width)
    norm_hidden[(-(-width // NET_ROWS), len(x))](
        x, norm.weight, first.weight, first.bias, hidden, width, eps=norm.eps, D=size,
        ROWS=NET_ROWS, BLOCK=min(1024, 1 << (size - 1).bit_length()), **launch_options(x.device),
    )  # fmt: skip
    return F.linear(hidden, last.weight, last.bias)


def linear_add(x: Tensor, linear: Linear, residual: Tensor) -> Tensor:
    """`ahn.ops.gemv.linear_add` on a GPU; for more than BATCH rows in place."""
    form = "output" if x.shape[1] <= residual.shape[1] else "down"
    if len(x) == 1:
        return _run_vector(x, [linear], form, residual=residual)
    if len(x) <= BATCH:
        return _run_rows(x, [linear], form, residual=residual)
    if linear.bias is None:
        return residual.addmm_(x, linear.weight.t())
    return residual.add_(F.linear(x, linear.weight, linear.bias))


def _run_vector(
    x: Tensor,
    maps: Sequence[Linear],
    form: str,
    *,
    norm: Norm | None = None,
    up_weight: Tensor | None = None,
    residual: Tensor | None = None,
    starts_chain: bool = False,
) -> Tensor:
    from ahn.ops.dependent_launch import launch_options
    from ahn.ops.gemv.triton import gemv

    size, hidden = x.shape[1], x.shape[1] if residual is None else residual.shape[1]
    rows, block, prefetch, warps = FORMS["short" if hidden <= SHORT else "long"][form]
    if up_weight is not None and size % block:  # two weights' last blocks would be half empty
        block //= 2
    blocks, out, places = _places(x, maps, rows)
    gemv[(blocks,)](
        x, x if norm is None else norm.weight, *_tensors(maps),
        x if up_weight is None else up_weight, x if residual is None else residual, out,
        eps=0.0 if norm is None else norm.eps, D=size, ROWS=rows,
        BLOCK=min(block, 1 << (size - 1).bit_length()), PREFETCH=prefetch, UNROLLED=size <= SHORT,
        HAS_NORM=norm is not None, SWIGLU=up_weight is not None, HAS_RESIDUAL=residual is not None,
        num_warps=warps, **places, **launch_options(x.device, starts_chain),
    )  # fmt: skip
    return out


def _run_rows(
    x: Tensor,
    maps: Sequence[Linear],
    form: str,
    *,
    up_weight: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    from ahn.ops.dependent_launch import launch_options
    from ahn.ops.gemv.triton import skinny_gemm

    rows, block, stages, warps = BATCH_FORMS[form]
    blocks, out, places = _places(x, maps, rows)
    skinny_gemm[(blocks,)](
        x, *_tensors(maps), x if up_weight is None else up_weight,
        x if residual is None else residual, out, len(x), D=x.shape[1], OUT=out.shape[1], ROWS=rows,
        BLOCK=2 * block // x.element_size(),
        BATCH=max(16, 1 << (len(x) - 1).bit_length()), SWIGLU=up_weight is not None,
        HAS_RESIDUAL=residual is not None, PRECISION="ieee" if x.element_size() == 4 else "tf32",
        num_stages=stages, num_warps=warps, **places, **launch_options(x.device),
    )  # fmt: skip
    return out


def _tensors(maps: Sequence[Linear]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    weights = tuple(one.weight for one in maps)
    return weights, tuple(one.weight if one.bias is None else one.bias for one in maps)


def _places(x: Tensor, maps: Sequence[Linear], rows: int) -> tuple[int, Tensor, dict[str, Any]]:
    """The number of programs, an empty output, and where each map's part of it lies."""
    sizes = tuple(len(one.weight) for one in maps)
    *firsts, blocks = accumulate((-(-size // rows) for size in sizes), initial=0)
    *columns, width = accumulate(sizes, initial=0)
    return (
        blocks,
        x.new_empty(len(x), width),
        {
            "first_blocks": tuple(firsts),
            "sizes": sizes,
            "columns": tuple(columns),
            "has_bias": tuple(int(one.bias is not None) for one in maps),
            "COUNT": len(maps),
        },
    )
