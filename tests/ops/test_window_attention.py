"""Attention over sinks + window, and over a cache's slots, against dense masked softmax."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.window_attention import decode_attention, window_attention
from tiny_models import assert_close

BATCH, HEADS, GROUPS, KEY, VALUE = 2, 4, 2, 8, 12


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(query, key, value, sink_key, sink_value, *, window, start, scale=None, sink_logits=None):
    """Every query against every position of the whole text: softmax over those it may see."""
    outputs = []
    for row in range(query.shape[0]):
        first = start if isinstance(start, int) else int(start[row])
        sinks, total = sink_key.shape[2], key.shape[2]
        positions = torch.cat([torch.arange(sinks), first + torch.arange(total)])
        is_sink = torch.arange(sinks + total) < sinks
        reader = positions[-query.shape[2] :, None]
        inside = (positions <= reader) & (positions > reader - window) & (positions >= sinks)
        seen = torch.where(is_sink, positions <= reader, inside)
        keys = torch.cat([sink_key, key], 2)[row].repeat_interleave(HEADS // GROUPS, 0)
        values = torch.cat([sink_value, value], 2)[row].repeat_interleave(HEADS // GROUPS, 0)
        scores = query[row] @ keys.mT * (KEY**-0.5 if scale is None else scale)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sink_logits is not None:
            logits = sink_logits[:, None, None].expand(-1, len(reader), 1)
            scores = torch.cat([scores, logits], -1)
        outputs.append(scores.softmax(-1)[..., : len(positions)] @ values)
    return torch.stack(outputs)


def inputs(queries, keys, sinks, dtype=torch.float64):
    shapes = [
        (BATCH, HEADS, queries, KEY),
        (BATCH, GROUPS, keys, KEY),
        (BATCH, GROUPS, keys, VALUE),
        (BATCH, GROUPS, sinks, KEY),
        (BATCH, GROUPS, sinks, VALUE),
    ]
    return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


CASES = [  # queries, keys, sinks, window, start
    (50, 50, 0, 10, 0),
    (50, 50, 4, 10, 0),
    (50, 50, 4, 100, 0),  # window longer than the text
    (50, 50, 60, 10, 0),  # sinks beyond the text
    (50, 50, 4, 1, 0),
    (30, 45, 4, 15, 200),  # a later chunk
    (30, 45, 20, 15, 10),  # some columns are sinks
    (200, 263, 3, 64, 40),  # several blocks
    (1, 16, 4, 16, 77),
    (130, 130, 2, 1, 0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_window_attention_is_dense_attention(case, scale):
    queries, keys, sinks, window, start = case
    arguments = [x.requires_grad_() for x in inputs(queries, keys, sinks)]
    options = {"window": window, "start": start, "scale": scale}
    got, expected = window_attention(*arguments, **options), dense(*arguments, **options)
    assert_close(got, expected, 1e-12)
    used = arguments if sinks else arguments[:3]
    for mine, theirs in zip(
        torch.autograd.grad(got.sin().sum(), used),
        torch.autograd.grad(expected.sin().sum(), used),
    ):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("case", CASES[5:9], ids=str)
def test_a_sink_logit_is_one_more_term_of_the_sum(case, scale):
    queries, keys, sinks, window, start = case
    logits = 3 * draw(HEADS, seed=9)
    arguments = [x.requires_grad_() for x in (*inputs(queries, keys, sinks), logits)]
    options = {"window": window, "start": start, "scale": scale}
    got, expected = (
        attend(*arguments[:5], sink_logits=arguments[5], **options)
        for attend in (window_attention, dense)
    )
    assert_close(got, expected, 1e-12)
    assert (got - dense(*arguments[:5], **options)).abs().max() > 1e-2
    for mine, theirs in zip(
        torch.autograd.grad(got.sin().sum(), arguments),
        torch.autograd.grad(expected.sin().sum(), arguments),
    ):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("scale", [None, 0.7])
@torch.no_grad()
def test_a_sink_logit_is_one_more_term_for_one_query(scale):
    query, key, value, *_ = inputs(1, 20, 0)
    logits, filled = 3 * draw(HEADS, seed=9), torch.tensor([20, 7])
    got = decode_attention(query, key, value, filled=filled, sink_logits=logits, scale=scale)
    for row, number in enumerate(filled.tolist()):
        tokens = [x[row : row + 1, :, :number] for x in (query, key, value)]
        nothing = [x[:, :, :0] for x in tokens[1:]]
        options = {"window": 20, "start": 0, "scale": scale, "sink_logits": logits}
        assert_close(got[row : row + 1], dense(*tokens, *nothing, **options), 1e-12)


@pytest.mark.parametrize("window", [1, 10, 70])
@pytest.mark.parametrize("start", [(-3, 0), (-40, -12), (5, -20)])
@torch.no_grad()
def test_rows_may_start_anywhere_and_padding_is_finite(start, window):
    arguments, start = inputs(90, 90, 4), torch.tensor(start)
    got = window_attention(*arguments, window=window, start=start)
    expected = dense(*arguments, window=window, start=start)
    real = (start[:, None] + torch.arange(90)) >= 0
    for row in range(BATCH):
        assert_close(got[row][:, real[row]], expected[row][:, real[row]], 1e-12)
    assert got.isfinite().all()


@torch.no_grad()
def test_cost_is_bounded_by_window_and_blocks():
    """What lies further back is not even looked at: poison there would spread through a mask."""
    arguments = inputs(64, 4000, 4)
    for x in arguments[1:3]:
        x[:, :, : 4000 - 3 * 64] = torch.nan
    assert window_attention(*arguments, window=64, start=0).isfinite().all()


@torch.no_grad()
def test_dropout_drops_weights():
    arguments = inputs(50, 50, 4)
    kept, dropped = (
        window_attention(*arguments, window=10, start=0, dropout=p) for p in (0.0, 0.5)
    )
    assert not torch.allclose(kept, dropped)


def test_fewer_keys_than_queries_are_refused():
    with pytest.raises(ValueError, match="window_attention: expected at least 5 keys, got 4"):
        window_attention(*inputs(5, 4, 0), window=3, start=0)


@pytest.mark.parametrize("filled", [None, (1, 9), (20, 3)])
@pytest.mark.parametrize("scale", [None, 0.7])
@torch.no_grad()
def test_decode_attention_is_dense_attention(filled, scale):
    query, key, value = (x for x in inputs(1, 20, 0)[:3])
    count = (20, 20) if filled is None else filled
    got = decode_attention(
        query, key, value, filled=None if filled is None else torch.tensor(filled), scale=scale
    )
    for row, n in enumerate(count):
        keys, values = (x[row, :, :n].repeat_interleave(2, 0) for x in (key, value))
        scores = query[row] @ keys.mT * (KEY**-0.5 if scale is None else scale)
        assert_close(got[row], scores.softmax(-1) @ values, 1e-12)
