"""Streaming gives `generate`'s tokens, one by one."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import prefill, stream
from tiny_models import new_model, over_pairs, random_ids, shared_model


def collected(*arguments, **options):
    return torch.stack(list(stream(*arguments, **options)), 1)


@over_pairs
@torch.no_grad()
def test_greedy_is_that_of_generate(family, cell):
    model, ids = shared_model(family, cell, dtype=torch.float64), random_ids(60, batch=2)
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)[:, 60:]
    assert torch.equal(collected(model, ids, max_new_tokens=20, prefill_chunk_size=16), expected)
    pieces = iter(ids.split(7, dim=1))
    assert torch.equal(collected(model, pieces, max_new_tokens=20), expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}])
@torch.no_grad()
def test_sampling_is_that_of_generate(options):
    model, ids = shared_model(dtype=torch.float64), random_ids(60)
    torch.manual_seed(5)
    expected = model.generate(
        ids, max_new_tokens=15, do_sample=True, temperature=1.5, **{"top_k": 0, **options}
    )
    torch.manual_seed(5)
    got = collected(model, ids, max_new_tokens=15, temperature=1.5, **options)
    assert torch.equal(got, expected[:, 60:])


@torch.no_grad()
def test_a_generator_makes_sampling_reproducible():
    model, ids = shared_model(), random_ids(60)
    runs = [
        collected(model, ids, max_new_tokens=15, temperature=1.5, generator=generator)
        for generator in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@torch.no_grad()
def test_rows_end_at_their_end_token():
    model, ids = new_model(dtype=torch.float64), random_ids(60, batch=2)
    free = collected(model, ids, max_new_tokens=20)
    first, second = free[0, 3].item(), free[1, 8].item()
    model.generation_config.eos_token_id = [first, second]
    got = collected(model, ids, max_new_tokens=20)
    ends = [
        next(i for i, token in enumerate(row.tolist()) if token in (first, second)) for row in free
    ]
    assert got.shape[1] == max(ends) + 1
    for row, end in enumerate(ends):
        assert torch.equal(got[row, : end + 1], free[row, : end + 1])
        assert (got[row, end:] == free[row, end]).all()


@torch.no_grad()
def test_the_cache_holds_prompt_and_answer_but_the_last_token():
    model, ids = shared_model(dtype=torch.float64), random_ids(60)
    cache = ahn.AHNCache(model.config)
    answer = collected(model, ids, cache, max_new_tokens=10)
    assert cache.get_seq_length() == 69
    more = torch.cat([answer[:, -1:], random_ids(20, seed=4)], 1)
    whole = torch.cat([ids, answer, random_ids(20, seed=4)], 1)
    expected = collected(model, whole, max_new_tokens=10)
    assert torch.equal(collected(model, more, cache, max_new_tokens=10), expected)


@torch.no_grad()
def test_nothing_is_computed_before_it_is_asked_for():
    model = shared_model()
    tokens = stream(model, random_ids(60), cache := ahn.AHNCache(model.config), max_new_tokens=5)
    assert cache.get_seq_length() == 0
    next(tokens)
    assert cache.get_seq_length() == 60
    tokens.close()
    prefill(model, random_ids(3), cache)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"temperature": -1.0}, "temperature: expected >= 0"),
        ({"top_k": -1}, "top_k: expected >= 0"),
        ({"top_p": 0.0}, "top_p: expected above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p: expected above 0 and at most 1"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size: expected at least 1 token"),
    ],
)
@torch.no_grad()
def test_options_out_of_range_are_refused(option, named):
    with pytest.raises(ValueError, match=named):
        list(stream(shared_model(), random_ids(9), **{"max_new_tokens": 2, **option}))


@torch.no_grad()
def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt: expected at least one token"):
        list(stream(shared_model(), random_ids(0), max_new_tokens=2))
