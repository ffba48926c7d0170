"""Laws of exact slots, in a whole model: what they keep does not depend on how a text is read."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import load_session, prefill, save_session, stream
from ahn.hf.cache_argument import CACHE
from slot_models import SETTINGS, SLOTS, Definition, shared_slot_model, slot_model
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    new_model,
    one_shot,
    pieces,
    random_ids,
    read,
)

LENGTH = 90
over_settings = pytest.mark.parametrize("settings", SETTINGS, ids=str)
over_some = pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 5, 7, 11)], ids=str)
over_caches = pytest.mark.parametrize("settings", [SETTINGS[i] for i in (2, 5, 6)], ids=str)


@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 1, 2, 3, 9, 10, 11)], ids=str)
@torch.no_grad()
def test_they_are_a_mask_over_the_best(settings):
    model = shared_slot_model(**settings)
    definition, ids = Definition(model), random_ids(LENGTH, batch=2)
    expected = definition(ids)
    # The base's own rotations are rounded to float32, and turning undoes and repeats them.
    turned = settings.get("slot_distance") and "slot_beyond" not in settings
    assert_close(one_shot(model, ids), expected, 1e-5 if turned else 1e-12)
    newest = torch.arange(LENGTH)
    newest = (newest[:, None] - newest < WINDOW + SLOTS) | (newest < 4)
    if settings.get("slots", SLOTS) < 500:
        assert any((mask & ~newest).any() for mask in definition.masks)  # not the newest alone


@over_settings
@torch.no_grad()
def test_chunks_and_tokens_equal_one_shot(settings):
    model = shared_slot_model(**settings)
    ids = random_ids(LENGTH, batch=2)
    expected = one_shot(model, ids)
    for chunks in ([1] * LENGTH, pieces(LENGTH, 7), [10, 1, 49, *[1] * 10, 20]):
        assert_close(read(model, ids, chunks), expected, 1e-12, f"{chunks}")


@torch.no_grad()
def test_chunks_longer_than_a_block_equal_tokens():
    model = shared_slot_model(slots=20)
    ids = random_ids(220)
    assert_close(read(model, ids, [17, 160, 43]), read(model, ids, [1] * 220), 1e-12)


@over_some
@torch.no_grad()
def test_padded_rows_are_each_row_alone(settings):
    model = shared_slot_model(**settings)
    rows, ids, mask = left_padded((60, 41, 3))
    alone = torch.stack([one_shot(model, row)[0, -1] for row in rows])
    for size in (9, 60):
        logits, cache = prefill(model, ids, attention_mask=mask, prefill_chunk_size=size)
        assert_close(logits, alone, 1e-12)
    more = random_ids(30, seed=4)
    steps = [prefill(model, token.expand(3, 1), cache)[0] for token in more.split(1, 1)]
    for i, row in enumerate(rows):
        expected = one_shot(model, torch.cat([row, more], 1))[0, -30:]
        assert_close(torch.stack(steps, 1)[i], expected, 1e-12)


@over_some
@torch.no_grad()
def test_packed_documents_are_each_alone(settings):
    model = shared_slot_model(**settings)
    documents = [random_ids(n, seed=n) for n in (60, 45, 3)]
    positions = torch.cat([torch.arange(x.shape[1]) for x in documents])[None]
    expected = torch.cat([one_shot(model, x) for x in documents], 1)
    got = one_shot(model, torch.cat(documents, 1), position_ids=positions)
    assert_close(got, expected, 1e-12)


@over_caches
@torch.no_grad()
def test_sessions_forks_and_joins_take_them_along(settings, tmp_path):
    model = shared_slot_model(**settings)
    caches = [prefill(model, random_ids(n, seed=n))[1] for n in (70, 33, 12)]
    save_session(caches[0], tmp_path / "session")
    resumed, fork = load_session(tmp_path / "session", model), caches[1].fork()
    joined = ahn.AHNCache.join([resumed, fork, caches[2]])
    more = random_ids(30, seed=9)
    expected = torch.cat([prefill(model, more, cache)[0] for cache in caches])
    assert_close(prefill(model, more.expand(3, -1), joined)[0], expected, 1e-12)


@over_caches
@torch.no_grad()
def test_rows_are_reordered_as_beams_do(settings):
    model = shared_slot_model(**settings)
    rows, ids, mask = left_padded((50, 41, 3))
    _, cache = prefill(model, ids, attention_mask=mask)
    order = [2, 0, 0]
    cache.reorder_cache(torch.tensor(order))
    more = random_ids(20, seed=3)
    steps = [prefill(model, token.expand(3, 1), cache)[0] for token in more.split(1, 1)]
    for row, source in enumerate(order):
        alone = one_shot(model, torch.cat([rows[source], more], 1))[0, -20:]
        assert_close(torch.stack(steps, 1)[row], alone, 1e-12)


@torch.no_grad()
def test_beams_are_those_that_read_everything_anew():
    model = shared_slot_model()
    options = {"max_new_tokens": 25, "num_beams": 3, "do_sample": False}
    kept = model.generate(random_ids(40), **options)
    assert torch.equal(kept, model.generate(random_ids(40), use_cache=False, **options))


@over_caches
@torch.no_grad()
def test_a_forward_leaves_a_fork_untouched(settings):
    model = shared_slot_model(**settings)
    _, cache = prefill(model, random_ids(60))
    fork = cache.fork()
    before = [{k: x.clone() for k, x in layer.tensors().items()} for layer in fork.layers]
    prefill(model, random_ids(30, seed=5), cache, prefill_chunk_size=1)
    for layer, tensors in zip(fork.layers, before):
        assert all(torch.equal(x, tensors[k]) for k, x in layer.tensors().items())


@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (2, 4, 5, 7)], ids=str)
@torch.no_grad()
def test_bytes_stay_the_same(settings):
    model = slot_model(dtype=torch.float32, **settings)
    cache = prefill(model, random_ids(60))[1]
    before = {k: x.shape for layer in cache.layers for k, x in layer.tensors().items()}
    size = cache.nbytes
    prefill(model, random_ids(3000), cache, prefill_chunk_size=500)
    stream_of = stream(model, random_ids(2), cache, max_new_tokens=20)
    assert len(list(stream_of)) == 20
    assert cache.nbytes == size
    assert before == {k: x.shape for layer in cache.layers for k, x in layer.tensors().items()}


@torch.no_grad()
def test_with_as_many_slots_as_tokens_it_is_full_attention():
    model = shared_slot_model(slots=500)
    ids = random_ids(LENGTH, batch=2)
    with ahn.disabled(model):
        expected = one_shot(model, ids)
    assert_close(one_shot(model, ids), expected, 1e-12)
    assert_close(read(model, ids, [30, *[1] * 30, 30]), expected, 1e-12)


@torch.no_grad()
def test_fresh_slots_are_a_longer_window():
    config = {"window": WINDOW, "num_sinks": 4}
    fresh = ahn.attach(
        base_model("Qwen3", torch.float64), ahn.AHNConfig(None, slots=SLOTS, **config)
    )
    longer = new_model("Qwen3", "DeltaNet", dtype=torch.float64, window=WINDOW + SLOTS)
    ids = random_ids(LENGTH)
    with ahn.memory_off(longer):
        assert_close(one_shot(fresh, ids), one_shot(longer, ids), 1e-12)


@over_settings
@torch.no_grad()
def test_up_to_the_smallest_budget_the_model_is_its_base(settings):
    model = slot_model(dtype=torch.float32, **settings)
    budget = ahn.AHNConfig.from_dict(model.config.ahn_config).budget
    ids, base = random_ids(budget + 1, batch=2), base_model("Qwen3")
    assert torch.equal(model(ids[:, :-1]).logits, base(ids[:, :-1]).logits)
    assert torch.equal(one_shot(model, ids[:, :-1]), base(ids[:, :-1]).logits)


@torch.no_grad()
def test_what_is_looked_up_are_the_values():
    """Values of the slots exchanged: beyond the budget everything changes."""
    model = shared_slot_model()
    more = random_ids(20, seed=2)
    _, cache = prefill(model, random_ids(70))
    exchanged = cache.fork()
    for layer in exchanged.layers:
        layer.states["slot_values"] = layer.states["slot_values"].roll(1, 1)
    expected = prefill(model, more, cache)[0]
    assert (prefill(model, more, exchanged)[0] - expected).abs().max() > 1e-3
    with ahn.memory_off(model):
        off = one_shot(model, random_ids(LENGTH))
    assert (
        (one_shot(model, random_ids(LENGTH)) - off)[:, WINDOW + 4 :].abs().amax(-1) > 1e-4
    ).all()


@torch.no_grad()
def test_a_cell_beside_them_is_written_all_that_leaves():
    """In a model of one layer: its input, so what is written, is that of the cell alone."""
    states = []
    for slots in (0, SLOTS):
        base = base_model("Qwen3", torch.float64, num_hidden_layers=1)
        settings = {"window": WINDOW, "num_sinks": 4, "slots": slots}
        model = ahn.attach(base, ahn.AHNConfig("GatedDeltaNet", **settings))
        torch.manual_seed(3)
        for parameter in model.model.layers[0].ahn.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        _, cache = prefill(model, random_ids(LENGTH), prefill_chunk_size=33)
        states.append(cache.layers[0].states["recurrent_state"])
    assert states[0].abs().max() > 1e-3
    assert torch.equal(*states)


@torch.no_grad()
def test_steps_are_taken_back_until_a_token_is_evicted():
    model = shared_slot_model(window_shares=(0.25, 0.75))
    budget = ahn.AHNConfig.from_dict(model.config.ahn_config).budget
    cache, ids = ahn.AHNCache(model.config), random_ids(60)
    read(model, ids[:, :budget], [budget], cache)
    cache.crop(-2)
    assert_close(
        read(model, ids[:, budget - 2 :], [62 - budget], cache),
        one_shot(model, ids)[:, budget - 2 :],
        1e-12,
    )
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-1)


def test_a_memory_with_rows_of_its_own_is_refused():
    import newest_rows  # noqa: F401

    config = ahn.AHNConfig("NewestRows", window=WINDOW, num_sinks=4, slots=SLOTS)
    model = ahn.attach(base_model("Qwen3"), config)
    with pytest.raises(ValueError, match="slots: expected a memory without exact rows"):
        model(random_ids(LENGTH))


@pytest.mark.parametrize("beyond", ["clamp", "drop"])
@torch.no_grad()
def test_distance_changes_what_is_far_and_nothing_else(beyond):
    ids, most = random_ids(LENGTH), 40
    absolute = one_shot(shared_slot_model(), ids)
    got = one_shot(shared_slot_model(slot_distance=most, slot_beyond=beyond), ids)
    assert_close(got[:, :most], absolute[:, :most], 1e-12)
    assert (got - absolute)[:, most:].abs().amax() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 3, 5, 7, 11, 12)], ids=str)
@torch.no_grad()
def test_a_step_whose_position_only_the_device_knows_is_the_same(settings):
    """As a captured graph runs it: all tensors keep their addresses."""
    model = shared_slot_model(**settings)
    _, cache = prefill(model, random_ids(50))
    placed, ids = cache.fork(), random_ids(40, seed=6)
    step = {"use_cache": True, CACHE: placed}
    model(ids[:, :1], ahn_position=torch.tensor([50]), **step)
    placed.advance()
    prefill(model, ids[:, :1], cache)
    addresses = [x.data_ptr() for layer in placed.layers for x in layer.tensors().values()]
    for i in range(1, 40):
        got = model(ids[:, i : i + 1], ahn_position=torch.tensor([50 + i]), **step).logits[:, -1]
        placed.advance()
        assert_close(got, prefill(model, ids[:, i : i + 1], cache)[0], 1e-12)
    now = [x.data_ptr() for layer in placed.layers for x in layer.tensors().values()]
    assert addresses == now


def test_gradients_are_those_of_the_mask():
    """Through the base, as a student's is; the choice itself has none."""
    model = slot_model()
    definition = Definition(model)
    gradients = []
    for run in (model, definition.base):
        embedded = run.get_input_embeddings()(random_ids(60)).detach().requires_grad_()
        logits = run(inputs_embeds=embedded, use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[:, -20:].square().sum(), embedded)
        gradients.append(gradient)
    assert_close(*gradients, 1e-11)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_the_base_keeps_its_own_backend(backend):
    model = slot_model(dtype=torch.float32)
    model.set_attn_implementation(backend)
    base = base_model("Qwen3")
    base.set_attn_implementation(backend)
    ids = random_ids(WINDOW + 4)
    assert torch.equal(model(ids).logits, base(ids).logits)
    expected = one_shot(shared_slot_model(), random_ids(LENGTH))
    assert_close(one_shot(model, random_ids(LENGTH)).double(), expected, 1e-4)


@torch.no_grad()
def test_what_is_offloaded_comes_back():
    model = shared_slot_model(slot_bits=8)
    _, cache = prefill(model, random_ids(60))
    fork, more = cache.fork(), random_ids(20, seed=2)
    for layer in fork.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(prefill(model, more, cache)[0], prefill(model, more, fork)[0])


@torch.no_grad()
def test_weights_may_be_offloaded():
    accelerate = pytest.importorskip("accelerate")
    model = slot_model(dtype=torch.float32)
    expected = one_shot(model, random_ids(60))
    placed = accelerate.cpu_offload(model, execution_device="cpu")
    assert placed.model.layers[0].ahn_slots.rate.is_meta
    assert_close(one_shot(placed, random_ids(60)), expected, 1e-6)
