"""Where a token lives: sinks in front, then a ring, and the two ways to say so agree."""

from __future__ import annotations

import pytest
import torch

from ahn.layer.ring import gather_rows, put_rows, ring_index, ring_slices

WINDOW = 5


@pytest.mark.parametrize("num_sinks", [0, 3])
@pytest.mark.parametrize("first", [0, 2, 7, 40])
@pytest.mark.parametrize("length", [0, 1, WINDOW])
def test_slices_are_the_rows_in_order(num_sinks, first, length):
    rows = [i for part in ring_slices(first, length, WINDOW, num_sinks) for i in range(100)[part]]
    assert rows == ring_index(torch.arange(first, first + length), WINDOW, num_sinks).tolist()


def test_a_token_takes_the_row_of_the_one_it_evicts():
    position = torch.arange(3 + WINDOW, 60)
    evicted, entering = (ring_index(x, WINDOW, 3) for x in (position - WINDOW, position))
    assert torch.equal(evicted, entering)
    assert entering.min() == 3


@pytest.mark.parametrize("index", [[4], [4, 0]])
def test_what_is_put_is_gathered_and_nothing_else_is_touched(index):
    buffer, token, index = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 1, 6), torch.tensor(index)
    before = buffer.clone()
    put_rows(buffer, index, token)
    assert torch.equal(gather_rows(buffer, index[:, None]), token)
    assert (buffer != before).any(-1).sum() == 2 * 3
