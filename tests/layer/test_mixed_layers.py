"""The laws where a memory is on full-attention layers alone, and the others stay as they are."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import load_session, prefill, save_session, stream
from ahn.hf.cache_argument import CACHE
from ahn.hf.decoder_hook import CHUNKS_OF_DOCUMENTS
from ahn.modeling import compressive
from ahn.shapes import FULL, SLIDING, layer_types, memory_layers
from ahn.training import Distiller
from ahn.training.two_streams import two_streams
from tiny_models import (
    MIXED_PAIRS,
    OWN_WINDOW,
    RECURRENT,
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    needs_recurrent,
    new_model,
    one_shot,
    over_mixed,
    pieces,
    positions_of,
    random_ids,
    read,
    shared_base,
    shared_model,
)

LENGTH, BUDGET, ROUNDING = 100, WINDOW + 4, 1e-5
# One for each kind of layer that stays: sliding, chunked, two recurrences.
KINDS = [x for x in MIXED_PAIRS if x[0] in {"Gemma3", "Llama4", "Qwen3Next", "GraniteMoeHybrid"}]
over_kinds = pytest.mark.parametrize(("family", "cell"), KINDS)


@over_mixed
@torch.no_grad()
def test_only_layers_with_full_attention_get_a_memory(family, cell):
    model = shared_model(family, cell)
    types = layer_types(model.config)
    expected = [SLIDING] if family == "Phi3" else [FULL]
    for layer, layer_type in zip(model.get_decoder().layers, types):
        assert hasattr(layer, "ahn") == (layer_type in expected)
    cache = ahn.AHNCache(model.config)
    assert len(cache.memory_layers) == len(memory_layers(model.config, ahn.AHNConfig()))


@over_mixed
@torch.no_grad()
def test_up_to_the_budget_the_model_is_its_base(family, cell):
    """The budget is larger than the window of the layers that slide by themselves."""
    base, model = shared_base(family), shared_model(family, cell)
    ids = random_ids(BUDGET, batch=2)
    assert BUDGET > OWN_WINDOW
    assert torch.equal(model(ids).logits, base(ids).logits)
    chunks = [7, 12, 1]
    assert torch.equal(read(model, ids, chunks), _base_in_chunks(base, ids, chunks))
    with ahn.disabled(model):
        assert torch.equal(model(random_ids(60)).logits, base(random_ids(60)).logits)


def _base_in_chunks(base, ids, chunks):
    cache, outputs = None, []
    for part in ids.split(chunks, dim=1):
        output = base(part, **{CACHE: cache}, use_cache=True)
        cache = output[CACHE]
        outputs.append(output.logits)
    return torch.cat(outputs, 1)


@over_mixed
@torch.no_grad()
def test_chunks_and_tokens_equal_one_shot_and_the_memory_acts(family, cell):
    model, ids = shared_model(family, cell), random_ids(LENGTH)
    expected = one_shot(model, ids)
    for chunks in ([15, *[1] * 45, LENGTH - 60], pieces(LENGTH, 7)):
        assert_close(read(model, ids, chunks), expected, ROUNDING, f"{chunks}")
    with ahn.memory_off(model):
        window_alone = one_shot(model, ids)
    assert torch.equal(window_alone[:, :BUDGET], expected[:, :BUDGET])
    assert ((window_alone - expected)[:, BUDGET:].abs().amax(-1) > 1e-4).all()


@over_mixed
@torch.no_grad()
def test_padded_rows_equal_themselves_alone(family, cell):
    model, (rows, ids, mask) = shared_model(family, cell), left_padded((50, 41, 3))
    for chunks in ([50], [*[1] * 9, 39, 1, 1]):
        logits = read(model, ids, chunks, mask=mask)
        for row, alone in zip(logits, rows):
            length = alone.shape[1]
            assert_close(row[-length:], one_shot(model, alone)[0], ROUNDING, f"{chunks}")


@pytest.mark.slow
@over_mixed
@torch.no_grad()
def test_generate_is_the_plain_loop(family, cell):
    model, (rows, ids, mask) = shared_model(family, cell), left_padded((30, 12))
    options = {"max_new_tokens": 14, "do_sample": False}
    answers = model.generate(ids, attention_mask=mask, **options)[:, 30:]
    for answer, text in zip(answers, rows):
        for token in answer:
            assert token == one_shot(model, text)[0, -1].argmax()
            text = torch.cat([text, token[None, None]], 1)
    tokens = stream(model, ids, attention_mask=mask, max_new_tokens=14, prefill_chunk_size=9)
    assert torch.equal(torch.stack(list(tokens), 1), answers)


@over_kinds
@torch.no_grad()
def test_beams_are_those_without_a_cache(family, cell):
    model, ids = shared_model(family, cell), random_ids(30, batch=2)
    options = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    expected = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), expected)


@over_kinds
@torch.no_grad()
def test_bytes_do_not_grow(family, cell):
    model = shared_model(family, cell)
    _, cache = prefill(model, random_ids(2 * LENGTH))
    before = cache.nbytes
    prefill(model, random_ids(LENGTH), cache)
    assert cache.nbytes == before
    others = [layer for layer in cache.layers if layer not in cache.memory_layers]
    assert before > sum(layer.nbytes for layer in cache.memory_layers)
    assert len(others) == 1


@over_kinds
@torch.no_grad()
def test_rows_are_reordered_repeated_and_chosen(family, cell):
    model, (rows, ids, mask) = shared_model(family, cell), left_padded((50, 41, 3))
    for change, order in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
    ):
        _, cache = prefill(model, ids, attention_mask=mask)
        change(cache)
        _check_read_on(model, cache, [rows[source] for source in order])


@over_kinds
@torch.no_grad()
def test_texts_read_apart_are_joined(family, cell):
    model, rows = shared_model(family, cell), [random_ids(n, seed=n) for n in (70, 5, BUDGET)]
    caches = [prefill(model, row)[1] for row in rows]
    before = [cache.nbytes for cache in caches]
    _check_read_on(model, ahn.AHNCache.join(caches), rows)
    assert [cache.nbytes for cache in caches] == before
    for cache, row in zip(caches, rows):  # they were copied
        _check_read_on(model, cache, [row])


@torch.no_grad()
def test_texts_with_layers_of_full_attention_are_joined():
    model = shared_model(full_attention_layers=(0,))
    rows = [random_ids(n, seed=n) for n in (70, 5, BUDGET)]
    _check_read_on(model, ahn.AHNCache.join([prefill(model, row)[1] for row in rows]), rows)


def _check_read_on(model, cache, texts, length=12):
    """Reading on with a cache, by single tokens and a chunk, is reading each text alone."""
    more = random_ids(length, seed=3).expand(len(texts), -1)
    logits = [prefill(model, part, cache)[0] for part in more.split([1] * 8 + [length - 8], dim=1)]
    for row, text in enumerate(texts):
        alone = one_shot(model, torch.cat([text, more[:1]], 1))[0, -length:]
        expected = torch.cat([alone[:8], alone[-1:]])
        assert_close(torch.stack(logits, 1)[row], expected, ROUNDING, f"row {row}")


@over_kinds
@torch.no_grad()
def test_sessions_and_forks_go_on(family, cell, tmp_path):
    model, (_, ids, mask) = shared_model(family, cell), left_padded((50, 21))
    _, cache = prefill(model, ids, attention_mask=mask)
    save_session(cache, tmp_path / "session")
    resumed, fork, more = load_session(tmp_path / "session", model), cache.fork(), random_ids(9)
    more = more.expand(2, -1)
    expected = prefill(model, more, cache, prefill_chunk_size=4)[0]
    assert resumed.nbytes == fork.nbytes
    for other in (resumed, fork):
        assert torch.equal(prefill(model, more, other, prefill_chunk_size=4)[0], expected)


@needs_recurrent
@torch.no_grad()
def test_a_session_of_other_layers_is_refused(tmp_path):
    _, cache = prefill(shared_model("Gemma3"), random_ids(30))
    save_session(cache, tmp_path / "session")
    with pytest.raises(ValueError, match="expected a session of this model"):
        load_session(tmp_path / "session", shared_model("Qwen3Next"))


@over_kinds
@torch.no_grad()
def test_reset_forgets_everything(family, cell):
    model, (_, ids, mask) = shared_model(family, cell), left_padded((50, 20))
    cache = ahn.AHNCache(model.config)
    read(model, ids, [50], cache, mask)
    cache.reset()
    other = random_ids(40, batch=2)
    assert torch.equal(read(model, other, [30, 10], cache), read(model, other, [30, 10]))


@over_kinds
@torch.no_grad()
def test_steps_are_taken_back_or_it_is_refused(family, cell):
    model, ids = shared_model(family, cell), random_ids(BUDGET)
    _, cache = prefill(model, ids[:, : OWN_WINDOW - 1])
    if family in RECURRENT:
        with pytest.raises(ValueError, match="crop: expected no recurrent layers"):
            cache.crop(-2)
    else:
        cache.crop(-2)
    seen = cache.get_seq_length()
    assert_close(prefill(model, ids[:, seen:], cache)[0], one_shot(model, ids)[:, -1], ROUNDING)
    if family not in RECURRENT:
        with pytest.raises(ValueError, match=f"crop: expected fewer .* own window of {OWN_WINDOW}"):
            cache.crop(-1)


@over_kinds
@torch.no_grad()
def test_packed_documents_equal_themselves_or_are_refused(family, cell):
    model, lengths = shared_model(family, cell), (60, 35, 3, 12)
    joins = family in RECURRENT or (family == "Llama4" and not CHUNKS_OF_DOCUMENTS)
    documents = [random_ids(n, seed=n) for n in lengths]
    ids, positions = torch.cat(documents, 1), torch.cat([torch.arange(n) for n in lengths])[None]
    if joins:
        with pytest.raises(ValueError, match="position_ids: expected one document in each row"):
            one_shot(model, ids, position_ids=positions)
        return
    expected = torch.cat([one_shot(model, document) for document in documents], 1)
    assert_close(one_shot(model, ids, position_ids=positions), expected, ROUNDING)


@over_mixed
def test_two_streams_are_two_forwards(family, cell):
    model = Distiller(new_model(family, cell)).model
    ids = random_ids(60, batch=2)
    inputs = {"input_ids": ids, "position_ids": positions_of(torch.ones_like(ids))}
    student, teacher, _ = two_streams(model, inputs, window=12, num_sinks=5)
    decoder = model.get_decoder()
    own = {**inputs, "use_cache": False}
    expected = decoder(**own, ahn_window=12, ahn_sinks=5).last_hidden_state
    assert_close(student, expected, ROUNDING)
    assert_close(teacher, decoder(**own, ahn_mode="full").last_hidden_state, ROUNDING)
    assert (student - teacher).abs().max() > 1e-3
    student.sin().sum().backward()
    trained = [x for x in model.parameters() if x.requires_grad]
    assert all(x.grad is not None for x in trained)


@over_kinds
@torch.no_grad()
def test_saved_loaded_and_detached(family, cell, tmp_path):
    model, ids = new_model(family, cell), random_ids(40)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert type(ahn.detach(model)) is type(base_model(family))
    assert torch.equal(model(ids).logits, shared_base(family)(ids).logits)


def test_a_budget_beyond_the_window_that_the_memory_replaces_is_refused():
    """The base itself would not look back that far."""
    settings = ahn.AHNConfig(window=21, num_sinks=4)
    with pytest.raises(ahn.UnsupportedModel, match="at most the model's own sliding_window=24"):
        ahn.attach(base_model("Phi3"), settings)
    ahn.attach(base_model("Phi3"), ahn.AHNConfig(window=20, num_sinks=4))


def test_layers_without_full_attention_cannot_be_left_with_it():
    settings = ahn.AHNConfig(full_attention_layers=(1,))
    with pytest.raises(ahn.UnsupportedModel, match=r"that have full attention, got .1: 'sliding"):
        ahn.attach(base_model("Gemma3"), settings)


@needs_recurrent
def test_a_query_map_is_refused_where_a_gate_comes_with_the_query():
    with pytest.raises(ahn.UnsupportedModel, match="a q_proj of queries alone for use_q_proj"):
        ahn.attach(base_model("Qwen3Next"), ahn.AHNConfig(use_q_proj=True))


def test_pooling_is_refused_with_sink_logits():
    model = shared_model("GptOss", next(cell for family, cell in MIXED_PAIRS if family == "GptOss"))
    with compressive(model, "max"), pytest.raises(ValueError, match="expected no sink logits"):
        one_shot(model, random_ids(60))
