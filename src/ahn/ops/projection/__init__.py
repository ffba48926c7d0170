"""Linear maps of a decoding step, with the norm before and the sum after: a kernel each.

All take one token of every row, `[B, D]`, and weights where they are.
Of several rows the large products are the library's: their weights are read once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Map", "Norm", "add_mapped", "gated", "map_normed", "mapped"]

SHORT = 2048  # size of a hidden state, up to which its maps are unrolled; else registers run out
# For one input, of hidden states that are short or not: rows of a weight that a program maps,
# numbers of a row it reads together, how many of these blocks it asks for before it knows the
# input, warps. As measured on H100 and H200, for 2,048, 3,584 and 5,120 numbers.
_BOTH = {"output": (2, 1024, 2, 4), "gated": (2, 1024, 1, 4), "down": (2, 1024, 2, 4)}
_SHORT = {"maps": (4, 1024, 2, 4), "head": (4, 1024, 2, 4)}
_LONG = {"maps": (4, 1024, 1, 4), "head": (8, 1024, 1, 4)}
FORMS = {"short": _BOTH | _SHORT, "long": _BOTH | _LONG}
# For several inputs: rows that a program maps, and the most inputs. Products this small stay with
# the older matrix instructions; Triton 3.6 is known to go wrong in narrow ones of Hopper's own.
ROWS, BATCH = 16, 32
MANY = 2**15  # outputs: the size of a head over the vocabulary


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean x^2 + eps), times the weight `[D]`."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Map:
    """x -> weight x + bias, weight `[R, D]` and contiguous, bias `[R]` or None."""

    weight: Tensor
    bias: Tensor | None = None


def map_normed(x: Tensor, norm: Norm, maps: Sequence[Map], *, starts_chain: bool = False) -> Tensor:
    """The maps' outputs of the normed x side by side, `[B, sum of R]`.

    `starts_chain` says that what came before is to have ended, see `ahn.ops.overlap`.
    """
    sizes = [len(one.weight) for one in maps]
    is_head = len(maps) == 1 and sizes[0] > MANY
    # The kernel divides by the norm at the end, which float16 might not live to see.
    if len(x) > BATCH or (len(x) > 1 and (is_head or x.dtype == torch.float16)):
        return mapped(_normed(x, norm), maps)
    out = x.new_empty(len(x), sum(sizes))
    if len(x) == 1:
        form = "head" if is_head else "maps"
        _run_vector(x, maps, out, form, norm=norm, starts_chain=starts_chain)
    else:
        _run_rows(x, maps, out, norm, starts_chain)
    return out


def gated(x: Tensor, norm: Norm, gate: Map, up: Map) -> Tensor:
    """silu(gate x) * (up x) of the normed x, `[B, R]`; the two maps have no bias."""
    if len(x) > 1:
        from ahn.ops.silu_mul import silu_mul_

        normed = _normed(x, norm)
        return silu_mul_(F.linear(normed, gate.weight), F.linear(normed, up.weight))
    out = x.new_empty(1, len(gate.weight))
    _run_vector(x, [gate], out, "gated", norm=norm, second=up.weight)
    return out


def add_mapped(x: Tensor, linear: Map, residual: Tensor) -> Tensor:
    """residual `[B, R]` + linear x; of several rows written over `residual`."""
    if len(x) > 1:
        residual.addmm_(x, linear.weight.t())
        return residual if linear.bias is None else residual.add_(linear.bias)
    out = torch.empty_like(residual)
    form = "output" if x.shape[1] <= residual.shape[1] else "down"
    _run_vector(x, [linear], out, form, residual=residual)
    return out


def mapped(x: Tensor, maps: Sequence[Map]) -> Tensor:
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
    maps: Sequence[Map],
    out: Tensor,
    form: str,
    *,
    norm: Norm | None = None,
    second: Tensor | None = None,
    residual: Tensor | None = None,
    starts_chain: bool = False,
) -> None:
    from ahn.ops.overlap import launch_options
    from ahn.ops.projection.kernels import map_vector

    hidden = x.shape[1] if residual is None else residual.shape[1]
    rows, block, ahead, warps = FORMS["short" if hidden <= SHORT else "long"][form]
    if second is not None and hidden % block:  # two weights' last blocks would be half empty
        block //= 2
    blocks, places = _places(maps, rows)
    map_vector[(blocks,)](
        x, x if norm is None else norm.weight, *_tensors(maps),
        x if second is None else second, x if residual is None else residual, out,
        eps=0.0 if norm is None else norm.eps, D=x.shape[1], ROWS=rows,
        BLOCK=min(block, 1 << (x.shape[1] - 1).bit_length()), AHEAD=ahead,
        UNROLLED=x.shape[1] <= SHORT, NORMED=norm is not None, PAIRED=second is not None,
        ADDED=residual is not None, num_warps=warps,
        **places, **launch_options(x.device, starts_chain),
    )  # fmt: skip


def _run_rows(x: Tensor, maps: Sequence[Map], out: Tensor, norm: Norm, starts_chain: bool) -> None:
    from ahn.ops.overlap import launch_options
    from ahn.ops.projection.kernels import map_rows

    batch = max(16, 1 << (len(x) - 1).bit_length())
    blocks, places = _places(maps, ROWS)
    map_rows[(blocks,)](
        x, norm.weight, *_tensors(maps), out, len(x), eps=norm.eps, D=x.shape[1],
        OUT=out.shape[1], ROWS=ROWS, BLOCK=256 if x.element_size() * batch <= 64 else 128,
        BATCH=batch, PRECISION="ieee" if x.element_size() == 4 else "tf32",
        **places, **launch_options(x.device, starts_chain),
    )  # fmt: skip


def _tensors(maps: Sequence[Map]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    weights = tuple(one.weight for one in maps)
    return weights, tuple(one.weight if one.bias is None else one.bias for one in maps)


def _places(maps: Sequence[Map], rows: int) -> tuple[int, dict[str, Any]]:
    """The number of programs, and where each map's programs and outputs are among all."""
    sizes = tuple(len(one.weight) for one in maps)
    *firsts, blocks = accumulate((-(-size // rows) for size in sizes), initial=0)
    return blocks, {
        "first_blocks": tuple(firsts),
        "sizes": sizes,
        "columns": tuple(accumulate(sizes[:-1], initial=0)),
        "has_bias": tuple(int(one.bias is not None) for one in maps),
        "COUNT": len(maps),
    }
