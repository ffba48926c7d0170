"""Law: a forward of which the cache alone is wanted leaves the same cache, bit by bit."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import ahn
from ahn.hf.cache_argument import CACHE
from ahn.runtime.fill_cache import fill_cache
from tiny_models import base_model, left_padded, new_model, over_matrix, positions_of, random_ids

LENGTH, CHUNK = 90, 20  # within the budget of 20, across it, beyond it


def whole(model, **inputs):
    model.get_decoder()(**inputs, use_cache=True)


@torch.no_grad()
def cache_after(model, reader, ids, mask=None, cache=None):
    cache = ahn.AHNCache(model.config) if cache is None else cache
    for first in range(0, ids.shape[1], CHUNK):
        options = {}
        last = min(first + CHUNK, ids.shape[1])
        if mask is not None:
            options["attention_mask"] = mask[:, :last]
            options["position_ids"] = positions_of(mask)[:, first:last]
        reader(model, input_ids=ids[:, first:last], **{CACHE: cache}, **options)
    return cache


def assert_same(cache, expected):
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        one, two = tensors_of(layer), tensors_of(other)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), name
    assert cache.get_seq_length() == expected.get_seq_length()


def tensors_of(layer):
    if hasattr(layer, "tensors"):
        return layer.tensors()
    return {"keys": layer.keys, "values": layer.values}


def count_calls(monkeypatch, module):
    """Its forward's calls, in a way that is no hook."""
    calls, forward = [], module.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", counted)
    return calls


@pytest.mark.slow
@over_matrix
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_kept_is_the_same_and_the_rest_is_not_computed(family, cell, padded, monkeypatch):
    model = new_model(family, cell)
    ids, mask = random_ids(LENGTH, batch=2), None
    if padded:
        _, ids, mask = left_padded((LENGTH, 50, 3))
    expected = cache_after(model, whole, ids, mask)
    first, last = model.model.layers[0], model.model.layers[-1]
    parts = (first.mlp, last.self_attn, last.self_attn.o_proj, last.mlp, model.model.norm)
    calls = [count_calls(monkeypatch, part) for part in parts]
    assert_same(cache_after(model, fill_cache, ids, mask), expected)
    assert [len(found) for found in calls] == [5, 5, 0, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"full_attention_layers": (1,)}, {"use_q_proj": True}, {"use_router": True}]
)
def test_it_is_the_same_with_every_setting(settings):
    model, ids = new_model("Qwen3", **settings), random_ids(LENGTH, batch=2)
    assert_same(cache_after(model, fill_cache, ids), cache_after(model, whole, ids))


def test_it_is_the_same_without_the_memory_and_with_full_attention(monkeypatch):
    model, ids = new_model(), random_ids(LENGTH)
    calls = count_calls(monkeypatch, model.model.layers[-1].mlp)
    with ahn.memory_off(model):
        cache = cache_after(model, fill_cache, ids)
        assert not calls
        assert_same(cache, cache_after(model, whole, ids))
    with ahn.disabled(model):
        calls.clear()
        cache = cache_after(model, fill_cache, ids, cache=DynamicCache())
        assert not calls
        assert_same(cache, cache_after(model, whole, ids, cache=DynamicCache()))
    plain = base_model()
    expected = cache_after(plain, whole, ids, cache=DynamicCache())
    assert_same(cache_after(plain, fill_cache, ids, cache=DynamicCache()), expected)


WATCHED = [
    "",
    "norm",
    "layers.1",
    "layers.1.self_attn",
    "layers.1.self_attn.o_proj",
    "layers.1.mlp",
]


@pytest.mark.parametrize("name", [*WATCHED, "layers.1.ahn.fn", "layers.1.mlp.down_proj"])
@pytest.mark.parametrize("before", [False, True])
def test_who_watches_a_module_sees_every_forward(name, before):
    model, ids, seen = new_model(), random_ids(LENGTH), []
    module = model.get_decoder().get_submodule(name)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(lambda *_: seen.append(1))
    cache = cache_after(model, fill_cache, ids)
    assert len(seen) == 5
    handle.remove()
    assert_same(cache, cache_after(model, fill_cache, ids))
    assert len(seen) == 5


def test_with_gradients_the_forward_runs_to_its_end(monkeypatch):
    model = new_model()
    calls = count_calls(monkeypatch, model.model.layers[-1].mlp)
    fill_cache(model, input_ids=random_ids(30), **{CACHE: ahn.AHNCache(model.config)})
    assert len(calls) == 1


@torch.no_grad()
def test_generate_reads_all_chunks_but_the_last_for_the_cache(monkeypatch):
    model, ids = new_model("Qwen3", "Mamba2"), random_ids(LENGTH, batch=2)
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, **options)
    calls = [count_calls(monkeypatch, x) for x in (model.model.embed_tokens, model.model.norm)]
    options["prefill_chunk_size"] = CHUNK
    assert torch.equal(model.generate(ids, **options), expected)
    assert [len(found) for found in calls] == [5 + 3, 1 + 3]
    assert torch.equal(model.generate(ids, **options, disable_compile=True), expected)
    assert [len(found) for found in calls] == [2 * (5 + 3), 1 + 3 + 5 + 3]
