"""Models that see images: the text model takes the memory, and tokens of images are tokens."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import ahn
from ahn.checkpoint import merge, split
from ahn.generation import load_session, prefill, save_session, stream
from ahn.hf.cache_argument import CACHE
from checkpoint_folders import same_files
from composite_models import (
    COMPOSITES,
    IMAGE,
    MORE,
    composite_base,
    new_composite,
    prompt,
    shared_composite,
    shared_composite_base,
    with_text,
    words,
)
from tiny_models import assert_close, one_shot

MROPE = ["Qwen2_5_VL", "Qwen3VL", "Glm4v"]  # rotary positions of time, height and width
over_composites = pytest.mark.parametrize("family", COMPOSITES)
over_mrope = pytest.mark.parametrize("family", MROPE)
TEXT = words(60)


def read(model, inputs, chunks, cache=None):
    """Logits of a prompt with an image, then of text in chunks of one size, with a cache."""
    cache = ahn.AHNCache(model.config) if cache is None else cache
    outputs = [model(**inputs, **{CACHE: cache}, use_cache=True).logits]
    outputs += [model(chunk, **{CACHE: cache}, use_cache=True).logits for chunk in chunks]
    return torch.cat(outputs, 1)


def attention_functions(model):
    return [x.config._attn_implementation for x in model.modules() if hasattr(x, "config")]


@pytest.mark.slow
@over_composites
@torch.no_grad()
def test_within_the_budget_it_is_the_base_and_beyond_chunks_are_one_shot(family):
    base, model, inputs = shared_composite_base(family), shared_composite(family), prompt(family)
    assert torch.equal(model(**inputs).logits, base(**inputs).logits)
    other = {**inputs, "pixel_values": -inputs["pixel_values"]}
    assert not torch.equal(model(**other).logits, model(**inputs).logits), "the image is not seen"
    whole = with_text(inputs, TEXT)
    expected = one_shot(model, ids=whole.pop("input_ids"), **whole)
    with ahn.memory_off(model):
        whole = with_text(inputs, TEXT)
        off = one_shot(model, whole.pop("input_ids"), **whole)
    assert (expected - off)[:, 25:].abs().amax(-1).min() > 1e-6
    for size in (7, 1):
        assert_close(read(model, inputs, TEXT.split(size, 1)), expected, 1e-12)


@pytest.mark.parametrize("family", list(MORE))
@torch.no_grad()
def test_more_families_keep_the_laws_in_float32(family):
    base, model = composite_base(family, torch.float32), new_composite(family, torch.float32)
    inputs = prompt(family, dtype=torch.float32)
    whole = with_text(inputs, TEXT)
    assert_close(model(**inputs).logits, base(**inputs).logits, 1e-6)
    expected, full = model(**whole, use_cache=False).logits, base(**whole).logits
    assert (expected - full)[:, 25:].abs().amax(-1).min() > 1e-3
    for size in (7, 1):
        assert_close(read(model, inputs, TEXT.split(size, 1)), expected, 1e-5)
    assert torch.equal(ahn.detach(model)(**whole).logits, full)


@over_composites
@torch.no_grad()
def test_an_image_that_comes_late_is_read_in_a_chunk_of_its_own(family):
    model, inputs = shared_composite(family), prompt(family)
    late = with_text(inputs, TEXT)
    late["input_ids"] = torch.cat([words(40, seed=3), late["input_ids"]], 1)
    if "mm_token_type_ids" in late:
        late["mm_token_type_ids"] = (late["input_ids"] == IMAGE).int()
    expected = one_shot(model, late.pop("input_ids"), **late)
    cache = ahn.AHNCache(model.config)
    before = model(words(40, seed=3), **{CACHE: cache}, use_cache=True).logits
    got = torch.cat([before, read(model, inputs, TEXT.split(7, 1), cache)], 1)
    assert_close(got, expected, 1e-12)


@pytest.mark.slow
@over_composites
@torch.no_grad()
def test_generate_prefill_and_stream_go_on_alike(family):
    model, inputs = shared_composite(family), prompt(family)
    whole, options = with_text(inputs, TEXT), {"max_new_tokens": 8, "do_sample": False}
    expected = dict(whole)
    for _ in range(8):
        call = dict(expected)
        token = one_shot(model, call.pop("input_ids"), **call)[:, -1:].argmax(-1)
        expected = with_text(expected, token)
    answer = expected["input_ids"][:, whole["input_ids"].shape[1] :]
    for extra in ({}, {"prefill_chunk_size": 11}):
        got = model.generate(**whole, **options, **extra)
        assert torch.equal(got, expected["input_ids"]), extra
    cache = ahn.AHNCache(model.config)
    read(model, inputs, [], cache)
    _, cache = prefill(model, TEXT[:, :-1], cache, prefill_chunk_size=9)
    twin = cache.fork()
    read(model, prompt(family, before=1), [])  # the base's notes are of another text now
    tokens = list(stream(model, TEXT[:, -1:], cache, max_new_tokens=8))
    assert torch.equal(torch.stack(tokens, 1), answer)
    ids = whole["input_ids"]
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **{CACHE: twin}, **options)
    assert torch.equal(got[:, ids.shape[1] :], answer)


@pytest.mark.slow
@over_composites
@torch.no_grad()
def test_padded_rows_and_joined_caches_are_those_alone(family):
    model = shared_composite(family)
    rows = [prompt(family, before=9, seed=1), prompt(family, before=4, seed=2)]
    missing = rows[0]["input_ids"].shape[1] - rows[1]["input_ids"].shape[1]
    ids = torch.cat(
        [torch.nn.functional.pad(rows[1]["input_ids"], (missing, 0)), rows[0]["input_ids"]]
    )
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][0, :missing] = 0
    for name in ("pixel_values", "image_grid_thw", "image_sizes"):
        if name in rows[0]:
            batch[name] = torch.cat([rows[1][name], rows[0][name]])
    if "mm_token_type_ids" in rows[0]:
        batch["mm_token_type_ids"] = (ids == IMAGE).int()
    options = {"max_new_tokens": 12, "do_sample": False}
    alone = [model.generate(**with_text(row, TEXT), **options)[:, -12:] for row in rows]
    text = TEXT.expand(2, -1)
    long = with_text(batch, text)
    long["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 60), value=1)
    together = model.generate(**long, **options)[:, -12:]
    assert torch.equal(together, torch.cat(alone[::-1]))
    caches = [ahn.AHNCache(model.config) for _ in rows]
    for row, cache in zip(rows, caches):
        read(model, row, [TEXT[:, :-1]], cache)
    joined = ahn.AHNCache.join(caches)
    tokens = list(stream(model, TEXT[:, -1:].expand(2, -1), joined, max_new_tokens=12))
    assert torch.equal(torch.stack(tokens, 1), torch.cat(alone))


@over_mrope
@torch.no_grad()
def test_a_session_resumed_after_an_image_keeps_its_positions(family, tmp_path):
    model, inputs = shared_composite(family), prompt(family)
    expected = read(model, inputs, [TEXT])[:, -60:]
    cache = ahn.AHNCache(model.config)
    read(model, inputs, [], cache)
    save_session(cache, tmp_path / "session")
    read(model, prompt(family, before=1), [])
    again = load_session(tmp_path / "session", model)
    assert_close(model(TEXT, **{CACHE: again}).logits, expected, 1e-12)


@over_composites
@torch.no_grad()
def test_detached_copied_and_pickled(family):
    model, inputs = new_composite(family), with_text(prompt(family), TEXT)
    # Before the first forward: transformers' own hooks for the outputs of a part cannot be pickled.
    unpickled = pickle.loads(pickle.dumps(model))
    expected, base = model(**inputs).logits, shared_composite_base(family)
    own = attention_functions(base)
    for other in (copy.deepcopy(model), unpickled):
        assert torch.equal(other(**inputs).logits, expected)
        assert ahn.detach(other) is other and type(other) is type(base)
        assert torch.equal(other(**inputs).logits, base(**inputs).logits)
        assert attention_functions(other) == own
        assert "ahn" not in other.config.to_json_string(use_diff=False)
    with ahn.disabled(model):
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)


@pytest.mark.slow
@over_composites
@torch.no_grad()
def test_merged_and_split(family, tmp_path):
    model = new_composite(family, dtype=torch.float32)
    inputs = with_text(prompt(family, dtype=torch.float32), TEXT)
    composite_base(family, torch.float32).save_pretrained(tmp_path / "base")
    ahn.save_pretrained(model, tmp_path / "memory")
    parts = (tmp_path / "base", tmp_path / "memory")
    merge(*parts, tmp_path / "merged")
    split(tmp_path / "merged", tmp_path / "split")
    assert same_files(tmp_path / "split", tmp_path / "memory")
    for place in ([tmp_path / "merged"], parts):
        loaded = ahn.from_pretrained(*place)
        assert type(loaded) is type(model)
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert type(ahn.detach(loaded)) is type(shared_composite_base(family))
