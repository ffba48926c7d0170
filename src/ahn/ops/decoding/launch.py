"""Launches of the two kernels of a decoding step; see `ahn.ops.decoding`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ahn.ops.decoding.types import NewToken, Ring
from ahn.ops.gated_norm import EPS, CellSpec
from ahn.ops.slots import group_size

LARGEST_SPLIT = 2048  # tokens; smaller splits would make the merge's table of them large
BLOCK = 64  # tokens of the ring that a program loads at a time
STAGES = 2  # blocks loaded ahead; more leave no shared memory for the next kernel's first programs
PROGRAMS = 3  # programs of attention for each multiprocessor
MERGED = 4096  # numbers of the splits that one program of the merge, a warp, loads


def fused_decoding(token: NewToken, ring: Ring, cell: CellSpec | None, scale: float) -> Tensor:
    """`ahn.ops.decoding.fused_decoding` on a GPU."""
    splits, readout = _update_and_attend(token, ring, cell, scale)
    return _merge_splits(token, ring, splits, readout, cell, scale)


def _update_and_attend(
    token: NewToken, ring: Ring, cell: CellSpec | None, scale: float
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Attention over each split of the ring, and the readout of the state; all float32.

    Returns:
        Largest score and sum of weights `[B, H, num_splits]` with weighted values
        `[B, H, num_splits, V]`; and the readout `[B, H, V]`.
    """
    from ahn.ops.decoding.triton import update_and_attend

    query = token.query
    batch, heads, _, dim = query.shape
    groups = ring.keys.shape[1]
    ring_splits, split_size = _split_counts(batch * groups, ring.limit, query.device)
    slots, slot_settings = _slot_arguments(ring, dim)
    num_splits = ring_splits
    if ring.slots is not None:
        num_splits += -(-ring.slots.rows.most // split_size)
    shape = (batch, heads, num_splits)
    split_max, split_sum = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    split_acc = query.new_empty(*shape, dim, dtype=torch.float32)
    readout = query.new_empty(batch, heads, dim, dtype=torch.float32)
    memory_query = query if token.memory_query is None else token.memory_query
    rule, A_log, bias, query_scale, gates = "", readout, readout, 1.0, 0
    state_programs, columns = 0, _columns(dim, 32)
    if cell is not None:
        assert token.gates is not None, "a memory needs its gates"
        rule, query_scale, gates = cell.rule, cell.query_scale, token.gates.shape[-1]
        A_log, bias = (readout if x is None else x for x in (cell.rate, cell.dt_bias))
        state_programs = batch * heads * _power(dim) // columns
    settings, norms = _transform_arguments(token, ring)
    attention_programs = num_splits * batch * groups
    update_and_attend[(state_programs + attention_programs,)](
        query, memory_query, ring.keys, ring.values, slots,
        readout if ring.gates is None else ring.gates,
        readout if ring.state is None else ring.state, ring.ring_index, ring.filled,
        ring.write_mask, A_log, bias, *norms[:3], readout, split_max, split_sum, split_acc,
        *query.stride()[:2], *memory_query.stride()[:2], _row_stride(ring),
        settings.pop("angle_stride"), num_splits=num_splits, ring_splits=ring_splits,
        split_size=split_size, state_programs=state_programs, scale=scale,
        query_scale=query_scale, COLUMNS=columns, **slot_settings,
        # With many rows the state's small programs run last, where the splits leave the GPU idle.
        STATE_FIRST=batch == 1, NUM_GATES=gates, RULE=rule,
        HEADS=max(16, _power(heads // groups)), BLOCK=BLOCK, num_stages=STAGES,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        **settings, **_sizes(query, ring),
    )  # fmt: skip
    return (split_max, split_sum, split_acc), readout


def _merge_splits(
    token: NewToken,
    ring: Ring,
    splits: tuple[Tensor, Tensor, Tensor],
    readout: Tensor,
    cell: CellSpec | None,
    scale: float,
) -> Tensor:
    from ahn.ops.decoding.triton import merge_splits

    query, key, value = token.query, token.key, token.value
    batch, heads, _, dim = query.shape
    out = query.new_empty(batch, 1, heads, dim)
    weights = (None, None) if cell is None else (cell.norm, cell.o_proj)
    parts = (token.gates, ring.gates, token.output_gate, *weights)
    gates, old_gates, output_gate, norm, o_proj = (out if x is None else x for x in parts)
    num_splits, scores = splits[0].shape[2], (token.scores, ring.scores)
    gate_strides = (gates.stride(0), gates.stride(2), gates.stride(3), output_gate.stride(0))
    settings, norms = _transform_arguments(token, ring)
    columns = _columns(dim, min(64, max(1, MERGED // _power(num_splits))))
    merge_splits[(batch * heads, _power(dim) // columns)](
        query, key, value, gates, ring.keys, ring.values, old_gates,
        *(out if x is None else x for x in scores), ring.ring_index, *norms,
        *splits, readout, output_gate, norm, o_proj, out,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *gate_strides,
        _row_stride(ring), settings.pop("angle_stride"), scale=scale, num_splits=num_splits,
        eps=EPS, COLUMNS=columns, SPLITS=_power(num_splits),
        ALL_HEADS=_power(heads), NUM_GATES=0 if cell is None else gates.shape[-1],
        HAS_MEMORY=cell is not None, HAS_SCORES=all(x is not None for x in scores),
        GATE_FIRST=cell is not None and cell.gate_first, num_warps=1,
        **settings, **_sizes(query, ring),
    )  # fmt: skip
    return out


def _slot_arguments(ring: Ring, dim: int) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """The tensors of the slots as the kernel takes them, and its constants."""
    slots = ring.slots
    if slots is None:
        return (ring.keys,) * 6, {"slot_total": 0, "SLOT_BITS": 0, "SHARED": 1}
    pairs = (slots.key[0], slots.value[0], slots.key[-1], slots.value[-1])
    constants = {"SLOT_BITS": slots.bits, "SHARED": group_size(dim)}
    tensors = (slots.rows.first(ring.keys.device), slots.place, *pairs)
    return tensors, {"slot_total": slots.rows.total, **constants}


def _transform_arguments(token: NewToken, ring: Ring) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """What the kernels need for norm and RoPE: constants, and cos, sin and the two norms."""
    transform, nothing = token.transform, token.query
    options = _launch_options(token.query.device)
    if transform is None:
        constants = {"QK_NORM": False, "ROPE": False, "norm_eps": 0.0, "angle_stride": 0}
        return constants | options, (nothing,) * 4
    norms = (nothing if x is None else x for x in (transform.query_norm, transform.key_norm))
    constants = {
        "QK_NORM": transform.query_norm is not None,
        "ROPE": True,
        "norm_eps": transform.eps,
        "angle_stride": 0 if len(transform.cos) == 1 else transform.cos.stride(0),
    }
    return constants | options, (transform.cos, transform.sin, *norms)


def _launch_options(device: torch.device) -> dict[str, Any]:
    if torch.compiler.is_compiling():  # torch.compile knows no such launches
        return {"PDL": False}
    from ahn.ops.dependent_launch import launch_options

    return launch_options(device)


def _sizes(query: Tensor, ring: Ring) -> dict[str, int]:
    heads, dim = query.shape[1], query.shape[3]
    groups, tokens = ring.keys.shape[1:3]
    return {"H": heads, "G": groups, "N": tokens, "DIM": dim, "PADDED": _power(dim)}


def _columns(dim: int, most: int) -> int:
    """Columns of a head's output a program: few, since batch 1 has few heads to run in parallel."""
    return min(most, _power(dim))


def _row_stride(ring: Ring) -> int:
    return 0 if ring.ring_index.shape[0] == 1 else 1


def _split_counts(programs: int, limit: int, device: torch.device) -> tuple[int, int]:
    """Number of splits of the ring, and tokens of each."""
    wanted = max(1, PROGRAMS * _multiprocessors(device) // programs, -(-limit // LARGEST_SPLIT))
    split_size = -(-limit // wanted)
    split_size = -(-split_size // BLOCK) * BLOCK
    return -(-limit // split_size), split_size


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
