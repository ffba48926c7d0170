"""Paged attention of many requests at once equals each text read whole, whatever the blocks."""

from __future__ import annotations

import math

import pytest
import torch

from ahn.memory import build_memory
from ahn.serving.pages import Page, RowLayout
from ahn.serving.reference import PagedLayer, Step, paged_attention
from tiny_models import over_cells, wake

HEADS, GROUPS, SIZE, HIDDEN = 4, 2, 16, 24
WINDOW, BLOCK, BLOCKS, ROOM = 10, 4, 200, 40  # blocks in all, and of one request
LENGTHS = [1, 9, 25, 60, 61, 120]


def cell_named(name):
    memory = build_memory(name, HIDDEN, HEADS, SIZE, num_key_value_heads=GROUPS).double()

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ahn = torch.nn.Module()
            self.ahn.fn = memory

    root = torch.nn.Module()
    root.layer = Holder()
    wake(root)
    return memory


class Text:
    """A request: what its tokens bring to the layer, and how much of it has been read."""

    def __init__(self, length, generator):
        def random(*shape):
            return torch.randn(length, *shape, generator=generator, dtype=torch.float64)

        self.query, self.hidden = random(HEADS, SIZE), random(HIDDEN)
        self.key, self.value = random(GROUPS, SIZE), random(GROUPS, SIZE)
        self.length, self.done, self.table, self.outputs = length, 0, {}, []

    def tokens(self, first, last):
        return tuple(x[first:last] for x in (self.query, self.key, self.value, self.hidden))


def read_whole(cell, text, num_sinks):
    """A dense mask of all pairs, and the cell over all tokens that leave."""
    query, key, value, hidden = text.tokens(0, text.length)
    place = torch.arange(text.length)
    age = place[:, None] - place
    seen = (age >= 0) & ((age < WINDOW) | (place < num_sinks))
    key_heads, value_heads = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (key, value))
    scores = torch.einsum("qhk,thk->hqt", query, key_heads) / math.sqrt(SIZE)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    out = torch.einsum("hqt,thv->qhv", weights, value_heads)
    number = text.length - WINDOW - num_sinks
    if number > 0:
        left = slice(num_sinks, num_sinks + number)
        gates = cell.write_gates(hidden[None])[:, left]
        read, _ = cell.write_and_read(
            query[None, -number:], key[None, left], value[None, left], gates, None, None
        )
        out[-number:] += cell.project(read, hidden[None])[0]
    return out


class Engine:
    """Gives out blocks at random, frees what is no longer needed, and fills it with NaN."""

    def __init__(self, cell, num_sinks, generator, window=WINDOW):
        layout = RowLayout(HEADS, GROUPS, SIZE, cell.num_gates)
        pages = torch.full((BLOCKS, GROUPS, BLOCK, layout.width), torch.nan, dtype=torch.float64)
        states = torch.full((len(LENGTHS), HEADS, SIZE, SIZE), torch.nan, dtype=torch.float64)
        scale = SIZE**-0.5
        self.layer = PagedLayer(cell, layout, pages, states, window, num_sinks, scale)
        self.free = torch.randperm(BLOCKS, generator=generator).tolist()
        self.generator = generator

    def step(self, texts, chunks):
        """Each text gives its next chunk; a chunk of none is a row that fills the batch."""
        parts, slots, tables = [], [], torch.zeros(len(texts), ROOM, dtype=torch.int32)
        for row, (text, chunk) in enumerate(zip(texts, chunks)):
            parts.append(text.tokens(text.done, text.done + chunk))
            for place in range(text.done, text.done + chunk):
                if place // BLOCK not in text.table:
                    text.table[place // BLOCK] = self.free.pop()
                slots.append(text.table[place // BLOCK] * BLOCK + place % BLOCK)
            for index, block in text.table.items():
                tables[row, index] = block
            text.done += chunk
        step = Step(
            starts=torch.tensor([0, *chunks]).cumsum(0),
            lengths=torch.tensor([text.done for text in texts]),
            tables=tables,
            slots=torch.tensor(slots),
            states=torch.tensor([text.state for text in texts]),
        )
        out = paged_attention(self.layer, step, *map(torch.cat, zip(*parts)))
        for text, part in zip(texts, out.split(chunks)):
            text.outputs.append(part)
            self._release(text)

    def _release(self, text):
        """Blocks without a sink and without a token of the window, the leaving one included."""
        for index in list(text.table):
            end = (index + 1) * BLOCK
            if index * BLOCK >= self.layer.num_sinks and end <= text.done - WINDOW:
                block = text.table.pop(index)
                self.layer.pages[block] = torch.nan
                self.free.insert(0, block)


def run(cell, num_sinks, seed, **options):
    """All texts at once, in chunks of random lengths; each with the outputs and the whole's."""
    generator = torch.Generator().manual_seed(seed)
    engine = Engine(cell, num_sinks, generator, **options)
    texts = [Text(length, generator) for length in LENGTHS]
    for text, state in zip(texts, torch.randperm(len(texts), generator=generator).tolist()):
        text.state = state
    while running := [text for text in texts if text.done < text.length]:
        drawn = torch.randint(0, 30, (len(running),), generator=generator).tolist()
        chunks = [min(n, text.length - text.done) for n, text in zip(drawn, running)]
        if any(chunks):
            engine.step(running, chunks)
    return [(torch.cat(text.outputs), read_whole(cell, text, num_sinks)) for text in texts]


def largest_difference(pairs):
    return max((a - b).abs().max().nan_to_num(torch.inf).item() for a, b in pairs)


@over_cells
@pytest.mark.parametrize("num_sinks", [0, 3, 6])
@torch.no_grad()
def test_any_chunks_and_blocks_equal_the_whole_text(cell, num_sinks):
    assert largest_difference(run(cell_named(cell), num_sinks, seed=num_sinks)) < 1e-12


@torch.no_grad()
def test_the_comparison_sees_a_window_of_one_token_more():
    assert largest_difference(run(cell_named("DeltaNet"), 3, seed=1, window=WINDOW + 1)) > 1e-3


def test_a_page_holds_a_state():
    page = Page.fitting(token_bytes=1088, state_bytes=2**20)
    assert page.block % 32 == 0 and page.size >= 2**20 > page.size - 32 * 1088
    assert page.size == page.block * 1088


def test_blocks_of_a_request_hold_its_sinks_and_window_wherever_they_begin():
    page = Page(block=8, size=8)
    assert page.window_blocks(window=16, num_sinks=0, step=1) == 4  # 17 tokens may touch 4 blocks
    assert page.window_blocks(window=16, num_sinks=9, step=1) == 6
