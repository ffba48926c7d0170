"""Attention over sinks, window and pool is its definition, in whatever pieces a text comes."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.pooled_attention import POOLINGS, RATIO, pool_slots, pooled_window_attention
from ahn.ops.window_attention import window_attention
from tiny_models import assert_close

over_poolings = pytest.mark.parametrize("pooling", POOLINGS)


def by_definition(query, key, value, sinks, window, pooling, slots):
    """One query after the other, from lists of tokens."""
    rows = []
    for now in range(query.shape[2]):
        exact = [p for p in range(now + 1) if p < sinks or p > now - window]
        gone = [p for p in range(now + 1) if p not in exact]
        groups = [gone[i : i + RATIO] for i in range(0, len(gone), RATIO)][-slots:]
        keys, values = (
            torch.stack([x[:, :, p] for p in exact] + [pooled(x, g, pooling) for g in groups], 2)
            for x in (key, value)
        )
        keys, values = (
            x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (keys, values)
        )
        scores = (query[:, :, now : now + 1] @ keys.mT) * query.shape[-1] ** -0.5
        rows.append(scores.softmax(-1) @ values)
    return torch.cat(rows, 2)


def pooled(x, group, pooling):
    tokens = torch.stack([x[:, :, p] for p in group])
    return tokens.amax(0) if pooling == "max" else tokens.mean(0)


@over_poolings
@pytest.mark.parametrize(
    ("window", "sinks", "slots"), [(16, 4, 6), (5, 0, 1), (3, 7, 200), (1, 2, 3)]
)
def test_the_operation_is_its_definition(pooling, window, sinks, slots):
    query = torch.randn(2, 4, 150, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 150, 8, dtype=torch.float64)
    expected = by_definition(query, key, value, sinks, window, pooling, slots)
    pool, outputs, first = key.new_zeros(2, 2, slots, 16), [], 0
    for length in (70, 1, 1, 9, 69):  # with more queries than a block, and fewer than a group
        last, begin = first + length, max(0, first - window)
        part, pool = pooled_window_attention(
            query[:, :, first:last], key[:, :, begin:last], value[:, :, begin:last],
            key[:, :, :sinks], value[:, :, :sinks],
            pool=pool, pooling=pooling, window=window, start=begin,
        )  # fmt: skip
        outputs.append(part)
        first = last
    assert_close(torch.cat(outputs, 2), expected, 1e-12)


@over_poolings
def test_the_pool_is_the_same_to_the_bit_however_the_text_is_cut(pooling):
    key, value = torch.randn(2, 1, 2, 90, 8).bfloat16()
    query, pools = torch.randn(1, 4, 90, 8).bfloat16(), []
    for chunks in ([90], [1] * 90, [33, 2, 55]):
        pool, first = None, 0
        for length in chunks:
            last, begin = first + length, max(0, first - 10)
            _, pool = pooled_window_attention(
                query[:, :, first:last], key[:, :, begin:last], value[:, :, begin:last],
                key[:, :, :3], value[:, :, :3], pool=pool, pooling=pooling, window=10, start=begin,
            )  # fmt: skip
            first = last
        pools.append(pool)
    assert pools[0].dtype == torch.bfloat16 and pools[0].any()
    assert torch.equal(pools[0], pools[1]) and torch.equal(pools[0], pools[2])


def test_a_pool_fills_the_bytes_of_a_memory_and_no_more():
    for heads, groups, dim, dtype in [(16, 2, 128, torch.bfloat16), (5, 5, 25, torch.float32)]:
        query, key = torch.empty(1, heads, 1, dim), torch.empty(1, groups, 1, dim, dtype=dtype)
        slots, state = pool_slots(query, key, key), heads * dim * dim * 4
        entry = groups * 2 * dim * dtype.itemsize
        assert slots * entry <= state < (slots + 1) * entry
    assert slots == 25 // 2
    assert pool_slots(query[:, :1, :, :1], key, key) == 2  # 2.5


@over_poolings
def test_gradients_flow_through_the_pool(pooling):
    query, key, value = torch.randn(3, 1, 2, 30, 4, dtype=torch.float64)
    nothing = key[:, :, :0]

    def run(query, key, value):
        return pooled_window_attention(
            query, key, value, nothing, nothing, pool=None, pooling=pooling, window=4, start=0
        )[0]

    tensors = [x.clone().requires_grad_() for x in (query, key, value)]
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_nothing_has_left_a_text_within_the_window():
    query, key, value = torch.randn(3, 2, 2, 30, 4, dtype=torch.float64)
    sinks = (key[:, :, :2], value[:, :, :2])
    expected = window_attention(query, (key,), (value,), *sinks, window=28, start=0)
    found, pool = pooled_window_attention(
        query, key, value, *sinks, pool=None, pooling="max", window=28, start=0
    )
    assert_close(found, expected, 1e-12)
    assert not pool.any()


def test_another_pooling_is_refused():
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="pooling: expected one of max, avg, got 'mean'"):
        pooled_window_attention(x, x, x, x, x, pool=None, pooling="mean", window=1, start=0)
