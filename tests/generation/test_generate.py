"""`generate` on an attached model: every way of decoding gives what the plain loop gives."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

import ahn
from ahn.hf.cache_argument import CACHE
from ahn.modeling import generating
from ahn.runtime.decode_step import DecodeStep
from tiny_models import (
    assert_close,
    base_model,
    left_padded,
    new_model,
    one_shot,
    over_matrix,
    over_trios,
    random_ids,
    shared_base,
    shared_model,
)

GREEDY = {"max_new_tokens": 30, "do_sample": False}
SAMPLED = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.3}


def greedy_loop(model, ids, steps=30):
    """Without a cache, without `generate`."""
    for _ in range(steps):
        ids = torch.cat([ids, one_shot(model, ids)[:, -1:].argmax(-1)], 1)
    return ids


@over_matrix
@torch.no_grad()
def test_greedy_is_the_plain_loop(family, cell):
    """From within the budget to beyond it."""
    model, ids = shared_model(family, cell, dtype=torch.float64), random_ids(14, batch=2)
    expected = greedy_loop(model, ids)
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    base = shared_base(family, torch.float64)
    assert not torch.equal(base.generate(ids, **GREEDY), expected)


@pytest.mark.slow
@over_trios
@torch.no_grad()
def test_every_greedy_option_gives_the_same_text(family, cell):
    model, ids = shared_model(family, cell, dtype=torch.float64), random_ids(80, batch=2)
    greedy = {**GREEDY, "max_new_tokens": 20}
    expected = model.generate(ids, **greedy)
    for option in (
        {CACHE: ahn.AHNCache(model.config)},
        {"prefill_chunk_size": 13},
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"attention_mask": torch.ones_like(ids)},
    ):
        assert torch.equal(model.generate(ids, **greedy, **option), expected), option


@torch.no_grad()
def test_the_cache_comes_back_with_the_answer():
    model, ids = shared_model(), random_ids(80)
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **GREEDY)
    assert isinstance(out[CACHE], ahn.AHNCache)
    assert out[CACHE].get_seq_length() == 80 + 29
    assert len(out.logits) == 30


@over_trios
@torch.no_grad()
def test_a_chat_goes_on_with_the_cache_that_came_back(family, cell):
    model = shared_model(family, cell, dtype=torch.float64)
    first = model.generate(random_ids(40), return_dict_in_generate=True, **GREEDY)
    text = torch.cat([first.sequences, random_ids(33, seed=5)], 1)
    options = {"attention_mask": torch.ones_like(text), **GREEDY}
    expected = model.generate(text, **options)
    again = model.generate(text, **{CACHE: first[CACHE]}, **options)
    assert torch.equal(again, expected)
    assert first[CACHE].get_seq_length() == text.shape[1] + 29


@over_trios
@torch.no_grad()
def test_beams_are_those_without_a_cache(family, cell):
    model, ids = shared_model(family, cell, dtype=torch.float64), random_ids(40, batch=2)
    options = {"max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(ids, use_cache=False, do_sample=False, **options)
    assert torch.equal(model.generate(ids, do_sample=False, **options), expected)
    assert expected.shape == (4, 52)


@torch.no_grad()
def test_sampling_is_reproducible_and_rows_are_independent():
    model, ids = shared_model(dtype=torch.float64), random_ids(40)
    options = {**SAMPLED, "num_return_sequences": 3}
    runs = []
    for extra in ({}, {}, {"use_cache": False}):
        torch.manual_seed(3)
        runs.append(model.generate(ids, **options, **extra))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert len({tuple(row) for row in runs[0].tolist()}) == 3


class Collector(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.reshape(-1))

    def end(self):
        self.ended = True


@torch.no_grad()
def test_a_streamer_is_given_every_token():
    model, ids, streamer = shared_model(), random_ids(40), Collector()
    expected = model.generate(ids, streamer=streamer, **GREEDY)
    assert torch.equal(torch.cat(streamer.pieces), expected[0])
    assert streamer.ended


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"cache_implementation": "static"}, "cache_implementation: expected .* got 'static'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation: .* got 'offloaded'"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: expected none"),
        ({"assistant_early_exit": 1}, "assistant_early_exit: expected none"),
        ({CACHE: DynamicCache()}, f"{CACHE}: expected an AHNCache"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_done_is_refused_by_name(option, named):
    with pytest.raises(ValueError, match=named):
        shared_model().generate(random_ids(30), **option, **GREEDY)


@torch.no_grad()
def test_a_prompt_that_the_cache_has_read_whole_is_refused():
    model, ids = shared_model(), random_ids(60)
    for length in (60, 59, 30):
        _, cache = ahn.generation.prefill(model, ids)
        with pytest.raises(ValueError, match=f"less than the prompt of {length} .* has read 60"):
            model.generate(ids[:, :length], **{CACHE: cache}, **GREEDY)


@pytest.mark.parametrize("first", [5, 60])
@torch.no_grad()
def test_a_cache_filled_in_inference_mode_goes_on_outside_of_it(first):
    """And one that was begun outside goes on within."""
    model, ids = shared_model(), random_ids(70)
    expected = model.generate(ids, **GREEDY)
    cache = ahn.AHNCache(model.config)
    with torch.inference_mode():
        model(ids[:, :first], **{CACHE: cache})
    assert torch.equal(model.generate(ids, **{CACHE: cache}, **GREEDY), expected)
    _, cache = ahn.generation.prefill(model, ids[:, :first])
    with torch.inference_mode():
        assert torch.equal(model.generate(ids, **{CACHE: cache}, **GREEDY), expected)
    _, cache = ahn.generation.prefill(model, ids[:, :first])
    with torch.inference_mode():
        logits, cache = ahn.generation.prefill(model, ids[:, first:], cache)
    step = DecodeStep(model, cache)
    assert_close(step(logits.argmax(-1)), one_shot(model, expected[:, :71])[:, -1], 1e-5)


@torch.no_grad()
def test_hidden_states_of_a_long_prompt_are_those_of_all_its_tokens(monkeypatch):
    monkeypatch.setattr(generating, "default_prefill_chunk_size", lambda model, batch: 13)
    model, ids = shared_model(), random_ids(60)
    asked = {"output_hidden_states": True, "return_dict_in_generate": True, "max_new_tokens": 2}
    first, second = model.generate(ids, do_sample=False, **asked).hidden_states
    expected = model(ids, output_hidden_states=True).hidden_states
    assert len(first) == len(second) == len(expected) == 3
    for given, state in zip(first, expected):
        assert_close(given, state, 1e-5)
    with pytest.raises(ValueError, match="prefill_chunk_size: expected none with output_hidden_st"):
        model.generate(ids, prefill_chunk_size=7, **asked)


@torch.no_grad()
def test_attention_weights_are_the_base_s_or_refused_by_name():
    model, base, ids = new_model(), base_model(), random_ids(18)
    asked = {"output_attentions": True}
    with pytest.warns(UserWarning, match="output_attentions: 'sdpa' gives no attention weights"):
        assert not model(ids, **asked).attentions
    with pytest.raises(ValueError, match="output_attentions: expected attn_implementation 'eager'"):
        model.config.output_attentions = True
    assert not model.config.output_attentions
    for each in (model, base):
        each.set_attn_implementation("eager")
    expected = base(ids, **asked).attentions
    generate = {**asked, "return_dict_in_generate": True, "max_new_tokens": 3, "do_sample": False}
    answers = [each.generate(ids, **generate).attentions for each in (model, base)]
    with ahn.disabled(model):
        answers += [model.generate(ids, **generate).attentions]
        whole = model(random_ids(60), **asked).attentions
    assert whole[0].shape == (1, 4, 60, 60)
    model.config.output_attentions = True
    by_config = model(ids).attentions
    model.config.output_attentions = False
    for given in (model(ids, **asked).attentions, by_config, answers[0][0], answers[2][0]):
        assert len(given) == 2 and all(map(torch.equal, given, expected))
    for given, other, third in zip(*answers):
        assert [x.shape for x in given] == [x.shape for x in other] == [x.shape for x in third]
        for left, right in zip(given, other):
            assert_close(left, right, 1e-5)
    with pytest.raises(ValueError, match=r"at most 20 tokens \(window and sinks\), got 21"):
        model.generate(ids, **{**generate, "max_new_tokens": 9})
    _, padded, mask = left_padded((9, 6))
    assert model(padded, attention_mask=mask, **asked).attentions[0].shape == (2, 4, 9, 9)
    with pytest.raises(ValueError, match="output_attentions: expected rows without padding after"):
        model.generate(padded, attention_mask=mask, **generate)
    packed = torch.tensor([[*range(9), *range(9)]])
    with pytest.raises(ValueError, match="output_attentions: expected one document in each row"):
        model(ids, position_ids=packed, **asked)


@torch.no_grad()
def test_an_assistant_model_is_refused_by_name():
    with pytest.raises(ValueError, match="assistant"):
        shared_model().generate(random_ids(30), assistant_model=shared_base(), **GREEDY)


@torch.no_grad()
def test_a_model_with_a_memory_is_no_assistant():
    with pytest.raises(ValueError, match="is_assistant: expected none"):
        shared_base().generate(random_ids(30), assistant_model=new_model(), **GREEDY)


@torch.no_grad()
def test_refusals_end_with_the_memory():
    """Switched off, the model is its base, and what the base can do works again."""
    model, ids = shared_model(), random_ids(30)
    with ahn.disabled(model):
        end = {"eos_token_id": 1}  # without any, early versions of transformers 5 fail here
        out = model.generate(ids, prompt_lookup_num_tokens=3, **end, **GREEDY)
        assert torch.equal(out, shared_base().generate(ids, **end, **GREEDY))
        with pytest.raises(TypeError, match="got an AHNCache"):
            model.generate(ids, **{CACHE: ahn.AHNCache(model.config)}, **GREEDY)


@torch.no_grad()
def test_memory_off_generates_from_the_window_alone():
    model, ids = shared_model(dtype=torch.float64), random_ids(80)
    with ahn.memory_off(model):
        assert torch.equal(model.generate(ids, **GREEDY), greedy_loop(model, ids))
        out = model.generate(ids, return_dict_in_generate=True, **GREEDY)
        assert not out[CACHE].memory_layers[0].states


@torch.no_grad()
def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="expected at least one token, got an empty prompt"):
        shared_model().generate(random_ids(0), **GREEDY)


@pytest.mark.slow
@over_trios
@torch.no_grad()
def test_a_long_prompt_is_read_in_chunks(family, cell, monkeypatch):
    """Padded rows, beams and sampling too; one that goes on with a cache is read whole."""
    model = shared_model(family, cell, dtype=torch.float64)
    _, ids, mask = left_padded((80, 61, 5))
    sampled = {**SAMPLED, "max_new_tokens": 20}
    options = [{**GREEDY, "num_beams": 3}, GREEDY, sampled]
    expected = [_generated(model, ids, mask, option) for option in options]
    monkeypatch.setattr(generating, "default_prefill_chunk_size", lambda model, batch: 13)
    lengths = []
    note = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for option, text in zip(options, expected):
        assert torch.equal(_generated(model, ids, mask, option), text), option
    model.generate(ids[:1], **GREEDY)
    assert max(lengths) == 13
    _, cache = ahn.generation.prefill(model, ids[:1, :30])
    model.generate(ids[:1], **{CACHE: cache}, **GREEDY)
    note.remove()
    assert max(lengths) == 50


def _generated(model, ids, mask, option):
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, **option)
