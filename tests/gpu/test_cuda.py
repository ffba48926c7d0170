"""The laws on a CUDA device in float32, and what only shows there: half precision, peak memory."""

from __future__ import annotations

import pytest
import torch
from measures import DEVICE

import ahn
from ahn.generation import load_session, prefill, save_session
from ahn.modeling import compressive
from ahn.ops.pooled_attention import POOLINGS
from tiny_models import (
    WINDOW,
    assert_close,
    base_model,
    left_padded,
    new_model,
    one_shot,
    over_cells,
    pieces,
    positions_of,
    random_ids,
    read,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTH = 150
ROUNDING = 2e-5


@pytest.fixture(autouse=True)
def _no_tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def model_on_device(cell, **settings):
    return new_model("Qwen3", cell, **settings).to(DEVICE)


def ids_on_device(*arguments, **options):
    return random_ids(*arguments, **options).to(DEVICE)


@over_cells
@torch.no_grad()
def test_up_to_the_budget_the_model_is_its_base(cell):
    base, model = base_model("Qwen3").to(DEVICE), model_on_device(cell)
    ids = ids_on_device(WINDOW + 4, batch=2)
    assert torch.equal(model(ids).logits, base(ids).logits)
    assert_close(read(model, ids, [1] * (WINDOW + 4)), base(ids).logits, 1e-5)
    longer = ids_on_device(WINDOW + 5, batch=2)
    assert (model(longer).logits - base(longer).logits)[:, -1].abs().max() > 1e-3


@over_cells
@torch.no_grad()
def test_chunks_and_tokens_equal_one_shot(cell):
    model, ids = model_on_device(cell, use_q_proj=True), ids_on_device(LENGTH, batch=2)
    expected = one_shot(model, ids)
    for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7), pieces(LENGTH, 64)):
        assert_close(read(model, ids, chunks), expected, ROUNDING, f"chunks {chunks}")


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_a_pool_in_the_memorys_place_is_that_of_a_cpu(pooling):
    model, ids = new_model("Qwen3", "DeltaNet"), random_ids(LENGTH, batch=2)
    rows, padded, mask = left_padded((LENGTH, 41, 3))
    with compressive(model, pooling):
        expected, alone = one_shot(model, ids), [one_shot(model, row)[0] for row in rows]
        model.to(DEVICE)
        for chunks in ([LENGTH], [1] * LENGTH, pieces(LENGTH, 7)):
            found = read(model, ids.to(DEVICE), chunks).cpu()
            assert_close(found, expected, ROUNDING, f"chunks {chunks}")
        found = read(model, padded.to(DEVICE), pieces(LENGTH, 32), mask=mask.to(DEVICE)).cpu()
        for row, logits in zip(alone, found):
            assert_close(logits[-len(row) :], row, ROUNDING)
        half = read(model.bfloat16(), padded.to(DEVICE), [100, 50], mask=mask.to(DEVICE))
        assert half.isfinite().all()


@over_cells
@torch.no_grad()
def test_a_left_padded_batch_equals_each_row(cell):
    model = model_on_device(cell, use_router=True)
    rows, ids, mask = left_padded((LENGTH, 41, 3))
    ids, mask = ids.to(DEVICE), mask.to(DEVICE)
    together = [one_shot(model, ids, attention_mask=mask, position_ids=positions_of(mask))]
    for chunks in (pieces(LENGTH, 32), [LENGTH - 20, *[1] * 20]):
        together.append(read(model, ids, chunks, mask=mask))
    for number, row in enumerate(rows):
        alone = one_shot(model, row.to(DEVICE))[0]
        for logits in together:
            assert_close(logits[number, -len(alone) :], alone, ROUNDING, f"row {number}")


@over_cells
@torch.no_grad()
def test_packed_documents_equal_each_alone(cell):
    model, ids = model_on_device(cell), ids_on_device(LENGTH)
    lengths = (90, 50, 10)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(DEVICE)
    alone = torch.cat([one_shot(model, part) for part in ids.split(lengths, dim=1)], 1)
    assert_close(one_shot(model, ids, position_ids=positions), alone, ROUNDING)


@over_cells
@torch.no_grad()
def test_half_precision_generates(cell):
    ids = ids_on_device(LENGTH, batch=2)
    expected = one_shot(model_on_device(cell), ids)
    model = model_on_device(cell).to(torch.bfloat16)
    logits = one_shot(model, ids).float()
    assert (logits - expected).abs().mean() < 0.05 * expected.abs().mean()
    text = model.generate(ids, max_new_tokens=20, do_sample=False, prefill_chunk_size=64)
    assert text.shape == (2, LENGTH + 20)
    state = prefill(model, ids)[1].memory_layers[0].states["recurrent_state"]
    assert state.dtype == torch.float32
    assert state.isfinite().all()


@over_cells
@torch.no_grad()
def test_peak_memory_of_prefill_does_not_grow_with_the_text(cell):
    model = model_on_device(cell, overrides=(("max_position_embeddings", 1 << 17),))
    peaks = []
    for length in (4096, 4096, 4 * 4096):  # the first one warms libraries up
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        prefill(model, random_ids(length), prefill_chunk_size=512)
        peaks.append(torch.cuda.max_memory_allocated() - held)
    assert peaks[2] <= 1.05 * peaks[1], peaks


@torch.no_grad()
def test_a_session_comes_back_to_the_device(tmp_path):
    model, ids = model_on_device("GatedDeltaNet"), ids_on_device(LENGTH)
    _, cache = prefill(model, ids)
    save_session(cache, tmp_path / "session")
    resumed = load_session(tmp_path / "session", model)
    assert resumed.memory_layers[0].keys.device.type == DEVICE
    assert torch.equal(prefill(model, ids, resumed)[0], prefill(model, ids, cache)[0])
    assert isinstance(resumed, ahn.AHNCache)
