"""Compares the kernels that choose with the reference, under TRITON_INTERPRET=1."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ahn.ops.slots import launch
from ahn.ops.slots.choice import EMPTY, choose_by_sorts
from triton_interpreter import mend_indexing, unwritten_is_nan, watch

patch = pytest.MonkeyPatch()
mend_indexing(patch)
watch(patch)
BATCH, GROUPS = 2, 2


def draw(case, slots, number, levels):
    """Priorities with ties, padding and sinks; slots of which some are empty."""
    generator = torch.Generator().manual_seed(case)
    arriving = torch.randint(levels, (BATCH, GROUPS, number), generator=generator).float()
    arriving[torch.rand(arriving.shape, generator=generator) < 0.2] = EMPTY
    arriving[0, :, : number // 4] = EMPTY
    held = torch.randint(levels, (BATCH, GROUPS, slots), generator=generator).float()
    order = torch.rand(held.shape, generator=generator).argsort(-1).int() + 1
    place = order.masked_fill(torch.rand(held.shape, generator=generator) < 0.3, 0)
    return held, place, arriving


def compare(held, place, arriving, sizes, block):
    """Equal wherever there is a token; which empty slots come first does not matter."""
    block = min(block, arriving.shape[-1])
    with unwritten_is_nan():
        got = launch.choose(held, place, arriving, sizes, block)
    want = choose_by_sorts(held, place, arriving, sizes, block)
    for name in ("slot_end", "arrival_end", "filled"):
        assert torch.equal(getattr(got, name).long(), getattr(want, name).long()), name
    for name, filled in (("index", want.slot_end > 0), ("kept", want.filled)):
        chosen = [torch.where(filled, getattr(x, name), -1) for x in (got, want)]
        assert torch.equal(*chosen), name
    limit = held.shape[-1] + arriving.shape[-1]
    assert (got.index >= 0).all() and (got.index < limit).all()


compared = 0
rng = random.Random(0)
for case in range(14):
    slots, number = rng.choice((1, 3, 17, 40, 130)), rng.choice((1, 2, 30, 90, 150))
    block = rng.choice((1, 5, 16, 128))
    held, place, arriving = draw(case, slots, number, rng.choice((2, 6, 100000)))
    sizes = None
    if rng.random() < 0.6:
        sizes = torch.tensor([rng.randint(0, slots), slots])
        place = place * (torch.arange(slots) < sizes[:, None])
    if rng.random() < 0.2:
        place = torch.zeros_like(place)
    launch.TILE = rng.choice((64, 1024))
    compare(held, place, arriving, sizes, max(block, number // 4))
    compared += 1
print("compared", compared)
