"""Laws of exact rows: they join the softmax of sinks and window as if they stood in it."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import load_session, prefill, save_session, stream
from ahn.ops.window_attention import ExactRows, window_attention
from newest_rows import ROWS
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    one_shot,
    pieces,
    random_ids,
    read,
)

LENGTH = 90


def models(**settings):
    """A window with exact rows behind it, and the longer window that it equals."""
    pair = []
    for memory, window in (("NewestRows", WINDOW), ("DeltaNet", WINDOW + ROWS)):
        config = ahn.AHNConfig(memory=memory, window=window, **{"num_sinks": 4, **settings})
        pair.append(ahn.attach(base_model("Qwen3", torch.float64), config))
    return pair


@pytest.fixture(
    scope="module", params=[{}, {"num_sinks": 0}, {"full_attention_layers": (1,)}], ids=str
)
def pair(request):
    return models(**request.param)


@torch.no_grad()
def test_rows_behind_the_window_are_a_longer_window(pair):
    rows, longer = pair
    ids = random_ids(LENGTH, batch=2)
    with ahn.memory_off(longer):
        expected = one_shot(longer, ids)
    assert_close(one_shot(rows, ids), expected, 1e-12)
    with ahn.memory_off(rows):
        assert (one_shot(rows, ids) - expected)[:, WINDOW + 4 :].abs().max() > 1e-3
    for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7), [20, *[1] * 40, 30], [10, 1, 60, 19]):
        assert_close(read(rows, ids, chunks), expected, 1e-12, f"{chunks}")


@torch.no_grad()
def test_padded_rows_are_each_row_alone():
    rows, longer = models()
    texts, ids, mask = left_padded((60, 41, 3))
    with ahn.memory_off(longer):
        alone = [one_shot(longer, text)[0, -1] for text in texts]
    assert_close(
        prefill(rows, ids, attention_mask=mask, prefill_chunk_size=9)[0], torch.stack(alone), 1e-12
    )


@torch.no_grad()
def test_packed_documents_are_each_alone(pair):
    documents = [random_ids(n, seed=n) for n in (60, 45, 3)]
    positions = torch.cat([torch.arange(x.shape[1]) for x in documents])[None]
    expected = torch.cat([one_shot(pair[0], x) for x in documents], 1)
    got = one_shot(pair[0], torch.cat(documents, 1), position_ids=positions)
    assert_close(got, expected, 1e-12)


@torch.no_grad()
def test_sessions_forks_and_joins_take_them_along(tmp_path):
    rows, _ = models()
    caches = [prefill(rows, random_ids(n, seed=n))[1] for n in (70, 33, 12)]
    save_session(caches[0], tmp_path / "session")
    resumed, fork = load_session(tmp_path / "session", rows), caches[1].fork()
    joined = ahn.AHNCache.join([resumed, fork, caches[2]])
    more = random_ids(30, seed=9)
    expected = torch.cat([prefill(rows, more, cache)[0] for cache in caches])
    assert_close(prefill(rows, more.expand(3, -1), joined)[0], expected, 1e-12)


@torch.no_grad()
def test_bytes_stay_the_same():
    rows, _ = models()
    cache = prefill(rows, random_ids(60))[1]
    before = cache.nbytes
    prefill(rows, random_ids(3000), cache, prefill_chunk_size=500)
    assert cache.nbytes == before


@torch.no_grad()
def test_answers_are_those_of_the_longer_window():
    rows, longer = models()
    ids = random_ids(50)
    got = torch.cat(list(stream(rows, ids, max_new_tokens=30)))
    with ahn.memory_off(longer):
        assert torch.equal(got, torch.cat(list(stream(longer, ids, max_new_tokens=30))))


@pytest.mark.parametrize("queries", [5, 200])
def test_they_equal_a_dense_mask(queries):
    """Rows of any visibility, by head and by row of the batch, against a softmax over all pairs."""
    window, sinks, before, readers = 7, 2, 7, queries - 3
    query = torch.randn(2, 4, queries, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, before + queries, 8, dtype=torch.float64).unbind(0)
    sink_key, sink_value = torch.randn(2, 2, 2, sinks, 8, dtype=torch.float64).unbind(0)
    row_key, row_value = torch.randn(2, 2, 2, 11, 8, dtype=torch.float64).unbind(0)
    first = torch.randint(-5, readers, (2, 2, 11))
    end = first + torch.randint(0, readers, (2, 2, 11))
    rows = ExactRows(row_key, row_value, first, end, readers)
    tokens = (query, key, value, sink_key, sink_value)
    got = window_attention(*tokens, window=window, start=30, exact_rows=rows)
    position = 30 + torch.arange(before + queries)
    reader = position[-queries:, None]
    near = (position <= reader) & (reader - position < window)
    e = torch.arange(queries)[:, None] - (queries - readers)
    seen = (first[..., None, :] <= e) & (e < end[..., None, :]) & (e >= 0)
    mask = [torch.ones(2, 2, queries, sinks, dtype=torch.bool), near.expand(2, 2, -1, -1), seen]
    keys, values = (torch.cat(x, 2).repeat_interleave(2, 1) for x in (
        (sink_key, key, row_key), (sink_value, value, row_value)))  # fmt: skip
    scores = query @ keys.mT * 8**-0.5
    scores = scores.masked_fill(~torch.cat(mask, -1).repeat_interleave(2, 1), float("-inf"))
    assert_close(got, scores.softmax(-1) @ values, 1e-12)
