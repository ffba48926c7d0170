"""Laws of the exact part and its hand-over to the memory: budget, chunks, acting memory."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.hf.cache_argument import CACHE
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    new_model,
    one_shot,
    over_cells,
    over_matrix,
    over_pairs,
    over_trios,
    pieces,
    random_ids,
    read,
    shared_base,
    shared_model,
)

LENGTH = 100  # more than 64 tokens leave the window, so the recurrences' own chunks join too
BUDGET = WINDOW + 4
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}


@over_matrix
@torch.no_grad()
def test_up_to_the_budget_the_model_is_its_base(family, cell):
    base, model = shared_base(family), shared_model(family, cell)
    ids = random_ids(BUDGET, batch=2)
    expected = base(ids).logits
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(one_shot(model, ids), expected)
    for chunks in ([1] * BUDGET, [7, 13]):
        assert torch.equal(read(model, ids, chunks), _base_in_chunks(base, ids, chunks))


@over_matrix
@torch.no_grad()
def test_one_token_beyond_the_budget_differs_from_the_base(family, cell):
    ids = random_ids(BUDGET + 1, batch=2)
    expected = shared_base(family)(ids).logits
    for use_cache in (True, False):
        logits = shared_model(family, cell)(ids, use_cache=use_cache).logits
        assert_close(logits[:, :BUDGET], expected[:, :BUDGET], 1e-5)
        assert ((logits - expected)[:, BUDGET:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@over_pairs
@torch.no_grad()
def test_the_base_keeps_its_own_backend(family, cell, backend):
    base = base_model(family)
    base.set_attn_implementation(backend)
    model = new_model(family, cell)
    model.set_attn_implementation(backend)
    ids = random_ids(BUDGET)
    assert torch.equal(model(ids).logits, base(ids).logits)
    weights = model(ids, output_attentions=True).attentions or ()
    assert len(weights) == (2 if backend == "eager" else 0)
    long = random_ids(LENGTH)
    assert_close(model(long).logits, one_shot(shared_model(family, cell), long), 1e-6)


def _base_in_chunks(base, ids, chunks):
    cache, outputs = None, []
    for part in ids.split(chunks, dim=1):
        output = base(part, **{CACHE: cache}, use_cache=True)
        cache = output[CACHE]
        outputs.append(output.logits)
    return torch.cat(outputs, 1)


SETTINGS = [
    {"num_sinks": 0},
    {"num_sinks": WINDOW + 5},
    {"window": 1, "num_sinks": 0},
    {"window": 1, "num_sinks": 3},
    {"use_q_proj": True},
    {"use_router": True},
    {"full_attention_layers": (1,)},
    {"use_q_proj": True, "use_router": True, "full_attention_layers": (0,), "num_sinks": 0},
]


@over_matrix
@torch.no_grad()
def test_chunks_and_tokens_equal_one_shot(family, cell):
    singles = [BUDGET - 2, *[1] * 24, LENGTH - BUDGET - 22]  # once around the ring and more
    _check_chunks(shared_model(family, cell, dtype=torch.float64), singles)


@pytest.mark.slow
@over_trios
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_chunks_equal_one_shot_in_every_setting(family, cell, settings):
    model = shared_model(family, cell, dtype=torch.float64, **settings)
    budget = settings.get("window", WINDOW) + settings.get("num_sinks", 4)
    _check_chunks(model, [budget, *[1] * 20, LENGTH - budget - 20])


@pytest.mark.slow
@over_cells
@torch.no_grad()
def test_token_by_token_in_both_precisions(cell):
    for dtype in ROUNDING:
        _check_chunks(shared_model("Llama", cell, dtype=dtype), [1] * LENGTH)


def _check_chunks(model, singles):
    ids = random_ids(LENGTH, batch=2)
    expected = one_shot(model, ids)
    for chunks in (singles, [LENGTH], pieces(LENGTH, 7), pieces(LENGTH, 64), [10, 1, 1, 60, 28]):
        assert_close(read(model, ids, chunks), expected, ROUNDING[model.dtype], f"{chunks}")


@over_matrix
@torch.no_grad()
def test_the_memory_acts_beyond_the_budget_and_only_there(family, cell):
    model, ids = shared_model(family, cell), random_ids(LENGTH)
    with_memory = model(ids).logits
    with ahn.memory_off(model):
        window_alone = model(ids).logits
        assert_close(read(model, ids, pieces(LENGTH, 9)), one_shot(model, ids), 1e-5)
    assert torch.equal(with_memory[:, :BUDGET], window_alone[:, :BUDGET])
    assert ((with_memory - window_alone)[:, BUDGET:].abs().amax(-1) > 1e-3).all()


@over_cells
@torch.no_grad()
def test_a_fresh_cell_is_silent(cell):
    settings = ahn.AHNConfig(memory=cell, window=WINDOW, num_sinks=4, use_q_proj=True)
    model = ahn.attach(base_model(), settings)
    ids = random_ids(LENGTH)
    fresh = read(model, ids, [60, 40])
    with ahn.memory_off(model):
        assert torch.equal(read(model, ids, [60, 40]), fresh)


@over_cells
@torch.no_grad()
def test_the_memory_reaches_beyond_the_window(cell):
    """A token far outside the window changes a later answer through the memory alone."""
    model, ids = shared_model("Qwen2", cell, dtype=torch.float64), random_ids(LENGTH)
    changed = ids.clone()
    changed[0, 10] = 2 if ids[0, 10] != 2 else 3
    influence = (one_shot(model, ids) - one_shot(model, changed))[0, -1].abs().max()
    assert influence > 1e-9
    with ahn.memory_off(model):  # two layers of 16 tokens see at most 30 tokens back
        assert torch.equal(one_shot(model, ids)[0, -1], one_shot(model, changed)[0, -1])


@over_cells
@torch.no_grad()
def test_an_identity_is_no_map_of_the_query(cell):
    """`use_q_proj` maps the query before RoPE (as released: before a family's own query norm)."""
    plain, mapped = shared_model("Llama", cell), new_model("Llama", cell, use_q_proj=True)
    mapped.load_state_dict(plain.state_dict(), strict=False)
    for layer in mapped.model.layers:
        weight = layer.ahn.fn.q_proj.weight
        weight.copy_(torch.eye(weight.shape[-1]))
    ids = random_ids(LENGTH)
    assert_close(one_shot(mapped, ids), one_shot(plain, ids), 1e-5)


@torch.no_grad()
def test_a_forward_overrides_window_sinks_and_mode():
    model, ids = shared_model(), random_ids(LENGTH)
    other = shared_model(window=24, num_sinks=2)
    assert torch.equal(one_shot(model, ids, ahn_window=24, ahn_sinks=2), one_shot(other, ids))
    assert torch.equal(one_shot(model, ids, ahn_mode="full"), one_shot(shared_base(), ids))
    with ahn.memory_off(model):
        expected = one_shot(model, ids)
    assert torch.equal(one_shot(model, ids, ahn_mode="window"), expected)
    assert not torch.equal(one_shot(model, ids), expected)
    with pytest.raises(ValueError, match="expected a cache of"):
        model(ids, ahn_window=24, **{CACHE: ahn.AHNCache(model.config)})


@torch.no_grad()
def test_embeddings_and_positional_arguments_are_taken_as_well():
    model, ids = shared_model(), random_ids(LENGTH)
    expected = one_shot(model, ids)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(one_shot(model, None, inputs_embeds=embedded), expected)
    hidden = model.get_decoder()(ids, None, None, None, None, False).last_hidden_state
    assert torch.equal(model.lm_head(hidden), expected)
