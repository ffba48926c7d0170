"""Compares slots added to an attention with one over all keys, under TRITON_INTERPRET=1."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ahn.ops.slots import choose
from ahn.ops.window_attention import SlotRows
from ahn.ops.window_attention.slot_rows import add_slot_rows
from triton_interpreter import mend_indexing

mend_indexing(pytest.MonkeyPatch())
torch.manual_seed(0)
BATCH, HEADS, GROUPS, DIM = 2, 4, 2, 24
compared = 0
for slots, readers, queries, held, sizes, block in (
    (5, 40, 40, 5, None, 16),
    (9, 40, 33, 0, [9, 4], 128),
    (70, 7, 12, 70, [0, 70], 128),
    (16, 1, 1, 16, None, 128),
    (12, 150, 150, 12, None, 128),
):
    query = torch.randn(BATCH, queries, HEADS, DIM).transpose(1, 2)
    key, value = torch.randn(2, BATCH, GROUPS, slots + readers, DIM).unbind(0)
    place = torch.randperm(slots).int().expand(BATCH, GROUPS, -1) + 1
    if not held:
        place = torch.zeros_like(place)
    sizes = None if sizes is None else torch.tensor(sizes)
    if sizes is not None:
        place = place * (torch.arange(slots) < sizes[:, None])
    arriving = torch.randn(BATCH, GROUPS, readers)
    arriving[..., ::5] = -torch.inf
    choice = choose(torch.randn(BATCH, GROUPS, slots), place, arriving, sizes, block)
    rows = SlotRows(key, value, choice, readers, held)
    # What the window gave: some keys of its own for every query.
    near_scores, near_values = torch.randn(BATCH, HEADS, queries, 6), torch.randn(6, DIM)
    out = (near_scores.softmax(-1) @ near_values).transpose(1, 2).contiguous().transpose(1, 2)
    exact = out.clone()
    seen_by = min(readers, queries)
    for first in range(0, readers, rows.block):
        block_rows = rows.seen_by(first, min(rows.block, readers - first), key[:, :, :0])
        for reader in range(first, min(first + rows.block, readers)):
            q = queries - readers + reader
            if q < 0:
                continue
            visible = block_rows.visible[:, :, reader - first].repeat_interleave(2, 1)
            k, v = (x.repeat_interleave(2, 1) for x in block_rows[:2])
            scores = (query[:, :, q, None] @ k.mT)[:, :, 0] * DIM**-0.5
            scores = scores.masked_fill(~visible, -torch.inf)
            weights = torch.cat([near_scores[:, :, q], scores], -1).softmax(-1)
            values = torch.cat([near_values.expand(BATCH, HEADS, -1, -1), v], 2)
            exact[:, :, q] = (weights[:, :, None] @ values)[:, :, 0]
    add_slot_rows(out, near_scores.logsumexp(-1), query, rows, DIM**-0.5)
    torch.testing.assert_close(out, exact)
    compared += 1
print("compared", compared)
