"""The cache: constant bytes, rows moved as one, steps taken back, wrong partners refused."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import ahn
from ahn.generation import prefill
from ahn.hf.cache_argument import CACHE
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    new_model,
    one_shot,
    over_cells,
    over_trios,
    pieces,
    random_ids,
    read,
    shared_base,
    shared_model,
)

BUDGET = WINDOW + 4


def shapes(cache):
    return [
        {name: (x.shape, x.dtype) for name, x in layer.tensors().items()} for layer in cache.layers
    ]


@over_cells
@torch.no_grad()
def test_bytes_are_those_of_the_first_tokens_for_ever(cell):
    window = 4
    model = shared_model("Llama", cell, window=window, num_sinks=2)
    cache = ahn.AHNCache(model.config)
    assert cache.nbytes == 0
    ahn.generation.prefill(model, random_ids(10 * window, batch=2), cache, prefill_chunk_size=16)
    held, kept = cache.nbytes, shapes(cache)
    ahn.generation.prefill(model, random_ids(990 * window, batch=2), cache, prefill_chunk_size=330)
    assert cache.get_seq_length() == 1000 * window
    assert (cache.nbytes, shapes(cache)) == (held, kept)
    assert held == cache.nbytes == _expected_bytes(model, cell, batch=2, slots=window + 2)
    assert not {name for layer in kept for name in layer} - {
        "keys",
        "values",
        "write_inputs.gates",
        "states.recurrent_state",
    }


def _expected_bytes(model, cell, batch, slots):
    config = model.config
    heads, dim = config.num_attention_heads, 16
    numbers = 2 * config.num_key_value_heads * slots * dim
    numbers += heads * slots * model.model.layers[0].ahn.fn.num_gates + heads * dim * dim
    return 4 * batch * numbers * config.num_hidden_layers


@torch.no_grad()
def test_bytes_include_layers_with_full_attention():
    model = shared_model(full_attention_layers=(0,))
    cache = ahn.AHNCache(model.config)
    sizes = []
    for _ in range(3):
        ahn.generation.prefill(model, random_ids(40), cache)
        sizes.append(cache.nbytes)
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 40 * 2 * 2 * 16 * 4
    assert len(cache.memory_layers) == 1


@torch.no_grad()
def test_reset_forgets_everything():
    model, (_, ids, mask) = shared_model(), left_padded((50, 20))
    cache = ahn.AHNCache(model.config)
    read(model, ids, [50], cache, mask)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    other = random_ids(60, batch=3)
    assert torch.equal(read(model, other, [30, 30], cache), read(model, other, [30, 30]))
    with ahn.memory_off(model):
        cache.reset()
        read(model, other, [60], cache)


@over_trios
@torch.no_grad()
def test_rows_are_reordered_repeated_and_chosen(family, cell):
    """Padded rows, so that the padding has to move along with its row."""
    model = shared_model(family, cell, dtype=torch.float64)
    rows, ids, mask = left_padded((50, 41, 3))
    answer = random_ids(20, batch=4, seed=3)
    for change, order in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
    ):
        cache = ahn.AHNCache(model.config)
        ahn.generation.prefill(model, ids, cache, attention_mask=mask)
        change(cache)
        token = answer[:1].expand(len(order), -1)
        logits = [ahn.generation.prefill(model, t, cache)[0] for t in token.split(1, dim=1)]
        for row, source in enumerate(order):
            alone = one_shot(model, torch.cat([rows[source], answer[:1]], 1))[0, -20:]
            assert_close(torch.stack(logits, 1)[row], alone, 1e-12, f"{order}, row {row}")


@over_cells
@torch.no_grad()
def test_steps_are_taken_back_while_nothing_is_compressed(cell):
    model = shared_model("Qwen3", cell, dtype=torch.float64)
    ids = random_ids(70)
    cache = ahn.AHNCache(model.config)
    read(model, random_ids(BUDGET, seed=9), [15, 5], cache)
    cache.crop(-18)
    assert cache.get_seq_length() == 2
    text = torch.cat([random_ids(BUDGET, seed=9)[:, :2], ids], 1)
    expected = one_shot(model, text)
    assert_close(read(model, ids, pieces(70, 9), cache), expected[:, 2:], 1e-12)
    with pytest.raises(ValueError, match=f"crop: expected at most {BUDGET} tokens, got 72"):
        cache.crop(-1)


@torch.no_grad()
def test_steps_of_a_padded_batch_are_not_taken_back_once_any_row_is_compressed():
    model, (_, ids, mask) = shared_model(), left_padded((BUDGET + 1, 3))
    _, cache = ahn.generation.prefill(model, ids, attention_mask=mask)
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-1)


@torch.no_grad()
def test_a_refused_crop_changes_no_layer():
    model = shared_model(full_attention_layers=(0,))
    _, cache = ahn.generation.prefill(model, random_ids(BUDGET + 1))
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-1)
    assert [layer.get_seq_length() for layer in cache.layers] == [BUDGET + 1] * 2


@torch.no_grad()
def test_another_batch_size_is_refused():
    model = shared_model()
    cache = ahn.AHNCache(model.config)
    model(random_ids(9, batch=2), **{CACHE: cache})
    with pytest.raises(ValueError, match="AHNCache: expected a batch of 2, got 3"):
        model(random_ids(1, batch=3), **{CACHE: cache})


@torch.no_grad()
def test_the_wrong_cache_for_a_model_is_refused():
    model, ids = shared_model(), random_ids(9)
    with pytest.raises(ValueError, match="AHNCache: expected the config of an attached model"):
        ahn.AHNCache(shared_base().config)
    with pytest.raises(TypeError, match="expected an AHNCache, got DynamicCache"):
        model(ids, **{CACHE: DynamicCache(config=shared_base().config)})
    cache = ahn.AHNCache(model.config)
    with pytest.raises(TypeError, match="expected a model with a memory attached"):
        shared_base()(ids, **{CACHE: cache})
    with ahn.disabled(model), pytest.raises(TypeError, match="got an AHNCache"):
        model(ids, **{CACHE: cache})
    other = shared_model(window=24)
    with pytest.raises(ValueError, match=r"expected a cache of .*24.*, got .*16"):
        other(ids, **{CACHE: ahn.AHNCache(model.config)})


@torch.no_grad()
def test_a_cache_of_a_detached_model_is_refused():
    model = new_model()
    cache = ahn.AHNCache(model.config)
    model(random_ids(9), **{CACHE: cache})
    ahn.detach(model)
    with pytest.raises(TypeError, match="AHNCache: expected a model with a memory attached"):
        model(random_ids(1), **{CACHE: cache})


@torch.no_grad()
def test_a_cache_belongs_to_one_mode():
    model, ids = shared_model(), random_ids(9)
    cache = ahn.AHNCache(model.config)
    model(ids, **{CACHE: cache})
    with ahn.memory_off(model), pytest.raises(ValueError, match="expected a cache of"):
        model(ids, **{CACHE: cache})


@torch.no_grad()
def test_half_precision_keeps_a_float32_state():
    model = base_model(dtype=torch.bfloat16)
    ahn.attach(model, ahn.AHNConfig(window=8, num_sinks=2))
    cache = ahn.AHNCache(model.config)
    model(random_ids(30), **{CACHE: cache})
    layer = cache.memory_layers[0]
    assert layer.states["recurrent_state"].dtype == torch.float32
    assert {layer.keys.dtype, layer.values.dtype, layer.write_inputs["gates"].dtype} == {
        torch.bfloat16
    }


@pytest.mark.slow
@over_cells
@pytest.mark.parametrize("chunk", [1, 7, 40])
@torch.no_grad()
def test_rows_come_with_tokens(cell, chunk):
    """A window that no machine could hold is as good as one that holds the whole text."""
    ids, more = random_ids(50, batch=2), random_ids(9, batch=2, seed=4).split(1, 1)
    outputs = []
    for window in (2**48, 2000):
        model = shared_model("Qwen3", cell, window=window)
        logits, cache = prefill(model, ids, prefill_chunk_size=chunk)
        outputs.append(torch.stack([logits, *(prefill(model, x, cache)[0] for x in more)]))
        assert 59 <= cache.layers[0].keys.shape[2] <= 2 * 59
        answer = model.generate(ids, max_new_tokens=5)
        assert answer.shape == (2, 55)
    assert torch.equal(*outputs)


@torch.no_grad()
def test_all_rows_can_be_made_first():
    """As what holds their addresses needs them; what was read stays."""
    model, ids = shared_model(), random_ids(9)
    _, cache = prefill(model, ids)
    grown, missing = cache.fork(), cache.reserve_bytes
    assert missing > 0
    grown.reserve()
    assert (grown.nbytes - cache.nbytes, grown.reserve_bytes) == (missing, 0)
    addresses = [layer.keys.data_ptr() for layer in grown.layers]
    logits = [prefill(model, random_ids(60, seed=2), each)[0] for each in (cache, grown)]
    assert torch.equal(*logits)
    assert [layer.keys.data_ptr() for layer in grown.layers] == addresses


@over_cells
@torch.no_grad()
def test_texts_read_apart_are_read_on_as_a_batch(cell):
    """Below the budget, at it and far beyond, one of them a padded batch itself."""
    model = shared_model("Qwen3", cell, dtype=torch.float64)
    _, ids, mask = left_padded((12, 5))
    alone = [
        *(prefill(model, random_ids(n, seed=n))[1] for n in (3, BUDGET, 70)),
        prefill(model, ids, attention_mask=mask)[1],
    ]
    joined = ahn.AHNCache.join(alone)
    more = random_ids(31, batch=5, seed=9)
    for first, last in ((0, 1), (1, 2), (2, 30), (30, 31)):
        part = more[:, first:last]
        expected = [
            prefill(model, part[row : row + len(cache.layers[0].keys)], cache)[0]
            for row, cache in enumerate(alone)
        ]
        assert_close(prefill(model, part, joined)[0], torch.cat(expected), 1e-12)
    assert joined.nbytes == sum(cache.nbytes for cache in alone) + _padding_bytes(joined, alone)


def _padding_bytes(joined, alone):
    held = [layer.padding for cache in alone for layer in cache.layers if layer.padding is not None]
    return sum(layer.padding.nbytes for layer in joined.layers) - sum(x.nbytes for x in held)


def test_what_cannot_be_joined_is_refused():
    model = shared_model()
    read_once = prefill(model, random_ids(5))[1]
    with pytest.raises(ValueError, match="join: expected caches that have read something"):
        ahn.AHNCache.join([read_once, ahn.AHNCache(model.config)])
    with pytest.raises(ValueError, match="join: expected caches that have read something"):
        ahn.AHNCache.join([])
    other = prefill(shared_model(window=8), random_ids(5))[1]
    with pytest.raises(ValueError, match="join: expected caches of one model and mode"):
        ahn.AHNCache.join([read_once, other])
