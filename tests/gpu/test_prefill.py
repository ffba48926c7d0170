"""Law: reading beside and by Liger's kernels gives what reading in order and plainly gives."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from ahn import attention
from ahn.attach import drop_liger, use_liger
from ahn.generation import prefill
from models import new_model, over_cells, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
SETTINGS = {"window": 512, "overrides": (("head_dim", 64), ("num_hidden_layers", 6))}


@contextmanager
def in_order(device):
    yield lambda: None


@over_cells
@torch.no_grad()
def test_reading_beside_gives_what_reading_in_order_gives(cell, monkeypatch):
    """Bit by bit, over many chunks: nothing is read early, nothing is written over."""
    model = new_model("Qwen3", cell, dtype=torch.bfloat16, **SETTINGS).to(DEVICE)
    ids = random_ids(6000, batch=2).to(DEVICE)
    logits, cache = prefill(model, ids, chunk=300)
    monkeypatch.setattr(attention, "beside", in_order)
    expected, reference = prefill(model, ids, chunk=300)
    assert torch.equal(logits, expected)
    for layer, other in zip(cache.memory_layers, reference.memory_layers):
        for name in ("keys", "values", "gates", "recurrent_state"):
            assert torch.equal(getattr(layer, name), getattr(other, name)), name


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Mistral"])
@torch.no_grad()
def test_liger_errs_no_more_than_the_family(family):
    exact = new_model(family, dtype=torch.float64, **SETTINGS).to(DEVICE)
    ids = random_ids(2000, batch=2).to(DEVICE)
    expected = prefill(exact, ids, chunk=700)[0]
    model = exact.to(torch.bfloat16)
    plain = prefill(model, ids, chunk=700)[0]
    ours = prefill(use_liger(model), ids, chunk=700)[0]
    errors = [(x.double() - expected).norm() / expected.norm() for x in (ours, plain)]
    assert not torch.equal(ours, plain)
    assert errors[0] <= 1.5 * errors[1] + 2**-8, errors
    assert torch.equal(prefill(drop_liger(model), ids, chunk=700)[0], plain)
