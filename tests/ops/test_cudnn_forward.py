"""Law: blocks by cuDNN, merged by log-sum-exp, equal the reference at any offsets.

cuDNN runs on a GPU alone; here plain PyTorch takes its place.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ahn
from ahn.ops.window_attention import api, cudnn_forward
from ahn.ops.window_attention.reference import blocked_window_attention
from backend_rows import replace_reason
from tiny_models import assert_close, one_shot, random_ids, read, shared_model


@pytest.fixture(autouse=True)
def _plain_blocks(monkeypatch):
    replace_reason(monkeypatch, "window_attention", "cudnn", fits)
    monkeypatch.setattr(cudnn_forward, "attend", attend)
    monkeypatch.setattr(cudnn_forward, "merge_lse", merge_lse)


def fits(query, value, *, start=0, **options):
    return None if isinstance(start, int) else "one start"


def attend(query, key, value, is_causal, scale):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return cudnn_forward.PartialAttention(scores.softmax(-1) @ value, scores.logsumexp(-1))


def merge_lse(out, base, full, anticausal, with_lse=False):
    outs, lses = [base.out], [base.lse]
    if full is not None:
        outs.append(full.out)
        lses.append(full.lse)
    if anticausal is not None:
        missing = base.lse.shape[2] - anticausal.lse.shape[2]
        outs.append(F.pad(anticausal.out.flip(2), (0, 0, 0, missing)))
        lses.append(F.pad(anticausal.lse.flip(2), (0, missing), value=-torch.inf))
    weights = torch.stack(lses).softmax(0)[..., None]
    out.copy_((torch.stack(outs) * weights).sum(0))
    if with_lse:
        base.lse.copy_(torch.stack(lses).logsumexp(0))


@pytest.mark.parametrize("sinks", [0, 1, 5])
@pytest.mark.parametrize("window", [1, 2, 7, 40])
@pytest.mark.parametrize(("seen", "new"), [(0, 50), (0, 3), (3, 1), (4, 30), (60, 7), (60, 45)])
@torch.no_grad()
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
    views = ((x[:, :, : past // 3], x[:, :, past // 3 :]) for x in (key, value))
    got = api.window_attention(query, *views, sink_key, sink_value, window=window, start=start)
    assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("sizes", [[50, 30, 7, 64, 1, 33], [20, 100, 65], [185]])
@torch.no_grad()
def test_a_model_with_blocks_equals_one_shot(monkeypatch, sizes):
    """Chunks that end anywhere in the ring, whose views the blocks take as they lie."""
    model = shared_model("Qwen3", dtype=torch.float64)
    ids = random_ids(sum(sizes), batch=2)
    got = read(model, ids, sizes, ahn.AHNCache(model.config))
    replace_reason(monkeypatch, "window_attention", "cudnn", lambda *_, **__: "the reference")
    assert_close(got, one_shot(model, ids), 1e-12)
