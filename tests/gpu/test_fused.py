"""Law: the fused kernels equal the general path, and graphs equal eager steps."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from measures import DEVICE, difference, pair

import ahn
from ahn.generation import prefill, stream
from ahn.hf.install import use_kernels
from ahn.runtime.decode_step import DecodeStep
from slot_models import SHARES, slot_model
from tiny_models import (
    SHIPPED,
    WINDOW,
    assert_close,
    left_padded,
    new_model,
    over_cells,
    over_shipped,
    over_shipped_pairs,
    random_ids,
    read,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BUFFERS = ("keys", "values", "write_inputs.gates", "states.recurrent_state")


def decoded(model, ids, mask, tokens, mode):
    """Logits of the last tokens, one by one, and the cache they leave."""
    cache, length = ahn.AHNCache(model.config), ids.shape[1] - tokens
    off = ahn.memory_off(model) if mode == "window" else contextlib.nullcontext()
    with off:
        logits = read(model, ids, [length, *[1] * tokens], cache, mask)
    return logits[:, -tokens:], cache


def same_caches(cache, other):
    for layer, twin in zip(cache.memory_layers, other.memory_layers):
        assert layer.seen == twin.seen
        for name in BUFFERS:
            assert_close(layer.tensors()[name], twin.tensors()[name], 2e-5, name)


@over_shipped
@pytest.mark.parametrize("settings", [{}, {"use_q_proj": True}], ids=["plain", "q_proj"])
@pytest.mark.parametrize("mode", ["memory", "window"])
@torch.no_grad()
def test_a_decoding_step_equals_the_general_path(cell, settings, mode):
    """Rows that are full, filling, and all but empty; heads of 24, no power of two."""
    _, ids, mask = left_padded((60, 25, 16))
    runs = [
        decoded(model, ids.to(DEVICE), mask.to(DEVICE), 12, mode)
        for model in pair(cell, **settings)
    ]
    (ours, cache), (expected, reference) = runs
    assert_close(ours, expected, 2e-5)
    for layer, other in zip(cache.memory_layers, reference.memory_layers):
        for name in BUFFERS if mode == "memory" else BUFFERS[:2]:
            assert_close(layer.tensors()[name], other.tensors()[name], 2e-5, name)


@over_shipped
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_decoding_errs_no_more_than_the_general_path(cell, dtype):
    ids = random_ids(80, batch=2).to(DEVICE)
    exact = decoded(new_model("Qwen3", cell, dtype=torch.float64).to(DEVICE), ids, None, 20, "")[0]
    ours, general = (decoded(model.to(dtype), ids, None, 20, "")[0] for model in pair(cell))
    assert difference(ours, exact) <= 1.5 * difference(general, exact) + 2**-9


@over_cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_graphs_give_the_tokens_of_eager_steps(cell, dtype):
    model = new_model("Qwen3", cell, dtype=dtype).to(DEVICE)
    ids = random_ids(50, batch=3).to(DEVICE)
    answers = {
        step: torch.stack(list(stream(model, ids, max_new_tokens=40, step=step)), 1)
        for step in ("eager", "graph")
    }
    assert torch.equal(answers["graph"], answers["eager"])


@over_shipped_pairs
@torch.no_grad()
def test_fused_steps_give_the_tokens_and_the_cache_of_eager_ones(family, cell):
    """In float32; one row and several, from prompts below the budget, at it, and beyond."""
    model = new_model(family, cell).to(DEVICE)
    for prompt, batch in ((3, 1), (WINDOW + 4, 3), (50, 1), (50, 3)):
        ids = random_ids(prompt, batch=batch).to(DEVICE)
        caches = [ahn.AHNCache(model.config) for _ in range(2)]
        answers = [
            torch.stack(list(stream(model, ids, cache, max_new_tokens=40, step=how)), 1)
            for cache, how in zip(caches, ("eager", "fused"))
        ]
        assert torch.equal(*answers)
        same_caches(*caches)
        generated = model.generate(ids, max_new_tokens=40, do_sample=False)
        assert torch.equal(generated[:, prompt:], answers[0])


@pytest.mark.parametrize(
    ("cell", "dtype"), [(cell, torch.bfloat16) for cell in SHIPPED] + [(SHIPPED[0], torch.float16)]
)
@torch.no_grad()
def test_half_precision_fused_steps_err_no_more_than_eager_ones(cell, dtype):
    """Both fed the same tokens, against float64."""
    for batch in (1, 20, 70):
        ids = random_ids(60, batch=batch).to(DEVICE)
        tokens = random_ids(30, batch, seed=7).to(DEVICE)
        logits = []
        for how, kind in (("eager", torch.float64), ("eager", dtype), ("fused", dtype)):
            model = new_model("Qwen3", cell, dtype=kind).to(DEVICE)
            _, cache = prefill(model, ids)
            step = DecodeStep(model, cache, how)
            logits.append(torch.stack([step(token).clone() for token in tokens.T]))
        exact, eager, fused = logits
        assert difference(fused, exact) <= 1.5 * difference(eager, exact) + 2**-9


@torch.no_grad()
def test_fused_steps_of_the_window_alone():
    model, ids = new_model("Qwen3").to(DEVICE), random_ids(50).to(DEVICE)
    with ahn.memory_off(model):
        answers = [
            torch.cat(list(stream(model, ids, max_new_tokens=40, step=how)))
            for how in ("eager", "fused")
        ]
    assert torch.equal(*answers)


@torch.no_grad()
def test_graphs_of_padded_rows_below_the_budget_and_after_a_change_of_the_cache():
    model = new_model("Qwen3").to(DEVICE)
    _, ids, mask = left_padded((12, 9, 3))
    ids, mask = ids.to(DEVICE), mask.to(DEVICE)
    caches = [ahn.AHNCache(model.config) for _ in range(3)]
    answers = []
    for cache, step in zip(caches, ("eager", "graph", "fused")):
        options = {"step": step, "max_new_tokens": 30}
        first = torch.stack(list(stream(model, ids, cache, attention_mask=mask, **options)), 1)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        more = first[[2, 0, 1], -1:]
        answers.append(
            torch.cat([first, *(t[:, None] for t in stream(model, more, cache, **options))], 1)
        )
    for answer, cache in zip(answers[1:], caches[1:]):
        assert torch.equal(answers[0], answer)
        same_caches(caches[0], cache)


@torch.no_grad()
def test_garbage_does_not_end_a_capture():
    """Among it the graph of an earlier step; and a step alone is freed at once."""
    model = new_model("Qwen2").to(DEVICE)
    token = random_ids(1)[0].to(DEVICE)

    def captured():
        _, cache = prefill(model, random_ids(50).to(DEVICE))
        step = DecodeStep(model, cache, "fused")
        step(token)
        return step

    gone = weakref.ref(captured())
    assert gone() is None
    garbage = captured()
    garbage(token)
    garbage.circle, step, run = garbage, captured(), DecodeStep._fused
    del garbage

    def run_and_collect(self):
        logits = run(self)
        if gc.isenabled():
            gc.collect()
        return logits

    step._run = run_and_collect
    assert torch.isfinite(step(token)).all() and step.graph is not None
    assert torch.isfinite(step(token)).all()
    assert gc.isenabled()


@torch.no_grad()
def test_a_graph_notices_that_the_cache_went_on_without_it():
    model = new_model("Qwen3").to(DEVICE)
    prompt, between = random_ids(40).to(DEVICE), random_ids(7, seed=5).to(DEVICE)
    answers = []
    for how in ("eager", "graph", "fused"):
        _, cache = prefill(model, prompt)
        step = DecodeStep(model, cache, how)
        token, tokens = prompt[:, -1], []
        for number in range(24):
            if number == 10:
                prefill(model, between, cache)
            token = step(token).argmax(-1)
            tokens.append(token)
        answers.append(torch.stack(tokens))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_generate_searches_beams_as_without_graphs():
    model, ids = new_model("Qwen3").to(DEVICE), random_ids(50).to(DEVICE)
    options = {"num_beams": 3, "max_new_tokens": 20, "do_sample": False}
    expected = model.generate(ids, disable_compile=True, **options)
    assert torch.equal(model.generate(ids, **options), expected)


SLOTS = [
    {"slots": 8},
    {"slots": 40, "slot_shares": SHARES, "slot_bits": 4},
    {"slots": 300, "slot_bits": 8, "memory": "GatedDeltaNet"},
    {"slots": 5, "slot_shares": ((0.0, 0.0), (0.25, 0.75)), "memory": "Mamba2"},
    {"slots": 6, "memory": "DeltaNet", "slot_shares": ((0.0, 0.0), (0.9, 0.1))},
]


@pytest.mark.parametrize("settings", SLOTS, ids=str)
@torch.no_grad()
def test_steps_with_slots_give_the_tokens_and_the_cache_of_pytorch_alone(settings):
    """The model's own forward, a graph of it, and fused steps; insertion is a part of all three."""
    model = slot_model(dtype=torch.float32, **settings).to(DEVICE)
    for prompt, batch in ((3, 1), (WINDOW + 4, 3), (50, 1), (50, 3)):
        ids = random_ids(prompt, batch=batch).to(DEVICE)
        use_kernels(model, "torch")
        cache = ahn.AHNCache(model.config)
        expected = torch.stack(list(stream(model, ids, cache, max_new_tokens=40, step="eager")), 1)
        use_kernels(model, "auto")
        for how in ("eager", "graph", "fused"):
            other = ahn.AHNCache(model.config)
            steps = stream(model, ids, other, max_new_tokens=40, step=how)
            assert torch.equal(torch.stack(list(steps), 1), expected), how
            for layer, twin in zip(cache.memory_layers, other.memory_layers):
                held = twin.tensors()
                for name, tensor in layer.tensors().items():
                    if tensor.dtype != torch.uint8:  # a code may be one more or less
                        assert_close(held[name].double(), tensor.double(), 2e-4, f"{how} {name}")


@pytest.mark.parametrize("settings", SLOTS, ids=str)
@torch.no_grad()
def test_half_precision_steps_with_slots_err_no_more_than_pytorch(settings):
    """Over several texts, since in each a near tie may keep another token in a slot."""
    errors = torch.zeros(2)
    for seed in range(6):
        ids = random_ids(60, batch=2, seed=seed).to(DEVICE)
        tokens, logits = random_ids(30, batch=2, seed=70 + seed).to(DEVICE), []
        for dtype, kernels in ((torch.float64, "torch"), (torch.bfloat16, "torch"), (None, "auto")):
            model = slot_model(dtype=dtype or torch.bfloat16, **settings).to(DEVICE)
            use_kernels(model, kernels)
            _, cache = prefill(model, ids)
            step = DecodeStep(model, cache, "eager" if kernels == "torch" else "fused")
            logits.append(torch.stack([step(token).clone() for token in tokens.T]))
        exact, *others = logits
        errors += torch.tensor([difference(x, exact) for x in others])
    general, fused = errors.tolist()
    assert fused <= 1.3 * general
