"""The fused step in Triton's interpreter, float32: run by `test_interpreted_step`.

It is a process of its own because Triton decides once, when it is imported, who runs its kernels.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

import ahn
from added_families import ADDED, added_base
from ahn.generation import prefill
from ahn.hf.install import use_kernels
from ahn.layer.modes import MEMORY, WINDOW
from ahn.ops import dependent_launch
from ahn.ops.decoding import launch as decoding
from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu
from ahn.ops.gemv import launch as projection
from ahn.runtime.fused_decoder import FusedDecoder
from backend_rows import replace_reason
from tiny_models import (
    SHIPPED,
    SHIPPED_PAIRS,
    assert_close,
    left_padded,
    new_model,
    random_ids,
    wake,
)
from triton_interpreter import mend_indexing, unwritten_is_nan, watch

BUFFERS = ("keys", "values", "write_inputs.gates", "states.recurrent_state")
NEW = 5  # tokens


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    monkeypatch.setattr(dependent_launch, "launch_options", lambda *_: {"PDL": False})
    monkeypatch.setattr(decoding, "_multiprocessors", lambda device: 2)
    for op in ("fused_decoding", "gemv"):
        replace_reason(monkeypatch, op, "triton", lambda *_: None)
    mend_indexing(monkeypatch)
    watch(monkeypatch)
    with unwritten_is_nan():
        yield


def fused_steps(model, cache, mode, token, position):
    """Logits of `NEW` tokens, each chosen from those before; and the tokens."""
    decoder = FusedDecoder(model, cache, mode)
    logits, tokens = [], []
    for _ in range(NEW):
        tokens.append(token)
        logits.append(decoder(token, position))
        cache.advance()
        token = logits[-1].argmax(-1)
    return torch.stack(logits, 1), torch.stack(tokens, 1)


@torch.no_grad()
def assert_equals_the_general_path(model, ids, mask=None, mode=MEMORY):
    use_kernels(model, "torch")
    with ahn.memory_off(model) if mode == WINDOW else contextlib.nullcontext():
        _, cache = prefill(model, ids, attention_mask=mask)
        other = cache.fork()
        position = cache.memory_layers[0].positions(cache.get_seq_length(), 1)[:, 0]
        got, tokens = fused_steps(model, other, mode, ids[:, -1], position)
        expected = torch.stack([prefill(model, token[:, None], cache)[0] for token in tokens.T], 1)
    assert_close(got, expected, 1e-5)
    for layer, twin in zip(cache.memory_layers, other.memory_layers):
        for name in BUFFERS if mode == MEMORY else BUFFERS[:2]:
            assert_close(twin.tensors()[name], layer.tensors()[name], 1e-5, name)


@pytest.mark.parametrize(("family", "cell"), SHIPPED_PAIRS[: len(SHIPPED)])
@pytest.mark.parametrize(("prompt", "batch"), [(18, 1), (40, 3)])
def test_a_fused_step_equals_the_general_path(family, cell, prompt, batch):
    """From below the budget to beyond it, and beyond; one row and several."""
    assert_equals_the_general_path(new_model(family, cell), random_ids(prompt, batch=batch))


@pytest.mark.parametrize("family", ADDED)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_family_needs_one_entry_of_the_table(family, batch, monkeypatch):
    model = added_base(family, monkeypatch)
    wake(ahn.attach(model, ahn.AHNConfig(window=16, num_sinks=4)))
    assert_equals_the_general_path(model, random_ids(40, batch=batch))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_large_residual_stream_in_float16(rows):
    x = (3e4 * torch.randn(rows, 64).clamp(-2, 2)).half()
    norm, weight = Norm(torch.full((64,), 8.0).half(), 1e-6), (0.1 * torch.randn(24, 64)).half()
    expected = F.rms_norm(x.double(), (64,), norm.weight.double(), norm.eps) @ weight.double().T
    got = norm_linear(x, norm, [Linear(weight[:16]), Linear(weight[16:])])
    assert_close(got.double(), expected, 2e-3)


def test_many_rows_are_mapped_by_one_product():
    x, norm = torch.randn(projection.BATCH + 1, 24), Norm(torch.randn(24), 1e-6)
    maps = [Linear(torch.randn(8, 24), torch.randn(8)), Linear(torch.randn(5, 24))]
    normed = F.rms_norm(x, (24,), norm.weight, norm.eps)
    expected = torch.cat([F.linear(normed, one.weight, one.bias) for one in maps], 1)
    assert_close(norm_linear(x, norm, maps), expected, 1e-5)
    assert_close(norm_linear(x, norm, maps[1:]), expected[:, 8:], 1e-5)


@pytest.mark.parametrize("batch", [1, 3, 18])
def test_long_rows_of_a_weight(batch, monkeypatch):
    """In a loop that asks ahead; the last block is not full."""
    monkeypatch.setattr(projection, "SHORT", 32)
    forms = {"output": (2, 16, 2, 4), "gated": (2, 16, 1, 4)}
    monkeypatch.setitem(projection.FORMS, "long", forms)
    x, residual, other = torch.randn(batch, 72), torch.randn(batch, 90), torch.randn(90, 72)
    weight, norm = Linear(torch.randn(90, 72), torch.randn(90)), Norm(torch.randn(72), 1e-6)
    mapped = F.linear(x, weight.weight, weight.bias)
    assert_close(linear_add(x, weight, residual), residual + mapped, 1e-5)
    normed = F.rms_norm(x, (72,), norm.weight, norm.eps)
    expected = F.silu(normed @ weight.weight.T) * (normed @ other.T)
    assert_close(norm_swiglu(x, norm, Linear(weight.weight), Linear(other)), expected, 1e-5)


def test_padded_rows():
    _, ids, mask = left_padded((25, 9, 3))
    assert_equals_the_general_path(new_model("Mistral"), ids, mask)


def test_the_window_alone():
    assert_equals_the_general_path(new_model("Qwen3"), random_ids(40), mode=WINDOW)
