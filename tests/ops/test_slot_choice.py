"""Laws of the slots' choice: the same sets for any cut, and what each reader sees meanwhile."""

from __future__ import annotations

import random

import pytest
import torch

from ahn.ops.slots import (
    BITS,
    HeadRows,
    choose,
    dequantised,
    insert_one,
    lifetimes,
    quantised,
)
from ahn.ops.window_attention import SlotRows

BATCH, HEADS = 2, 3
EMPTY = -torch.inf


def best(priorities: list[float], size: int) -> set[int]:
    """The numbers of the `size` highest, of equals the first: the definition."""
    real = [i for i, p in enumerate(priorities) if p > EMPTY]
    return set(sorted(real, key=lambda i: (-priorities[i], i))[:size])


def draw(case: int):
    """Priorities `[B, G, n]` with many ties, padding and sinks; slots; slots of each head."""
    rng, generator = random.Random(case), torch.Generator().manual_seed(case)
    number, slots = rng.randint(1, 40), rng.randint(1, 9)
    shape = (BATCH, HEADS, number)
    priority = torch.randint(0, rng.choice((2, 6, 1000)), shape, generator=generator).float()
    priority[0, :, : number // 4] = EMPTY
    priority[torch.rand(shape, generator=generator) < 0.1] = EMPTY
    sizes = torch.tensor([slots, rng.randint(0, slots), rng.randint(0, slots)])
    return priority, slots, rng.choice((None, sizes)), rng


def empty(slots: int):
    priority = torch.full((BATCH, HEADS, slots), EMPTY)
    return priority, torch.zeros_like(priority, dtype=torch.int32)


def sets(priority, age):
    """Positions held, by row and head."""
    return [
        [{int(a) - 1 for p, a in zip(*head) if p > EMPTY} for head in zip(*row)]
        for row in zip(priority, age)
    ]


def definition(priority, sizes, slots, end):
    return [
        [best(head[:end].tolist(), slots if sizes is None else int(sizes[g]))
         for g, head in enumerate(row)]
        for row in priority
    ]  # fmt: skip


def insert(held, age, arriving, new_age, sizes):
    """One token, into the heads that have slots."""
    for head in range(HEADS):
        own = slice(head, head + 1)
        if size := held.shape[-1] if sizes is None else int(sizes[head]):
            views = (held[:, own, :size], age[:, own, :size])
            at, takes = insert_one(*views, arriving[:, own], new_age)
            assert at.shape == takes.shape == (BATCH, 1, 1)


@pytest.mark.parametrize("case", range(60))
def test_token_by_token_is_the_definition(case):
    priority, slots, sizes, _ = draw(case)
    held, age = empty(slots)
    for i in range(priority.shape[-1]):
        insert(held, age, priority[..., i], torch.tensor([[i + 1]]), sizes)
        assert sets(held, age) == definition(priority, sizes, slots, i + 1)


@pytest.mark.parametrize("sizes", [(3, 3), (4,), (0, 2), (5, 0, 0, 2, 2, 1), (1, 0)])
def test_heads_lie_side_by_side_without_gaps(sizes):
    rows = HeadRows(sizes)
    x = torch.randn(2, sum(sizes), 3)
    assert (rows.total, rows.most) == (sum(sizes), max(sizes))
    padded = rows.padded(x)
    for head, (part, own) in enumerate(zip(x.split(sizes, 1), padded.unbind(1))):
        assert torch.equal(own[:, : sizes[head]], part)
        assert not own[:, sizes[head] :].any()
    assert torch.equal(rows.flat(padded), x)
    for run in rows.runs:
        rows.of(run, x).zero_()
    assert not x.any()


@pytest.mark.parametrize("case", range(60))
def test_chunks_and_their_readers_are_the_definition(case):
    """Steps and chunks in turn; what each reader sees of slots and arrivals."""
    priority, slots, sizes, rng = draw(case)
    held, age = empty(slots)
    first, number = 0, priority.shape[-1]
    while first < number:
        count = min(number - first, rng.randint(1, 17))
        arriving = priority[..., first : first + count]
        ages = torch.arange(first + 1, first + count + 1, dtype=torch.int32)
        if count == 1:
            insert(held, age, arriving[..., 0], ages[None], sizes)
            first += 1
            continue
        choice = choose(held, age, arriving, sizes, block=rng.choice((1, 4, 128)))
        both = torch.cat([age, ages.expand(BATCH, HEADS, -1)], -1)
        numbers = both[..., None].double()
        rows = SlotRows(numbers, numbers, choice, count, min(slots, first))
        for reader in range(count):
            block = reader // choice.block * choice.block
            seen = rows.seen_by(block, min(choice.block, count - block), numbers[:, :, :0])
            row = seen.visible[:, :, reader - block]
            got = sets(torch.where(row, 0.0, EMPTY), seen.key[..., 0])
            assert got == definition(priority, sizes, slots, first + reader + 1)
        age = torch.where(choice.filled, both.gather(-1, choice.kept), 0)
        held = torch.cat([held, arriving], -1).gather(-1, choice.kept)
        held = held.masked_fill(~choice.filled, EMPTY)
        first += count


@pytest.mark.parametrize("case", range(20))
def test_lifetimes_are_the_sets_of_all_readers(case):
    priority, slots, sizes, _ = draw(case)
    end = lifetimes(priority, slots if sizes is None else sizes)
    number = priority.shape[-1]
    i = torch.arange(number)
    for reader in range(number):
        visible = (i <= reader) & (reader < end)
        got = [[set(head.nonzero()[:, 0].tolist()) for head in row] for row in visible]
        assert got == definition(priority, sizes, slots, reader + 1)


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("dim", [16, 24, 64, 80])
def test_codes_are_near_the_numbers_and_keep_zero(bits, dim):
    x = torch.randn(2, 3, 5, dim)
    x[0, 0, 0] = 0
    x[0, 0, 1] *= 1e-9
    codes, scale = quantised(x, bits)
    assert (codes.dtype, scale.dtype) == (torch.uint8, torch.float16)
    assert codes.shape[-1] == dim * bits // 8
    again = dequantised(codes, scale, bits, x.dtype)
    assert torch.equal(again[0, 0, 0], torch.zeros(dim))
    step = x.unflatten(-1, (scale.shape[-1], -1)).abs().amax(-1) / (2 ** (bits - 1) - 1)
    error = (again - x).unflatten(-1, (scale.shape[-1], -1)).abs().amax(-1)
    assert (error <= 0.51 * step + 1e-7).all()
    assert torch.equal(dequantised(*quantised(again, bits), bits, x.dtype), again)
