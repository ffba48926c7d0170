"""Law: the kernels of a prompt err no more than the general path."""

from __future__ import annotations

import pytest
import torch
from measures import DEVICE, difference, pair

from ahn.generation import prefill
from ahn.memory import build_memory
from ahn.ops.window_attention import window_attention
from ahn.ops.window_attention.reference import blocked_window_attention
from tiny_models import left_padded, new_model, over_cells, over_shipped, positions_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("window", [8064, 1024, 100])
@pytest.mark.parametrize(("past", "queries"), [(0, 1500), (1000, 1024), (8064, 3000), (500, 1)])
@torch.no_grad()
def test_dense_blocks_err_no_more_than_the_reference(window, past, queries):
    heads, groups, dim, sinks = 4, 2, 64, 16
    start = 30 if past else 0
    past = min(past, window)

    def draw(heads, length):
        return torch.randn(2, length, heads, dim, device=DEVICE, dtype=torch.double).transpose(1, 2)

    q, k, v = draw(heads, queries), draw(groups, past + queries), draw(groups, past + queries)
    sink_k, sink_v = draw(groups, sinks), draw(groups, sinks)
    known = min(max(0, sinks - start), k.shape[2])
    sink_k[:, :, start : start + known] = k[:, :, :known]
    sink_v[:, :, start : start + known] = v[:, :, :known]
    tensors = (q, k, v, sink_k, sink_v)
    half = [x.bfloat16() for x in tensors]
    exact = blocked_window_attention(*(x.double() for x in half), window, start, None, 0.0)
    reference = blocked_window_attention(*half, window, start, None, 0.0)
    ours = window_attention(*half, window=window, start=start)
    assert difference(ours, exact) <= 2 * difference(reference, exact) + 2**-9


@over_cells
@torch.no_grad()
def test_prefill_by_dense_blocks_errs_no_more_than_the_general_path(cell):
    """Chunks that cross the budget, padded rows, heads that cuDNN takes."""
    settings = {"window": 64, "overrides": (("head_dim", 32),)}
    _, ids, mask = left_padded((700, 650, 20))
    ids, mask = ids.to(DEVICE), mask.to(DEVICE)
    options = {"attention_mask": mask, "position_ids": positions_of(mask)}
    exact = new_model("Qwen3", cell, dtype=torch.float64, **settings).to(DEVICE)(ids, **options)
    errors = []
    for model in pair(cell, **settings):
        model.to(torch.bfloat16)
        logits = [
            prefill(model, ids, prefill_chunk_size=chunk, attention_mask=mask)[0]
            for chunk in (700, 256, 48)
        ]
        errors.append(max(difference(x, exact.logits[:, -1]) for x in logits))
    assert errors[0] <= 1.5 * errors[1] + 2**-8, errors


@over_shipped
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
@torch.no_grad()
def test_norm_gate_and_map_err_no_more_than_pytorch(cell, length):
    heads, dim, hidden = 4, 64, 96
    cells = [
        build_memory(cell, hidden, heads, dim, kernels=k).to(DEVICE) for k in ("auto", "torch")
    ]
    torch.nn.init.normal_(cells[0].o_proj.weight, std=0.3)
    cells[1].load_state_dict(cells[0].state_dict())
    read = torch.randn(2, length, heads, dim, device=DEVICE)
    tokens = torch.randn(2, length, hidden, device=DEVICE).bfloat16()
    ours, reference = (c.to(torch.bfloat16).project(read, tokens) for c in cells)
    exact = cells[1].double().project(read.double(), tokens.double())
    assert ours.dtype == reference.dtype
    assert difference(ours, exact) <= 1.5 * difference(reference, exact) + 2**-9
