"""One decoding step of a layer in two kernels: contract, and when it can run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ahn.ops.gated_norm import EPS, FusedCell

__all__ = ["NewToken", "QKTransform", "Ring", "fused_decoding", "why_not_fused"]

LARGEST_PIECE = 2048  # slots, so that the merge's table of pieces stays small
BLOCK = 64  # slots a program looks at together
STAGES = 2  # of these blocks; more take the room of the next kernels' first programs
PROGRAMS = 3  # of attention, a multiprocessor
MERGED = 4096  # numbers of the pieces that a program of the merge, one warp, holds together


@dataclass(frozen=True)
class Ring:
    """A layer's cache and the place of the new token, see `ahn.layer.context`."""

    keys: Tensor  # [B, G, N, K]
    values: Tensor
    gates: Tensor | None  # [B, H, N, n]
    state: Tensor | None  # [B, H, K, V] float32
    slot: Tensor  # [B or 1]
    filled: Tensor  # [B or 1], the new token counted
    keep: Tensor  # [B or 1, 1]
    limit: int  # slots to look at


def why_not_fused(query: Tensor, value: Tensor) -> str | None:
    """What these kernels would need; None where they can run."""
    if not query.is_cuda:
        return f"a CUDA device, got {query.device}"
    if find_spec("triton") is None:
        return "triton to be installed"
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"float16, bfloat16 or float32, got {query.dtype}"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > 256:
        return f"keys and values of one size up to 256, got {query.shape[-1]}, {value.shape[-1]}"
    return None


