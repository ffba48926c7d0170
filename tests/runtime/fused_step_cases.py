"""The fused step in Triton's interpreter, float32: run by `test_interpreted_step`.

It is a process of its own because Triton decides once, when it is imported, who runs its kernels.
`pytest -m ""` runs those cases too that are marked slow: with others they differ by one row alone.
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
from ahn.memory import Slots
from ahn.ops import dependent_launch
from ahn.ops.decoding import launch as decoding
from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu
from ahn.ops.gemv import launch as projection
from ahn.runtime.fused_decoder import FusedDecoder, fused_unsupported_reason
from backend_rows import replace_reason
from slot_models import SHARES, slot_model
from tiny_models import (
    SHIPPED,
    SHIPPED_PAIRS,
    assert_close,
    base_model,
    left_padded,
    new_model,
    random_ids,
    wake,
)
from triton_interpreter import mend_indexing, unwritten_is_nan, watch

NEW = 5  # tokens
DECODED = []  # model and cache whose tensors a kernel finds in a table
SLOTS = [
    {"slots": 8},
    {"slots": 9, "slot_shares": SHARES, "slot_bits": 4},
    {"slots": 70, "slot_bits": 8, "memory": "GatedDeltaNet"},
    {"slots": 5, "slot_shares": ((0.0, 0.0), (0.25, 0.75)), "memory": "Mamba2"},
    {"slots": 6, "slot_shares": ((0.0, 0.0), (0.9, 0.1))},
]


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    monkeypatch.setattr(dependent_launch, "launch_options", lambda *_: {"PDL": False})
    monkeypatch.setattr(decoding, "_multiprocessors", lambda device: 2)
    for op in ("fused_decoding", "gemv"):
        replace_reason(monkeypatch, op, "triton", lambda *_, **__: None)
    mend_indexing(monkeypatch)
    DECODED.clear()
    watch(monkeypatch, lambda: in_table(*DECODED) if DECODED else [])
    with unwritten_is_nan():
        yield


def in_table(model, cache):
    """Tensors of a cache, and what was made once for its slots."""
    tensors = [x for layer in cache.memory_layers for x in layer.tensors().values()]
    for slots in (x for x in model.modules() if isinstance(x, Slots)):
        tensors += [slots.rate, slots.rows.first(slots.rate.device)]
    return tensors


def fused_steps(model, cache, mode, token, position):
    """Logits of `NEW` tokens, each chosen from those before; and the tokens."""
    decoder = FusedDecoder(model, cache, mode)
    DECODED[:] = [model, cache]
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
        cache.reserve()  # as a step does: its buffers stay where they are
        other = cache.fork()
        position = cache.memory_layers[0].positions(cache.get_seq_length(), 1)[:, 0]
        got, tokens = fused_steps(model, other, mode, ids[:, -1], position)
        expected = torch.stack([prefill(model, token[:, None], cache)[0] for token in tokens.T], 1)
    assert_close(got, expected, 1e-5)
    for layer, twin in zip(cache.memory_layers, other.memory_layers):
        for name, expected in layer.tensors().items():
            if mode == MEMORY or name in ("keys", "values"):
                assert_close(twin.tensors()[name].double(), expected.double(), 1e-5, name)


@pytest.mark.parametrize(("family", "cell"), SHIPPED_PAIRS[: len(SHIPPED)])
@pytest.mark.parametrize(("prompt", "batch"), [(18, 1), (40, 3)])
def test_a_fused_step_equals_the_general_path(family, cell, prompt, batch):
    """From below the budget to beyond it, and beyond; one row and several."""
    assert_equals_the_general_path(new_model(family, cell), random_ids(prompt, batch=batch))


@pytest.mark.parametrize("family", ADDED)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_family_needs_one_entry_of_the_table(family, batch, monkeypatch):
    model = added_base(family, monkeypatch)
    wake(ahn.attach(model, ahn.AHNConfig(window=16, num_sinks=4)))
    assert_equals_the_general_path(model, random_ids(40, batch=batch))


@pytest.mark.parametrize(("family", "batch"), [("Qwen3Moe", 1), ("Mixtral", 2)])
def test_experts_run_their_own_way(family, batch):
    """Beside layers whose MLP is dense, where the family has them."""
    sizes = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2}
    sizes |= {"moe_intermediate_size": 40}
    mixed = {} if family == "Mixtral" else {"mlp_only_layers": [1]}
    model = base_model(family, sliding_window=None, **sizes, **mixed)
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


@pytest.mark.parametrize("settings", SLOTS, ids=str)
@pytest.mark.parametrize(
    ("prompt", "batch"), [pytest.param(18, 1, marks=pytest.mark.slow), (40, 3)]
)
def test_slots_are_filled_and_read(settings, prompt, batch):
    model = slot_model(dtype=torch.float32, window=16, **settings)
    assert fused_unsupported_reason(model) is None
    assert_equals_the_general_path(model, random_ids(prompt, batch=batch))


def test_slots_of_padded_rows():
    _, ids, mask = left_padded((40, 18, 3))
    model = slot_model(dtype=torch.float32, window=16, slots=6, memory="DeltaNet")
    assert_equals_the_general_path(model, ids, mask)


@pytest.mark.parametrize("settings", SLOTS, ids=str)
@torch.no_grad()
def test_a_layer_with_slots_is_fused_in_the_models_own_forward(settings, monkeypatch):
    model = slot_model(dtype=torch.float32, window=16, **settings)
    use_kernels(model, "torch")
    _, cache = prefill(model, random_ids(40, batch=2))
    other, tokens, fused = cache.fork(), random_ids(NEW, batch=2, seed=5), []
    expected = [prefill(model, token[:, None], cache)[0] for token in tokens.T]
    use_kernels(model, "auto")
    run = decoding.fused_decoding
    monkeypatch.setattr(decoding, "fused_decoding", lambda *a: fused.append(1) or run(*a))
    got = [prefill(model, token[:, None], other)[0] for token in tokens.T]
    assert len(fused) == NEW * len(model.model.layers)
    assert_close(torch.stack(got), torch.stack(expected), 1e-5)
    for layer, twin in zip(cache.memory_layers, other.memory_layers):
        for name, tensor in layer.tensors().items():
            assert_close(twin.tensors()[name].double(), tensor.double(), 1e-5, name)
