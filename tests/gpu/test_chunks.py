"""Law: beside, for the cache alone and by Liger's kernels, reading gives what it gives plainly."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from measures import DEVICE, difference

from ahn.generation import prefill
from ahn.hf.liger import drop_liger, use_liger
from ahn.layer import modes
from ahn.ops.wide_copy import concat_tokens, reverse_tokens
from tiny_models import new_model, over_cells, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS = {"window": 512, "overrides": (("head_dim", 64), ("num_hidden_layers", 6))}
BUFFERS = ("keys", "values", "write_inputs.gates", "states.recurrent_state")


@contextmanager
def in_order(device):
    yield lambda: None


@over_cells
@torch.no_grad()
def test_reading_beside_and_for_the_cache_alone_is_reading_in_order(cell, monkeypatch):
    """Over many chunks: nothing is read early (it would be NaN), nothing is written over.

    Chunks of one batch that go on with a cache others have left: the last layer's state is then
    made in order by one forward and beside by the next. Not bit by bit: cuBLAS chooses its
    kernels for each stream.
    """
    model = new_model("Qwen3", cell, dtype=torch.bfloat16, **SETTINGS).to(DEVICE)
    ids = random_ids(6000, batch=2).to(DEVICE)

    def run():
        _, cache = prefill(model, ids[:, :3100], prefill_chunk_size=300)
        return prefill(model, ids[:, 3100:], cache, prefill_chunk_size=300)

    logits, cache = run()
    monkeypatch.setattr(modes, "side_stream", in_order)
    note = model.model.norm.register_forward_hook(lambda *_: None)  # every forward is whole
    expected, reference = run()
    note.remove()
    assert difference(logits, expected) <= 2**-6
    for layer, other in zip(cache.memory_layers, reference.memory_layers):
        for name in BUFFERS:
            assert difference(layer.tensors()[name], other.tensors()[name]) <= 2**-6, name


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
@torch.no_grad()
def test_liger_errs_no_more_than_the_family(family):
    """Against the same half-precision weights and frequencies in float64."""
    model = new_model(family, dtype=torch.bfloat16, **SETTINGS).to(DEVICE)
    ids = random_ids(2000, batch=2).to(DEVICE)
    expected = prefill(copy.deepcopy(model).double(), ids, prefill_chunk_size=700)[0]
    plain = prefill(model, ids, prefill_chunk_size=700)[0]
    ours = prefill(use_liger(model), ids, prefill_chunk_size=700)[0]
    errors = [difference(x, expected) for x in (ours, plain)]
    assert errors[0] <= 1.5 * errors[1] + 2**-8, errors
    again = prefill(drop_liger(model), ids, prefill_chunk_size=700)[0]
    assert difference(again, plain) <= difference(ours, plain), "rounding of Liger's stays"


@torch.no_grad()
def test_an_mlp_in_place_is_the_plain_product():
    from ahn.ops.gated_mlp.triton import silu_mul_

    for dtype in (torch.bfloat16, torch.float32):
        gate, up = torch.randn(2, 3, 4999, 7, device=DEVICE, dtype=dtype)
        expected = torch.nn.functional.silu(gate.double()) * up.double()
        assert silu_mul_(gate, up) is gate
        assert difference(gate, expected) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dim", [1, 2, 6, 64])
@torch.no_grad()
def test_copied_rows_are_the_same(dim):
    ring = torch.randn(2, 50, 3, dim, device=DEVICE).bfloat16().transpose(1, 2)
    blocks = (ring[:, :, 7:20], ring[:, :, :5])
    assert torch.equal(concat_tokens(blocks), torch.cat(blocks, 2))
    assert torch.equal(reverse_tokens(blocks[0]), blocks[0].flip(2))
