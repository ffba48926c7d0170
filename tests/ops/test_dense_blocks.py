"""Law: dense and causal blocks joined by log-sum-exp equal the reference, at any offsets.

The blocks' own attention runs on a GPU alone; here plain PyTorch stands in for it.
"""

from __future__ import annotations

import pytest
import torch

from ahn.ops import window_attention as api
from ahn.ops.window_attention import dense
from ahn.ops.window_attention.reference import blocked_window_attention
from blocks import join, scores_of
from models import assert_close


@pytest.fixture(autouse=True)
def _plain_blocks(monkeypatch):
    monkeypatch.setattr(api, "why_not_dense", lambda query, value, dropout: None)
    monkeypatch.setattr(dense, "attend", attend)
    monkeypatch.setattr(dense, "join", join)


def attend(query, key, value, is_causal, scale):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = scores_of(query, key, is_causal, scale)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.parametrize("sinks", [0, 1, 5])
@pytest.mark.parametrize("window", [1, 2, 7, 40])
@pytest.mark.parametrize(("seen", "new"), [(0, 50), (0, 3), (3, 1), (4, 30), (60, 7), (60, 45)])
def test_blocks_equal_the_reference(sinks, window, seen, new):
    past = min(seen, window)
    start, length = seen - past, past + new

    def draw(heads, tokens):
        return torch.randn(2, heads, tokens, 12, dtype=torch.float64)

    query, key, value = draw(4, new), draw(2, length), draw(2, length)
    sink_key, sink_value = draw(2, sinks), draw(2, sinks)
    both = slice(start, max(start, min(sinks, start + length)))  # sinks that are keys as well
    for sink, tokens in ((sink_key, key), (sink_value, value)):
        sink[:, :, both] = tokens[:, :, : both.stop - both.start]
    arguments = (query, key, value, sink_key, sink_value)
    expected = blocked_window_attention(*arguments, window, start, None, 0.0)
    assert_close(api.window_attention(*arguments, window=window, start=start), expected, 1e-12)
