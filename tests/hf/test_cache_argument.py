"""A cache travels as `cache` from transformers 5.24 on and as `past_key_values` before."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import DynamicCache

import ahn
from ahn.generation import stream
from ahn.hf.cache_argument import CACHE, IS_RENAMED, NEW_NAME, OLD_NAME, drops_cache
from ahn.runtime.fill_cache import fill_cache
from tiny_models import assert_close, new_model, one_shot, random_ids, shared_base, shared_model

NAMES = [OLD_NAME, NEW_NAME]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}

# The old name is used here on purpose; `test_our_own_calls_use_the_current_name` turns this off.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
over_names = pytest.mark.parametrize("name", NAMES)


@over_names
@pytest.mark.parametrize("part", ["model", "decoder"])
@torch.no_grad()
def test_a_forward_fills_the_cache_given_under_either_name(name, part):
    model, ids = shared_model(), random_ids(60)
    called = model if part == "model" else model.get_decoder()
    cache = ahn.AHNCache(model.config)
    for first, last in ((0, 35), (35, 59), (59, 60)):
        output = called(ids[:, first:last], **{name: cache})
        assert output[CACHE] is cache
    assert cache.get_seq_length() == 60
    result = output[0][:, -1]
    expected = one_shot(model, ids)[:, -1]
    assert_close(result if part == "model" else model.lm_head(result), expected, 1e-5)


@torch.no_grad()
def test_a_forward_makes_a_bounded_cache_of_its_own():
    output = shared_model()(random_ids(30))
    assert isinstance(output[CACHE], ahn.AHNCache)
    assert output[CACHE].get_seq_length() == 30


@over_names
@torch.no_grad()
def test_generate_fills_the_cache_given_under_either_name(name):
    model, ids = shared_model(), random_ids(40)
    cache = ahn.AHNCache(model.config)
    output = model.generate(ids, **{name: cache}, **GREEDY)
    assert output[CACHE] is cache
    assert torch.equal(output.sequences, model.generate(ids, **GREEDY).sequences)


@over_names
@torch.no_grad()
def test_another_cache_is_refused_by_the_name_it_was_given_under(name):
    model, ids = shared_model(), random_ids(30)
    other = {name: DynamicCache(config=shared_base().config)}
    message = f"^{name}: expected an AHNCache, got DynamicCache"
    for called in (model, model.get_decoder()):
        with pytest.raises(TypeError, match=message):
            called(ids, **other)
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **other, **GREEDY)
    bounded = {name: ahn.AHNCache(model.config)}
    message = f"^{name}: expected a cache of full attention, got an AHNCache"
    with ahn.disabled(model), pytest.raises(TypeError, match=message):
        model(ids, **bounded)


@torch.no_grad()
def test_two_caches_are_refused():
    model, ids = shared_model(), random_ids(30)
    both = {name: ahn.AHNCache(model.config) for name in (OLD_NAME, NEW_NAME)}
    for called in (model, model.get_decoder(), model.generate):
        with pytest.raises(TypeError, match="past_key_values: expected one cache, got cache as"):
            called(ids, **both)


@torch.no_grad()
def test_our_own_calls_use_the_current_name():
    model, ids = new_model(), random_ids(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        _, cache = ahn.generation.prefill(model, ids, prefill_chunk_size=16)
        fill_cache(model, input_ids=ids, **{CACHE: cache})
        list(stream(model, ids, max_new_tokens=4))
        model.generate(ids, prefill_chunk_size=16, **GREEDY)
        with ahn.disabled(model):
            model.generate(ids, **GREEDY)


@pytest.mark.parametrize("grad", [True, False])
def test_gradient_checkpointing_drops_the_cache_as_in_the_base(grad):
    """A decoder that is given no cache, and does not drop it, would make one that grows."""
    model = new_model().train()
    model.gradient_checkpointing_enable()
    with torch.set_grad_enabled(grad):
        cache = model(random_ids(30)).get(CACHE)
        dropped = drops_cache(model.get_decoder())
    assert dropped == (grad or not IS_RENAMED)
    assert cache is None if dropped else isinstance(cache, ahn.AHNCache)
