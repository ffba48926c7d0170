"""Flash attention in Triton's interpreter, float32: run by `test_interpreted_kernels`."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.layout import repeat_heads
from ahn.ops.window_attention.flash import flash_window_attention
from ahn.ops.window_attention.reference import blocked_window_attention, visible
from triton_interpreter import mend_indexing, unwritten_is_nan, watch

BATCH, HEADS, GROUPS = 2, 4, 2


@pytest.fixture(autouse=True)
def _watched_memory(monkeypatch):
    torch.manual_seed(0)
    mend_indexing(monkeypatch)
    watch(monkeypatch)
    with unwritten_is_nan():
        yield


def draw(heads, tokens, dim):
    return torch.randn(BATCH, tokens, heads, dim).transpose(1, 2)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    ("seen", "new", "sinks", "window", "dim", "width"),
    [
        (0, 50, 0, 40, 24, 40),
        (0, 50, 5, 7, 24, 40),
        (0, 90, 70, 7, 24, 40),  # blocks of sinks alone
        (60, 45, 0, 40, 64, 64),
        (60, 45, 5, 7, 24, 40),
        (60, 90, 5, 40, 64, 40),
        (20, 1, 5, 40, 64, 64),
    ],
)
def test_equals_the_reference(seen, new, sinks, window, by_row, dim, width):
    past = min(seen, window)
    start = torch.tensor([seen - past, seen - past - 6]) if by_row else seen - past
    query = draw(HEADS, new, dim)
    columns = (draw(GROUPS, past + new, dim), draw(GROUPS, past + new, width))
    tokens = (query, *columns, draw(GROUPS, sinks, dim), draw(GROUPS, sinks, width))
    out, lse = flash_window_attention(*tokens, window, start, 0.3)
    expected = blocked_window_attention(*tokens, window, start, 0.3, 0.0)
    assert out.isfinite().all()
    position = torch.as_tensor(start).reshape(-1, 1) + past + torch.arange(new)
    is_token = (position >= 0)[:, None, :, None].expand_as(out)
    torch.testing.assert_close(out[is_token], expected[is_token], atol=1e-5, rtol=1e-5)
    mask = visible(new, 0, past + new, sinks, window, start, query.device)
    keys = repeat_heads(torch.cat([tokens[3], columns[0]], 2), HEADS, 1)
    scores = (0.3 * query @ keys.mT).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse[is_token[..., 0]], scores.logsumexp(-1)[is_token[..., 0]])
