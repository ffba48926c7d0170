"""Compares the kernels that insert an evicted token with PyTorch, under TRITON_INTERPRET=1."""

import copy
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ahn.ops.decoding import Leaving, SlotLayer, StepInsertion, insert_evicted, insertion_launch
from ahn.ops.slots import HeadRows, SlotBuffers, stored
from triton_interpreter import mend_indexing, watch

reachable = []
patch = pytest.MonkeyPatch()
mend_indexing(patch)
watch(patch, lambda: reachable)
BATCH, RING = 3, 7


def draw(sizes, dim, bits):
    """A layer whose slots are partly filled, with priorities that are often equal."""
    groups, rows = len(sizes), HeadRows(sizes)
    keys, values = torch.randn(2, BATCH, groups, RING, dim)
    pairs = (stored(torch.randn(BATCH, rows.total, dim), bits) for _ in "kv")
    place = torch.stack([torch.randperm(rows.total) for _ in range(BATCH)]).int()
    place = place * (torch.rand(place.shape) < rng.choice((0.5, 1.0)))
    priority = torch.randint(4, place.shape).float()
    scores = torch.randint(6, (BATCH, groups, RING, 1)).float()
    rate = torch.randint(2, (groups,)).float() * 0.1
    slots = SlotBuffers(priority, place.int(), *pairs, rows, bits)
    return SlotLayer(keys, values, scores, rate, slots)


def tensors(layer):
    slots = layer.slots
    first = slots.rows.first(torch.device("cpu"))
    own = [layer.keys, layer.values, layer.scores, layer.rate, first, slots.priority, slots.place]
    return [*own, *slots.key, *slots.value]


rng = random.Random(0)
torch.manual_seed(0)
compared = 0
for case in range(9):
    bits, dim = rng.choice((16, 8, 4)), rng.choice((16, 24, 80))
    groups = rng.choice((1, 3))
    drawn = [rng.choice((0, 1, 5, 40)) for _ in range(groups)]
    sizes = tuple(drawn) if any(drawn) else (3,) * groups
    insertion_launch.TILE = rng.choice((16, 1024))
    layers = [draw(sizes, dim, bits), draw(tuple(x + 1 for x in sizes), dim, bits)]
    twins, others = copy.deepcopy(layers), copy.deepcopy(layers)
    reachable[:] = [x for layer in layers for x in tensors(layer)]
    together = StepInsertion()
    for step in range(3):
        number = rng.choice((1, BATCH))
        leaving = Leaving(
            torch.randint(RING, (number,)),
            torch.rand(number, 1) < 0.8,
            torch.randint(100, (number,)) + 1000 * step,
            rng.choice((-16, 0)),
        )
        together(layers, leaving)
        for twin, other in zip(twins, others):
            insert_evicted(twin, leaving, kernels="torch")
            insertion_launch.insert_in_layer(other, leaving)
    for layer, twin, other in zip(layers, twins, others):
        for got, want, single in zip(*map(tensors, (layer, twin, other))):
            assert torch.equal(got, want), case
            assert torch.equal(single, want), case
    compared += 1
print("compared", compared)