@dataclass(frozen=True)
class QKTransform:
    """What is still to be done to the new token's queries and keys: norm, then rotation.

    Attributes:
        cos, sin: `[B or 1, K / 2]`, contiguous; the second half of a head turns with the first.
        query_norm, key_norm: `[K]`, of an RMSNorm over each head; None has none.
        eps: of these norms.
    """

    cos: Tensor
    sin: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class NewToken:
    """What a layer knows of the new token of every row; the last dimension is contiguous.

    Attributes:
        query: `[B, H, 1, K]`; key, value: `[B, G, 1, K]`.
        memory_query: `[B, H, 1, K]`, with which the memory is read.
        gates: `[B, 1, H, n]`, raw, of any strides; None without a memory.
        output_gate: `[B, 1, H]`, raw.
        transform: what the queries and the key still need; None where they are ready.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    memory_query: Tensor | None = None
    gates: Tensor | None = None
    output_gate: Tensor | None = None
    transform: QKTransform | None = None


@torch.no_grad()
def fused_decoding(
    token: NewToken, ring: Ring, cell: FusedCell | None, scale: float | None = None
) -> Tensor:
    """Write the evicted token, read the memory, attend to all that is exact, store the new token.

    All of `ring` is updated in place; nothing is known to the host but shapes and `limit`.

    Args:
        cell: the memory; None has none, and leaves gates and state alone.
        scale: factor on the scores; None is K^-1/2.

    Returns:
        `[B, 1, H, V]`, exact attention and what was read added up.
    """
    scale = token.query.shape[-1] ** -0.5 if scale is None else scale
    pieces, read = _update_and_attend(token, ring, cell, scale)
    return _merge_pieces(token, ring, pieces, read, cell, scale)


def _update_and_attend(
    token: NewToken, ring: Ring, cell: FusedCell | None, scale: float
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Softmax over each piece: largest score and sum of weights `[B, H, pieces]`, and weighted
    values `[B, H, pieces, V]`; and what the state gave `[B, H, V]`; all float32.
    """
    from ahn.ops.decoding.triton import update_and_attend

    query = token.query
    batch, heads, _, dim = query.shape
    groups = ring.keys.shape[1]
    pieces, per_piece = _pieces(batch * groups, ring.limit, query.device)
    shape = (batch, heads, pieces)
    largest, total = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    weighted = query.new_empty(*shape, dim, dtype=torch.float32)
    read = query.new_empty(batch, heads, dim, dtype=torch.float32)
    asked = query if token.memory_query is None else token.memory_query
    rule, rate, bias, query_scale, gates = "", read, read, 1.0, 0
    updates, columns = 0, _columns(dim, 32)
    if cell is not None:
        assert token.gates is not None, "a memory needs its gates"
        rule, query_scale, gates = cell.rule, cell.query_scale, token.gates.shape[-1]
        rate, bias = (read if x is None else x for x in (cell.rate, cell.dt_bias))
        updates = batch * heads * _power(dim) // columns
    turned, norms = _turn(token, ring)
    attends = pieces * batch * groups
    update_and_attend[(updates + attends,)](
        query, asked, ring.keys, ring.values, read if ring.gates is None else ring.gates,
        read if ring.state is None else ring.state, ring.slot, ring.filled, ring.keep, rate, bias,
        *norms[:3], read, largest, total, weighted, *query.stride()[:2], *asked.stride()[:2],
        _row_stride(ring), turned.pop("angle_stride"), num_splits=pieces,
        split_size=per_piece, state_programs=updates, scale=scale, query_scale=query_scale,
        COLUMNS=columns,
        # The state's small programs fill what the pieces of many rows leave idle at their end.
        STATE_FIRST=batch == 1, NUM_GATES=gates, RULE=rule,
        HEADS=max(16, _power(heads // groups)), BLOCK=BLOCK, num_stages=STAGES,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        **turned, **_sizes(query, ring),
    )  # fmt: skip
    return (largest, total, weighted), read


def _merge_pieces(
    token: NewToken,
    ring: Ring,
    pieces: tuple[Tensor, Tensor, Tensor],
    read: Tensor,
    cell: FusedCell | None,
    scale: float,
) -> Tensor:
    from ahn.ops.decoding.triton import merge_splits

    query, key, value = token.query, token.key, token.value
    batch, heads, _, dim = query.shape
    out = query.new_empty(batch, 1, heads, dim)
    weights = (None, None) if cell is None else (cell.norm, cell.o_proj)
    parts = (token.gates, ring.gates, token.output_gate, *weights)
    gates, old_gates, output_gate, norm, o_proj = (out if x is None else x for x in parts)
    count = pieces[0].shape[2]
    gate_strides = (gates.stride(0), gates.stride(2), gates.stride(3), output_gate.stride(0))
    turned, norms = _turn(token, ring)
    columns = _columns(dim, min(64, max(1, MERGED // _power(count))))
    merge_splits[(batch * heads, _power(dim) // columns)](
        query, key, value, gates, ring.keys, ring.values, old_gates, ring.slot, *norms, *pieces,
        read, output_gate, norm, o_proj, out,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *gate_strides,
        _row_stride(ring), turned.pop("angle_stride"), scale=scale, num_splits=count, eps=EPS,
        COLUMNS=columns, SPLITS=_power(count),
        ALL_HEADS=_power(heads), NUM_GATES=0 if cell is None else gates.shape[-1],
        HAS_MEMORY=cell is not None, GATE_FIRST=cell is not None and cell.gate_first,
        num_warps=1,
        **turned, **_sizes(query, ring),
    )  # fmt: skip
    return out


def _turn(token: NewToken, ring: Ring) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """What the kernels are told of norms and rotation: settings, and cos, sin and both norms."""
    transform, nothing = token.transform, token.query
    overlap = _overlap(token.query.device)
    if transform is None:
        settings = {"QK_NORM": False, "ROPE": False, "norm_eps": 0.0, "angle_stride": 0}
        return settings | overlap, (nothing,) * 4
    norms = (nothing if x is None else x for x in (transform.query_norm, transform.key_norm))
    settings = {
        "QK_NORM": transform.query_norm is not None,
        "ROPE": True,
        "norm_eps": transform.eps,
        "angle_stride": 0 if len(transform.cos) == 1 else transform.cos.stride(0),
    }
    return settings | overlap, (transform.cos, transform.sin, *norms)


def _overlap(device: torch.device) -> dict[str, Any]:
    if torch.compiler.is_compiling():  # it knows no such launches
        return {"PDL": False}
    from ahn.ops.dependent_launch import launch_options

    return launch_options(device)


def _sizes(query: Tensor, ring: Ring) -> dict[str, int]:
    heads, dim = query.shape[1], query.shape[3]
    groups, slots = ring.keys.shape[1:3]
    return {"H": heads, "G": groups, "N": slots, "DIM": dim, "PADDED": _power(dim)}


def _columns(dim: int, most: int) -> int:
    """Of a head's output, a program: few, since at batch 1 there are few heads."""
    return min(most, _power(dim))


def _row_stride(ring: Ring) -> int:
    return 0 if ring.slot.shape[0] == 1 else 1


def _pieces(programs: int, limit: int, device: torch.device) -> tuple[int, int]:
    """In how many pieces to cut the slots, and their size: PROGRAMS a multiprocessor."""
    wanted = max(1, PROGRAMS * _multiprocessors(device) // programs, -(-limit // LARGEST_PIECE))
    per_piece = -(-limit // wanted)
    per_piece = -(-per_piece // BLOCK) * BLOCK
    return -(-limit // per_piece), per_piece


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
