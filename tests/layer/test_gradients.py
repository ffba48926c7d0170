"""Training through an attached model: gradients, checkpointing, precisions."""

from __future__ import annotations

import pytest
import torch

import ahn
from ahn.hf.cache_argument import CACHE
from tiny_models import (
    assert_close,
    memory_parameters,
    new_model,
    one_shot,
    over_cells,
    over_trios,
    pieces,
    random_ids,
    read,
    shared_model,
)

LENGTH = 100


def gradients(model, ids, checkpointing=None):
    model.train()
    model.zero_grad()
    wanted = memory_parameters(model)
    model.requires_grad_(False)
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()  # reentrant checkpoints need an input with a gradient
    model(ids).logits.logsumexp(-1).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@over_trios
@pytest.mark.parametrize("settings", [{}, {"use_q_proj": True, "use_router": True}], ids=str)
def test_gradient_checkpointing_changes_no_gradient(family, cell, settings):
    ids = random_ids(LENGTH, batch=2)
    model = new_model(family, cell, dtype=torch.float64, **settings)
    expected = gradients(model, ids)
    assert set(expected) == set(memory_parameters(model))
    for reentrant in (False, True):
        copy = new_model(family, cell, dtype=torch.float64, **settings)
        got = gradients(copy, ids, reentrant)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert value.abs().max() > 0, name
            assert_close(got[name], value, 1e-11, name)


def test_a_forward_with_gradients_may_use_a_cache():
    """Later chunks differentiate through their own tokens; the past is cut off."""
    model, ids = new_model(dtype=torch.float64), random_ids(60)
    cache = ahn.AHNCache(model.config)
    model(ids[:, :59], **{CACHE: cache})
    logits = model(ids[:, 59:], **{CACHE: cache}).logits
    assert_close(logits[0, 0].detach(), one_shot(model, ids)[0, -1].detach(), 1e-12)
    logits.sum().backward()
    assert all(p.grad is not None for n, p in memory_parameters(model).items() if "o_proj" in n)
    assert not any(
        x.requires_grad
        for layer in cache.layers
        for x in vars(layer).values()
        if isinstance(x, torch.Tensor)
    )


@pytest.mark.slow
@over_cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision(cell, dtype):
    """Chunks and one shot differ by less than half precision itself differs from float32."""
    exact = shared_model("Llama", cell)
    model, ids = new_model("Llama", cell).to(dtype), random_ids(LENGTH)
    whole = one_shot(model, ids).float()
    rounding = (whole - one_shot(exact, ids)).abs()
    for chunks in (pieces(LENGTH, 7), [60, *[1] * 40]):
        difference = (read(model, ids, chunks).float() - whole).abs()
        assert difference.isfinite().all()
        assert difference.mean() < 1.5 * rounding.mean()
        assert difference.max() < 2 * rounding.max()


@over_cells
def test_a_float32_memory_on_a_half_precision_base(cell):
    model, ids = new_model("Llama", cell, use_q_proj=True, use_router=True), random_ids(60)
    exact = one_shot(model, ids).detach()
    model.to(torch.bfloat16)
    for layer in model.model.layers:
        layer.ahn.float()
        layer.ahn_router.float()
    logits = one_shot(model, ids)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().mean() < 0.1
    logits.float().sin().sum().backward()
    for name, parameter in memory_parameters(model).items():
        assert parameter.grad.dtype == torch.float32, name
    with torch.no_grad():
        assert read(model, ids, [30, *[1] * 30]).isfinite().all()
