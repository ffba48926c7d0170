"""Slots join an attention over sinks and window that has been computed without them."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.window_attention.exact_rows import SlotRows

TILE, ROWS = 64, 64  # queries of a program, and rows that it looks at in one go
SMALLEST_TILE = 32  # Triton compiles narrower products of half precision to wrong code


def add_slot_rows(out: Tensor, lse: Tensor, query: Tensor, rows: SlotRows, scale: float) -> None:
    """Make `out` one softmax over what it was of and the rows, in place; no gradient.

    A program loads the slots of its block by their index, so that none of them is copied.

    Args:
        out: `[B, H, P, V]`, attention of the last P queries of a call, over sinks and window.
        lse: `[B, H, P]`, log-sum-exp of its scores, float32.
        query: `[B, H, P, K]`. Where P is less than the readers, the last P of them.
    """
    from ahn.ops.window_attention.slot_rows_triton import add_slot_rows_kernel

    number = min(out.shape[2], rows.readers)
    out, lse, query = (x[:, :, x.shape[2] - number :] for x in (out, lse, query))
    batch, heads, _, dim = out.shape
    groups, block = rows.key.shape[1], rows.block
    choice = rows.choice
    tables = (choice.index, choice.slot_end, choice.arrival_end)
    tensors = (out, lse, query, rows.key, rows.value)
    strides = [stride for x in (*tensors, *tables) for stride in x.stride()[:3]]
    assert all(x.stride(-1) == 1 for x in (*tensors[::2], rows.value, *tables) if x is not lse)
    tile = max(SMALLEST_TILE, min(TILE, 1 << (block - 1).bit_length()))
    programs = choice.index.shape[2] * -(-block // tile)
    add_slot_rows_kernel[(programs, batch * heads)](
        *tensors, *tables, *strides, heads, heads // groups, choice.index.shape[-1], rows.held,
        rows.readers, block, rows.readers - number, scale,
        TILE=tile, ROWS=ROWS, DIM=dim, PADDED=max(32, 1 << (dim - 1).bit_length()),
    )  # fmt: skip


def unsupported_reason(rows: object, value: Tensor) -> str | None:
    """Why `add_slot_rows` cannot take these exact rows of a memory; None where it can."""
    if not isinstance(rows, SlotRows):
        return f"slots as exact rows, got {type(rows).__name__}"
    if rows.reach is not None:
        return "slots at any distance, got slot_distance"
    if torch.is_grad_enabled():
        return "no gradient with exact rows"
    if rows.key.shape[-1] != value.shape[-1]:
        return f"keys and values of one size, got {rows.key.shape[-1]} and {value.shape[-1]}"
    return None
