"""Laws of the compressive baselines: a pool in the memory's place, in the memory's bytes."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.attach import compressive
from ahn.attach.step import why_no_graph
from ahn.generation import load_session, prefill, save_session
from ahn.ops.pooled_attention import POOLINGS, RATIO, pool_slots, pooled_window_attention
from ahn.ops.window_attention import window_attention
from models import (
    WINDOW,
    assert_close,
    left_padded,
    one_shot,
    pieces,
    random_ids,
    read,
    shared_base,
    shared_model,
)

LENGTH = 100  # 80 tokens leave; the pool has room for 32 of them
BUDGET = WINDOW + 4
over_poolings = pytest.mark.parametrize("pooling", POOLINGS)


def double(**options):
    return shared_model(dtype=torch.float64, **options)


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
@torch.no_grad()
def test_the_cache_holds_the_memorys_bytes_for_any_length(pooling):
    model, sizes = shared_model(window=4, num_sinks=2), []
    with compressive(model, pooling):
        cache = ahn.AHNCache(model.config)
        for total in (40, 4000):  # 10 and 1,000 times the window
            count = total - cache.get_seq_length()
            prefill(model, random_ids(count), cache, chunk=500)
            sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1]
    with_memory = prefill(model, random_ids(40))[1]
    for pool, memory in zip(cache.memory_layers, with_memory.memory_layers):
        assert pool.recurrent_state.nbytes == memory.recurrent_state.nbytes
        assert pool.gates is None


@over_poolings
@torch.no_grad()
def test_up_to_the_budget_it_is_the_base_and_beyond_neither_base_nor_window(pooling):
    model, ids = shared_model(), random_ids(LENGTH)
    base = shared_base()(ids).logits
    with ahn.memory_off(model):
        window = one_shot(model, ids)
    with compressive(model, pooling):
        found = one_shot(model, ids)
        assert torch.equal(one_shot(model, ids[:, :BUDGET]), shared_base()(ids[:, :BUDGET]).logits)
    assert_close(found[:, : BUDGET + 1], base[:, : BUDGET + 1], 1e-5)  # one token's pool is itself
    for other in (base, window, one_shot(model, ids)):
        assert ((found - other)[:, BUDGET + RATIO :].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_the_two_differ_and_the_cells_do_not_matter():
    model, other, ids = shared_model(), shared_model(cell="Mamba2"), random_ids(LENGTH)
    found = []
    for pooling in POOLINGS:
        with compressive(model, pooling):
            found.append(one_shot(model, ids))
        with compressive(other, pooling):
            assert torch.equal(one_shot(other, ids), found[-1])
    assert (found[0] - found[1])[:, BUDGET + RATIO :].abs().amax() > 1e-2


@over_poolings
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_sinks": 0},
        {"num_sinks": WINDOW + 5},
        {"window": 1, "num_sinks": 3},
        {"full_attention_layers": (1,)},
        {"use_q_proj": True, "use_router": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_chunks_and_tokens_equal_one_shot(pooling, settings):
    model, ids = double(**settings), random_ids(LENGTH, batch=2)
    with compressive(model, pooling):
        expected = one_shot(model, ids)
        for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7), [10, 1, 1, 60, 28]):
            assert_close(read(model, ids, chunks), expected, 1e-12, f"{chunks}")
    model = shared_model(**settings)
    with compressive(model, pooling):
        assert_close(read(model, ids, pieces(LENGTH, 9)), one_shot(model, ids), 1e-5)


@over_poolings
@pytest.mark.parametrize(
    ("window", "sinks", "lengths"),
    [(16, 4, (70, 41, 18, 2)), (16, 0, (70, 69, 68, 67)), (8, 12, (60, 41, 10)), (1, 2, (40, 1))],
)
@torch.no_grad()
def test_a_padded_batch_is_each_row_alone(pooling, window, sinks, lengths):
    model = double(window=window, num_sinks=sinks)
    rows, ids, mask = left_padded(lengths)
    longest = max(lengths)
    with compressive(model, pooling):
        alone = [one_shot(model, row)[0] for row in rows]
        for chunks in ([longest], pieces(longest, 7), [longest - 18, *[1] * 18]):
            logits = read(model, ids, chunks, mask=mask)
            for row, expected in zip(logits, alone):
                assert_close(row[-len(expected) :], expected, 1e-12, f"{chunks}")
        together = model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
        for row, prompt in zip(together[:, longest:], rows):
            answer = model.generate(prompt, max_new_tokens=9, do_sample=False)
            assert torch.equal(row, answer[0, prompt.shape[1] :])


@over_poolings
@torch.no_grad()
def test_packed_documents_are_each_alone(pooling):
    model, documents = double(), [random_ids(n, seed=n) for n in (60, 3, 45)]
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    with compressive(model, pooling):
        alone = torch.cat([one_shot(model, document) for document in documents], 1)
        packed = one_shot(model, torch.cat(documents, 1), position_ids=positions)
    assert_close(packed, alone, 1e-12)


@over_poolings
@pytest.mark.parametrize("length", [12, 61])
@torch.no_grad()
def test_resumed_and_forked_is_unbroken(pooling, length, tmp_path):
    model, ids = double(), random_ids(length + 30, batch=2)
    with compressive(model, pooling):
        _, cache = prefill(model, ids[:, :length])
        save_session(cache, tmp_path / "session")
        resumed, fork = load_session(tmp_path / "session", model), cache.fork()
        expected = prefill(model, ids[:, length:], cache, chunk=1)[0]
        for other in (resumed, fork):
            assert torch.equal(prefill(model, ids[:, length:], other, chunk=1)[0], expected)
        assert_close(expected, one_shot(model, ids)[:, -1], 1e-12)
    with pytest.raises(ValueError, match=f"expected a cache of .*compressive-{pooling}"):
        prefill(model, ids[:, :1], fork)


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


def test_what_cannot_be_done_is_refused():
    model = shared_model()
    with pytest.raises(ValueError, match="pooling: expected one of max, avg, got 'mean'"):
        compressive(model, "mean").__enter__()
    with pytest.raises(ValueError, match="pooling: expected one of max, avg, got 'mean'"):
        x = torch.randn(1, 1, 2, 4)
        pooled_window_attention(x, x, x, x, x, pool=None, pooling="mean", window=1, start=0)
    with compressive(model, "max"):
        _, cache = prefill(model, random_ids(30))
        assert why_no_graph(model, cache)
        with pytest.raises(ValueError, match="ahn_position: expected the memory or the window"):
            model(random_ids(1), past_key_values=cache, ahn_position=torch.tensor([30]))
