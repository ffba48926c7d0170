"""Linear maps of a decoding step, with the norm before and the sum after.

All take one token of every row, `[B, D]`, and weights where they are, which are read once for all
rows. Of one row each is a kernel that sums products of numbers, its norm included; of up to BATCH
rows one that multiplies matrices, after the library's norm; of more rows all is the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Linear", "Norm", "concat_linear", "linear_add", "norm_linear", "norm_swiglu"]

SHORT = 2048  # size of a hidden state, up to which its maps are unrolled; else registers run out
# For one input, of hidden states that are short or not: rows of a weight that a program maps,
# numbers of a row it reads together, how many of these blocks it asks for before it knows the
# input, warps. As measured on an H200, for 2,048, 3,584 and 5,120 numbers.
_BOTH = {"output": (2, 1024, 2, 4), "gated": (2, 1024, 1, 4), "down": (2, 1024, 2, 4)}
_SHORT = {"maps": (4, 1024, 2, 4), "head": (4, 1024, 2, 4)}
_LONG = {"maps": (4, 1024, 1, 4), "head": (8, 1024, 1, 4)}
FORMS = {"short": _BOTH | _SHORT, "long": _BOTH | _LONG}
# For up to BATCH inputs: rows, numbers of a row, blocks under way, warps. Products this small stay
# with the older matrix instructions; Triton 3.6 goes wrong in narrow ones of Hopper's own.
BATCH = 32
BATCH_FORMS = {
    "maps": (16, 128, 6, 2),
    "output": (16, 256, 4, 2),
    "gated": (32, 128, 4, 2),
    "down": (16, 128, 6, 2),
}


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean x^2 + eps), times the weight `[D]`."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Linear:
    """x -> weight x + bias, weight `[R, D]` and contiguous, bias `[R]` or None."""

    weight: Tensor
    bias: Tensor | None = None


def norm_linear(
    x: Tensor, norm: Norm, maps: Sequence[Linear], *, starts_chain: bool = False
) -> Tensor:
    """The maps' outputs of the normed x side by side, `[B, sum of R]`.

    `starts_chain` says that what came before is to have ended, see `ahn.ops.dependent_launch`.
    """
    if len(x) == 1:
        form = "head" if len(maps) == 1 else "maps"
        return _run_vector(x, maps, form, norm=norm, starts_chain=starts_chain)
    x = _normed(x, norm)
    few = len(x) <= BATCH and len(maps) > 1  # a head is one product that the library does as well
    return _run_rows(x, maps, "maps") if few else concat_linear(x, maps)


def norm_swiglu(x: Tensor, norm: Norm, gate: Linear, up: Linear) -> Tensor:
    """silu(gate x) * (up x) of the normed x, `[B, R]`; the two maps have no bias."""
    if len(x) == 1:
        return _run_vector(x, [gate], "gated", norm=norm, second=up.weight)
    x = _normed(x, norm)
    if len(x) <= BATCH:
        return _run_rows(x, [gate], "gated", second=up.weight)
    from ahn.ops.gated_mlp.triton import silu_mul_

    return silu_mul_(F.linear(x, gate.weight), F.linear(x, up.weight))


def linear_add(x: Tensor, linear: Linear, residual: Tensor) -> Tensor:
    """residual `[B, R]` + linear x; of many rows written over `residual`."""
    form = "output" if x.shape[1] <= residual.shape[1] else "down"
    if len(x) == 1:
        return _run_vector(x, [linear], form, residual=residual)
    if len(x) <= BATCH:
        return _run_rows(x, [linear], form, residual=residual)
    if linear.bias is None:
        return residual.addmm_(x, linear.weight.t())
    return residual.add_(F.linear(x, linear.weight, linear.bias))


def concat_linear(x: Tensor, maps: Sequence[Linear]) -> Tensor:
    """The maps' outputs of x `[..., D]` side by side, `[..., sum of R]`, by one product.

    Of many rows, joining the weights costs less than products apart.
    """
    if len(maps) == 1:
        return F.linear(x, maps[0].weight, maps[0].bias)
    biases = [x.new_zeros(len(m.weight)) if m.bias is None else m.bias for m in maps]
    has_bias = any(one.bias is not None for one in maps)
    return F.linear(x, torch.cat([m.weight for m in maps]), torch.cat(biases) if has_bias else None)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    return F.rms_norm(x, x.shape[1:], norm.weight, norm.eps)


def _run_vector(
    x: Tensor,
    maps: Sequence[Linear],
    form: str,
    *,
    norm: Norm | None = None,
    second: Tensor | None = None,
    residual: Tensor | None = None,
    starts_chain: bool = False,
) -> Tensor:
    from ahn.ops.dependent_launch import launch_options
    from ahn.ops.gemv.triton import gemv

    size, hidden = x.shape[1], x.shape[1] if residual is None else residual.shape[1]
    rows, block, ahead, warps = FORMS["short" if hidden <= SHORT else "long"][form]
    if second is not None and size % block:  # two weights' last blocks would be half empty
        block //= 2
    blocks, out, places = _places(x, maps, rows)
    gemv[(blocks,)](
        x, x if norm is None else norm.weight, *_tensors(maps),
        x if second is None else second, x if residual is None else residual, out,
        eps=0.0 if norm is None else norm.eps, D=size, ROWS=rows,
        BLOCK=min(block, 1 << (size - 1).bit_length()), PREFETCH=ahead, UNROLLED=size <= SHORT,
        HAS_NORM=norm is not None, SWIGLU=second is not None, HAS_RESIDUAL=residual is not None,
        num_warps=warps, **places, **launch_options(x.device, starts_chain),
    )  # fmt: skip
    return out


def _run_rows(
    x: Tensor,
    maps: Sequence[Linear],
    form: str,
    *,
    second: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    from ahn.ops.dependent_launch import launch_options
    from ahn.ops.gemv.triton import skinny_gemm

    rows, block, stages, warps = BATCH_FORMS[form]
    blocks, out, places = _places(x, maps, rows)
    skinny_gemm[(blocks,)](
        x, *_tensors(maps), x if second is None else second, x if residual is None else residual,
        out, len(x), D=x.shape[1], OUT=out.shape[1], ROWS=rows, BLOCK=2 * block // x.element_size(),
        BATCH=max(16, 1 << (len(x) - 1).bit_length()), SWIGLU=second is not None,
        HAS_RESIDUAL=residual is not None, PRECISION="ieee" if x.element_size() == 4 else "tf32",
        num_stages=stages, num_warps=warps, **places, **launch_options(x.device),
    )  # fmt: skip
    return out


def _tensors(maps: Sequence[Linear]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    weights = tuple(one.weight for one in maps)
    return weights, tuple(one.weight if one.bias is None else one.bias for one in maps)


def _places(x: Tensor, maps: Sequence[Linear], rows: int) -> tuple[int, Tensor, dict[str, Any]]:
    """The number of programs, room for the outputs, and where those of each map are."""
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
