"""Law: a left-padded batch equals each of its rows alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import ahn
from ahn.hf.cache_argument import CACHE
from tiny_models import (
    assert_close,
    left_padded,
    one_shot,
    over_matrix,
    over_trios,
    pieces,
    positions_of,
    random_ids,
    read,
    shared_base,
    shared_model,
)

CASES = [  # window, sinks, lengths of the rows
    (16, 4, (70, 41, 18)),  # one row within the budget
    (16, 4, (60, 3)),  # a row shorter than the sinks
    (16, 0, (50, 30)),
    (8, 12, (60, 41, 10)),  # more sinks than window
    (16, 4, (60, 55, 59)),  # all begun before any row is beyond the budget
    (1, 2, (40, 1)),
]


def chunkings(length: int) -> list[list[int]]:
    """One shot, chunks that are all padding for some row, one after the other, decoding."""
    return [
        [length],
        pieces(length, 7),
        [15, *pieces(length - 15, 21)],
        [length - 18, *[1] * 18],
        [*[1] * 12, length - 12],
    ]


@pytest.mark.slow
@over_matrix
@torch.no_grad()
def test_rows_of_very_different_length(family, cell):
    model = shared_model(family, cell, dtype=torch.float64)
    _check(model, (70, 41, 18, 2), [[70], pieces(70, 7), [50, *[1] * 20]])


@pytest.mark.slow
@over_trios
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_every_window_and_chunking(family, cell, case):
    window, num_sinks, lengths = case
    model = shared_model(family, cell, dtype=torch.float64, window=window, num_sinks=num_sinks)
    _check(model, lengths, chunkings(max(lengths)))


@over_trios
@pytest.mark.parametrize(
    "settings",
    [{"use_router": True}, {"use_q_proj": True}, {"full_attention_layers": (0,)}],
    ids=str,
)
@torch.no_grad()
def test_every_setting(family, cell, settings):
    model = shared_model(family, cell, dtype=torch.float64, **settings)
    _check(model, (60, 41, 3), chunkings(60))


def _check(model, lengths, all_chunks):
    rows, ids, mask = left_padded(lengths)
    alone = [one_shot(model, row)[0] for row in rows]
    _check_rows(one_shot(model, ids, attention_mask=mask, position_ids=positions_of(mask)), alone)
    for chunks in all_chunks:
        _check_rows(read(model, ids, chunks, mask=mask), alone)


def _check_rows(logits, alone):
    for row, expected in enumerate(alone):
        assert_close(logits[row, -len(expected) :], expected, 1e-12, f"row {row}")


@pytest.mark.slow
@over_trios
@pytest.mark.parametrize("lengths", [(60, 41, 3), (18, 15, 2), (60, 60)])
@torch.no_grad()
def test_prefill_then_decoding(family, cell, lengths):
    model = shared_model(family, cell, dtype=torch.float64)
    rows, ids, mask = left_padded(lengths)
    answer = random_ids(25, batch=len(rows), seed=5)
    for chunk in (7, 64):
        logits, cache = ahn.generation.prefill(
            model, ids, prefill_chunk_size=chunk, attention_mask=mask
        )
        steps = [logits]
        for token in answer.split(1, dim=1):
            steps.append(ahn.generation.prefill(model, token, cache)[0])
        together = torch.stack(steps, 1)
        for row, prompt in enumerate(rows):
            alone = one_shot(model, torch.cat([prompt, answer[row : row + 1]], 1))[0]
            assert_close(together[row], alone[prompt.shape[1] - 1 :], 1e-12, f"row {row}")


@over_trios
@torch.no_grad()
def test_generate(family, cell):
    model = shared_model(family, cell, dtype=torch.float64)
    rows, ids, mask = left_padded((60, 41, 9, 1))
    options = {"max_new_tokens": 25, "do_sample": False}
    alone = [model.generate(row, **options)[0, row.shape[1] :] for row in rows]
    for extra in ({}, {"prefill_chunk_size": 17}):
        together = model.generate(ids, attention_mask=mask, **options, **extra)
        assert torch.equal(together[:, ids.shape[1] :], torch.stack(alone))
    tokens = list(ahn.generation.stream(model, ids, attention_mask=mask, max_new_tokens=25))
    assert torch.equal(torch.stack(tokens, 1), torch.stack(alone))


@torch.no_grad()
def test_within_the_budget_a_padded_batch_is_that_of_the_base():
    _, ids, mask = left_padded((20, 11, 2))
    options = {"attention_mask": mask, "position_ids": positions_of(mask)}
    assert torch.equal(
        shared_model()(ids, **options).logits[mask.bool()],
        shared_base()(ids, **options).logits[mask.bool()],
    )


@torch.no_grad()
def test_rows_padded_on_the_right_equal_themselves_alone_and_end_their_cache(tmp_path):
    """Also with a cache, which a forward makes unless told otherwise."""
    model = shared_model(dtype=torch.float64)
    rows, _, mask = left_padded((60, 41))
    ids = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (0, 19))])
    mask = mask.flip(1)
    outputs = [model(ids, attention_mask=mask, use_cache=cached) for cached in (False, True)]
    for row, alone in enumerate(rows):
        length, expected = alone.shape[1], one_shot(model, alone)[0]
        for output in outputs:
            assert_close(output.logits[row, :length], expected, 1e-12)
    cache = outputs[1][CACHE]
    ended = "expected rows that can be read on, got some that end in padding"
    with pytest.raises(ValueError, match=f"^{CACHE}: {ended}"):
        model(ids[:, :1], **{CACHE: cache})
    with pytest.raises(ValueError, match=f"^join: {ended}"):
        ahn.AHNCache.join([cache])
    with pytest.raises(ValueError, match=f"^cache: {ended}"):
        ahn.generation.save_session(cache, tmp_path / "session")
    for continued in (partial(ahn.generation.prefill, model), model.generate):
        with pytest.raises(ValueError, match="attention_mask: expected left padding"):
            continued(ids, attention_mask=mask)
    cache.reset()
    assert_close(model(rows[1], **{CACHE: cache}).logits, one_shot(model, rows[1]), 1e-12)


@torch.no_grad()
def test_masks_that_are_not_a_padding_mask_are_refused():
    model, ids = shared_model(), random_ids(30)
    hole = torch.ones_like(ids)
    hole[0, 10] = 0
    with pytest.raises(ValueError, match="padding after real tokens"):
        model(ids, attention_mask=hole)
    with pytest.raises(ValueError, match="attention_mask: expected 30 columns, got 29"):
        model(ids, attention_mask=torch.ones(1, 29))
    with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, length\]"):
        model(ids, attention_mask=torch.zeros(1, 1, 30, 30))
    cache = ahn.AHNCache(model.config)
    model(ids, **{CACHE: cache})
    late = torch.cat([torch.ones(1, 30), torch.zeros(1, 3)], 1)
    with pytest.raises(ValueError, match="padding after real tokens"):
        model(random_ids(3), attention_mask=late, **{CACHE: cache})
