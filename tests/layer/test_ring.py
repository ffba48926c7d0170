"""Where a token lives: sinks in front, then a ring, and the two ways to say so agree."""

from __future__ import annotations

import pytest
import torch

from ahn.layer.ring import gather_rows, put_rows, slot_of, spans

WINDOW = 5


@pytest.mark.parametrize("num_sinks", [0, 3])
@pytest.mark.parametrize("first", [0, 2, 7, 40])
@pytest.mark.parametrize("length", [0, 1, WINDOW])
def test_spans_are_the_slots_in_order(num_sinks, first, length):
    slots = [i for part in spans(first, length, WINDOW, num_sinks) for i in range(100)[part]]
    assert slots == slot_of(torch.arange(first, first + length), WINDOW, num_sinks).tolist()


def test_a_token_takes_the_slot_of_the_one_it_evicts():
    position = torch.arange(3 + WINDOW, 60)
    evicted, entering = (slot_of(x, WINDOW, 3) for x in (position - WINDOW, position))
    assert torch.equal(evicted, entering)
    assert entering.min() == 3


@pytest.mark.parametrize("slots", [[4], [4, 0]])
def test_what_is_put_is_gathered_and_nothing_else_is_touched(slots):
    buffer, token, slot = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 1, 6), torch.tensor(slots)
    before = buffer.clone()
    put_rows(buffer, slot, token)
    assert torch.equal(gather_rows(buffer, slot[:, None]), token)
    assert (buffer != before).any(-1).sum() == 2 * 3
