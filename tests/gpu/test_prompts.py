"""Law: the kernels of a prompt err no more than the general path."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from measures import DEVICE, difference, pair

from ahn.generation import prefill
from ahn.memory import build_memory
from ahn.ops.slots import choose, lifetimes
from ahn.ops.window_attention import SlotRows, window_attention
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


@pytest.mark.parametrize(("slots", "queries"), [(512, 1500), (100, 130), (300, 1)])
@torch.no_grad()
def test_slots_beside_dense_blocks_err_no_more_than_the_reference(slots, queries):
    """Keys of a full window, so that each query evicts a token; every fifth is no candidate."""
    heads, groups, dim, sinks, window = 8, 2, 64, 4, 256

    def draw(heads, length):
        return torch.randn(2, length, heads, dim, device=DEVICE, dtype=torch.double).transpose(1, 2)

    tokens = [draw(heads, queries), *(draw(groups, window + queries) for _ in range(2))]
    half = [x.bfloat16() for x in (*tokens, *(draw(groups, sinks) for _ in range(2)))]
    candidates = [draw(groups, slots + queries).bfloat16() for _ in range(2)]
    arriving = torch.randn(2, groups, queries, device=DEVICE)
    arriving[..., ::5] = -torch.inf
    place = torch.arange(1, slots + 1, device=DEVICE, dtype=torch.int32).expand(2, groups, -1)
    sizes = torch.tensor([slots, slots // 2], device=DEVICE)
    place = place * (place <= sizes[:, None])
    choice = choose(torch.randn(2, groups, slots, device=DEVICE), place, arriving, sizes)

    def attend(attention, dtype, *options):
        rows = SlotRows(*(x.to(dtype) for x in candidates), choice, queries, slots)
        return attention(*(x.to(dtype) for x in half), *options, exact_rows=rows)

    general = (window, 5000, None, 0.0)
    exact = attend(blocked_window_attention, torch.double, *general)
    reference = attend(blocked_window_attention, torch.bfloat16, *general)
    ours = attend(partial(window_attention, window=window, start=5000), torch.bfloat16)
    assert difference(ours, exact) <= 2 * difference(reference, exact) + 2**-9


@pytest.mark.parametrize(("slots", "number"), [(4080, 1500), (100, 130), (1, 300), (9000, 257)])
@pytest.mark.parametrize("levels", [5, 10**6])
@torch.no_grad()
def test_the_kernels_choose_what_the_reference_does(slots, number, levels):
    """Ties, padding, empty slots, and heads with fewer slots; and from nothing, over two chunks."""
    shape = (2, 3, slots)
    held = torch.randint(levels, shape, device=DEVICE).float()
    place = torch.rand(shape, device=DEVICE).argsort(-1).int() + 1
    sizes = torch.tensor([slots, slots // 3, 0], device=DEVICE)
    place = place * ((torch.arange(slots, device=DEVICE) < sizes[:, None]) & (place % 7 > 0))
    arriving = torch.randint(levels, (2, 3, number), device=DEVICE).float()
    arriving[..., ::5] = -torch.inf
    got, want = (
        choose(held, place, arriving, sizes, kernels=kernels) for kernels in ("triton", "torch")
    )
    for name in ("slot_end", "arrival_end", "filled"):
        assert torch.equal(getattr(got, name).long(), getattr(want, name).long()), name
    for name, filled in (("index", want.slot_end > 0), ("kept", want.filled)):
        assert torch.equal(*(torch.where(filled, getattr(x, name), -1) for x in (got, want))), name
    ends = [lifetimes(x, sizes.to(x.device)) for x in (arriving, arriving.cpu())]
    assert torch.equal(ends[0].cpu(), ends[1])


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
