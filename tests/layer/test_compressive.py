"""Laws of the compressive baselines: a pool in the memory's place, in the memory's bytes."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import load_session, prefill, save_session
from ahn.hf.cache_argument import CACHE
from ahn.modeling import compressive
from ahn.ops.pooled_attention import POOLINGS, RATIO
from ahn.runtime.decode_step import graph_unsupported_reason
from tiny_models import (
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


@over_poolings
@torch.no_grad()
def test_the_cache_holds_the_memorys_bytes_for_any_length(pooling):
    model, sizes = shared_model(window=4, num_sinks=2), []
    with compressive(model, pooling):
        cache = ahn.AHNCache(model.config)
        for total in (40, 4000):  # 10 and 1,000 times the window
            count = total - cache.get_seq_length()
            prefill(model, random_ids(count), cache, prefill_chunk_size=500)
            sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1]
    with_memory = prefill(model, random_ids(40))[1]
    for pool, memory in zip(cache.memory_layers, with_memory.memory_layers):
        assert pool.states["pool"].nbytes == memory.states["recurrent_state"].nbytes
        assert not pool.write_inputs


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        expected = prefill(model, ids[:, length:], cache, prefill_chunk_size=1)[0]
        for other in (resumed, fork):
            assert torch.equal(
                prefill(model, ids[:, length:], other, prefill_chunk_size=1)[0], expected
            )
        assert_close(expected, one_shot(model, ids)[:, -1], 1e-12)
    with pytest.raises(ValueError, match=f"expected a cache of .*compressive-{pooling}"):
        prefill(model, ids[:, :1], fork)


def test_what_cannot_be_done_is_refused():
    model = shared_model()
    with pytest.raises(ValueError, match="pooling: expected one of max, avg, got 'mean'"):
        compressive(model, "mean").__enter__()
    with compressive(model, "max"):
        _, cache = prefill(model, random_ids(30))
        assert graph_unsupported_reason(model, cache)
        with pytest.raises(ValueError, match="ahn_position: expected the memory or the window"):
            model(random_ids(1), **{CACHE: cache}, ahn_position=torch.tensor([30]))
