"""Law: every document of a packed row equals that document alone."""

from __future__ import annotations

import pytest
import torch

import ahn
from tiny_models import (
    assert_close,
    memory_parameters,
    new_model,
    one_shot,
    over_matrix,
    over_trios,
    random_ids,
    shared_model,
)

LENGTHS = (60, 45, 3, 12)  # beyond the budget twice, below the sinks, between


def packed(lengths: tuple[int, ...], seed: int = 30):
    documents = [random_ids(n, seed=seed + n) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return documents, torch.cat(documents, 1), positions


def apart(model, documents, **options):
    return torch.cat([one_shot(model, document, **options) for document in documents], 1)


@over_matrix
@torch.no_grad()
def test_logits(family, cell):
    model = shared_model(family, cell, dtype=torch.float64)
    documents, ids, positions = packed(LENGTHS)
    expected = apart(model, documents)
    assert_close(one_shot(model, ids, position_ids=positions), expected, 1e-12)
    assert (one_shot(model, ids) - expected)[:, LENGTHS[0] :].abs().max() > 1e-3


@over_trios
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"full_attention_layers": (1,)},
        {"full_attention_layers": (0,), "use_q_proj": True, "use_router": True, "num_sinks": 0},
    ],
    ids=str,
)
def test_gradients(family, cell, settings):
    model = new_model(family, cell, dtype=torch.float64, **settings).train()
    documents, ids, positions = packed(LENGTHS)
    parameters = list(memory_parameters(model).values())
    together = one_shot(model, ids, position_ids=positions)
    alone = apart(model, documents)
    assert_close(together, alone, 1e-12)
    for got, expected in zip(
        torch.autograd.grad(together.sin().sum(), parameters),
        torch.autograd.grad(alone.sin().sum(), parameters),
    ):
        assert expected.abs().max() > 0
        assert_close(got, expected, 1e-11)


@over_trios
@torch.no_grad()
def test_rows_packed_differently(family, cell):
    model = shared_model(family, cell, dtype=torch.float64, use_q_proj=True, use_router=True)
    first, second = packed((60, 40)), packed((30, 45, 25), seed=50)
    ids, positions = (torch.cat([first[i], second[i]]) for i in (1, 2))
    together = one_shot(model, ids, position_ids=positions)
    for row, (documents, *_) in enumerate((first, second)):
        assert_close(together[row : row + 1], apart(model, documents), 1e-12, f"row {row}")


@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (1,)}], ids=str)
@torch.no_grad()
def test_positions_of_one_row_hold_for_all(settings):
    model = shared_model(dtype=torch.float64, **settings)
    ids, (_, _, positions) = random_ids(100, batch=2), packed((60, 40))
    documents = ids.split([60, 40], dim=1)
    together = one_shot(model, ids, position_ids=positions)
    assert_close(together, apart(model, documents), 1e-12)


@pytest.mark.parametrize("settings", [{}, {"full_attention_layers": (1,)}], ids=str)
@torch.no_grad()
def test_without_saying_use_cache(settings):
    """As the base does, packing wins where the config alone asks for a cache."""
    model = shared_model(dtype=torch.float64, **settings)
    documents, ids, positions = packed(LENGTHS)
    assert_close(model(ids, position_ids=positions).logits, apart(model, documents), 1e-12)


@torch.no_grad()
def test_window_alone_and_full_attention_are_packed_too():
    model = shared_model(dtype=torch.float64)
    documents, ids, positions = packed(LENGTHS)
    for switch in (ahn.memory_off, ahn.disabled):
        with switch(model):
            together = one_shot(model, ids, position_ids=positions)
            assert_close(together, apart(model, documents), 1e-12, switch.__name__)
