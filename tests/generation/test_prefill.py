"""Prefill in chunks: the same result in any pieces, and never the logits of the whole prompt."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.generation import prefill
from tiny_models import assert_close, left_padded, one_shot, over_trios, random_ids, shared_model

LENGTH = 90


@over_trios
@pytest.mark.parametrize("chunk", [1, 7, 64, LENGTH, 2048])
@torch.no_grad()
def test_every_chunk_gives_the_last_logits_of_one_shot(family, cell, chunk):
    model = shared_model(family, cell, dtype=torch.float64)
    ids = random_ids(LENGTH, batch=2)
    logits, cache = prefill(model, ids, prefill_chunk_size=chunk)
    assert_close(logits, one_shot(model, ids)[:, -1], 1e-12)
    assert cache.get_seq_length() == LENGTH


@pytest.mark.parametrize("sizes", [[90], [1, 0, 50, 3, 36], [30, 30, 30], [89, 1], [0, 90, 0]])
@torch.no_grad()
def test_an_iterator_of_uneven_pieces_is_the_whole(sizes):
    model, ids = shared_model(dtype=torch.float64), random_ids(LENGTH)
    lengths = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        logits, cache = prefill(model, iter(ids.split(sizes, dim=1)), prefill_chunk_size=32)
    finally:
        handle.remove()
    assert lengths == [32, 32, 26]
    whole, expected = prefill(model, ids, prefill_chunk_size=32)
    assert torch.equal(logits, whole)
    assert cache.nbytes == expected.nbytes


@torch.no_grad()
def test_a_text_is_read_while_it_arrives():
    """No more than a chunk and a piece of it is held back."""
    model, taken = shared_model(), []

    def pieces():
        for piece in random_ids(60).split(10, dim=1):
            held = sum(taken) - cache.get_seq_length()
            assert held <= 2 * 10, f"{held} tokens wait"
            taken.append(piece.shape[1])
            yield piece

    cache = ahn.AHNCache(model.config)
    prefill(model, pieces(), cache, prefill_chunk_size=10)
    assert cache.get_seq_length() == 60


@torch.no_grad()
def test_the_head_sees_one_token_of_a_prompt_of_any_length():
    model, shapes = shared_model(), []
    handle = model.lm_head.register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape))
    )
    try:
        for ids in (random_ids(LENGTH, batch=2), iter(random_ids(LENGTH, batch=2).split(9, 1))):
            prefill(model, ids, prefill_chunk_size=16)
    finally:
        handle.remove()
    assert shapes == [(2, 1, 64)] * 2


@torch.no_grad()
def test_it_goes_on_with_a_cache_and_takes_no_gradient():
    model, ids = shared_model(dtype=torch.float64), random_ids(LENGTH)
    _, cache = prefill(model, ids[:, :40], prefill_chunk_size=16)
    with torch.enable_grad():
        logits, same = prefill(model, ids[:, 40:], cache, prefill_chunk_size=16)
    assert same is cache
    assert not logits.requires_grad
    assert_close(logits, one_shot(model, ids)[:, -1], 1e-12)


@torch.no_grad()
def test_wrong_input_is_refused():
    model, ids = shared_model(), random_ids(30)
    for nothing in (random_ids(0), iter([]), iter([random_ids(0)])):
        with pytest.raises(ValueError, match="prompt: expected at least one token, got none"):
            prefill(model, nothing)
    with pytest.raises(ValueError, match="prefill_chunk_size: expected at least 1 token, got 0"):
        prefill(model, ids, prefill_chunk_size=0)
    with pytest.raises(ValueError, match=r"ids: expected \[batch, tokens\], got \[30\]"):
        prefill(model, ids[0])
    with pytest.raises(ValueError, match="expected ids of shape"):
        prefill(model, ids, attention_mask=torch.ones(1, 29))
    with pytest.raises(ValueError, match=r"expected ids of shape .* got an iterable"):
        prefill(model, iter([ids]), attention_mask=torch.ones_like(ids))
    _, cache = prefill(model, ids)
    with pytest.raises(ValueError, match="expected a new cache, got one of 30 tokens"):
        prefill(model, ids, cache, attention_mask=torch.ones_like(ids))


@torch.no_grad()
def test_a_mask_of_ones_or_all_padding():
    model, (_, ids, mask) = shared_model(dtype=torch.float64), left_padded((30, 30))
    assert torch.equal(prefill(model, ids, attention_mask=mask)[0], prefill(model, ids)[0])
    nothing = mask.clone()
    nothing[1] = 0
    with pytest.raises(ValueError, match="attention_mask: expected"):
        prefill(model, ids, attention_mask=nothing)
