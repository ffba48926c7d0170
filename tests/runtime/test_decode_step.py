"""Law: a step whose places only the device knows equals one that the host counts."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ahn
from added_families import ADDED, added_base
from ahn.generation import prefill, stream
from ahn.hf.cache_argument import CACHE
from ahn.hf.families import FAMILIES
from ahn.runtime.decode_step import DecodeStep
from ahn.runtime.fused_decoder import fused_unsupported_reason
from tiny_models import (
    WINDOW,
    assert_close,
    left_padded,
    new_model,
    over_cells,
    random_ids,
    shared_model,
)

SETTINGS = ahn.AHNConfig(window=WINDOW, num_sinks=4)
BUFFERS = ("keys", "values", "write_inputs.gates", "states.recurrent_state")


class Replay:
    """What a captured graph does, without a GPU: the forward again, on the same tensors."""

    def __init__(self, step):
        self.step = step

    def replay(self):
        before = self.step.cache.get_seq_length()
        self.step.logits = self.step._run(self.step)
        assert self.step.cache.get_seq_length() == before, "a graph counts nothing on the host"


@pytest.fixture
def _graphs_without_gpu(monkeypatch):
    step = sys.modules["ahn.runtime.decode_step"]  # `ahn.attach` itself is the function
    monkeypatch.setattr(step, "graph_unsupported_reason", lambda model, cache: None)
    monkeypatch.setattr(DecodeStep, "_capture", lambda self: setattr(self, "graph", Replay(self)))


def test_no_graph_without_a_gpu():
    model = shared_model()
    _, cache = prefill(model, random_ids(30))
    for how in ("graph", "fused", "compile"):
        with pytest.raises(ValueError, match="expected all weights on one CUDA device, got cpu"):
            DecodeStep(model, cache, how)
    with pytest.raises(
        ValueError, match="step: expected one of auto, eager, graph, fused, compile"
    ):
        DecodeStep(model, cache, "fast")


@pytest.mark.slow
@over_cells
@pytest.mark.parametrize("prompt", [3, WINDOW + 4, 60])
@pytest.mark.usefixtures("_graphs_without_gpu")
@torch.no_grad()
def test_steps_on_the_device_alone_give_tokens_and_cache_of_counted_ones(cell, prompt):
    model, ids = shared_model("Qwen3", cell, dtype=torch.float64), random_ids(prompt, batch=2)
    caches = [ahn.AHNCache(model.config) for _ in range(2)]
    answers = [
        torch.stack(list(stream(model, ids, cache, max_new_tokens=40, step=how)), 1)
        for cache, how in zip(caches, ("eager", "graph"))
    ]
    assert torch.equal(*answers)
    for layer, other in zip(*(cache.memory_layers for cache in caches)):
        assert layer.seen == other.seen == prompt + 39
        for name in BUFFERS:
            assert_close(layer.tensors()[name], other.tensors()[name], 1e-12, name)


@over_cells
@pytest.mark.usefixtures("_graphs_without_gpu")
@torch.no_grad()
def test_padded_rows_and_a_reordered_cache(cell):
    """Rows below the budget and above it; the second answer needs a second graph."""
    model = shared_model("Qwen3", cell, dtype=torch.float64)
    _, ids, mask = left_padded((25, 9, 3))
    answers = []
    for how in ("eager", "graph"):
        cache, options = ahn.AHNCache(model.config), {"step": how, "max_new_tokens": 20}
        first = torch.stack(list(stream(model, ids, cache, attention_mask=mask, **options)), 1)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        more = first[[2, 0, 1], -1:]
        answers += [first, torch.stack(list(stream(model, more, cache, **options)), 1)]
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[1], answers[3])


@pytest.mark.usefixtures("_graphs_without_gpu")
@torch.no_grad()
def test_a_graph_notices_that_the_cache_went_on_without_it():
    model = shared_model(dtype=torch.float64)
    answers = []
    for how in ("eager", "graph"):
        _, cache = prefill(model, random_ids(40))
        step, token, tokens = DecodeStep(model, cache, how), random_ids(1)[0], []
        for number in range(24):
            if number == 10:
                prefill(model, random_ids(7, seed=5), cache)
            token = step(token).argmax(-1)
            tokens.append(token)
        answers.append(torch.stack(tokens))
    assert torch.equal(*answers)


@pytest.mark.usefixtures("_graphs_without_gpu")
@torch.no_grad()
def test_generate_decodes_by_steps(monkeypatch):
    """Samples, beams, padding and hidden states as without graphs."""
    model = new_model("Qwen3", dtype=torch.float64)
    _, ids, mask = left_padded((40, 12))
    used = []
    monkeypatch.setattr(Replay, "replay", _counted(Replay.replay, used))
    for options in (
        {"do_sample": False},
        {"num_beams": 3, "do_sample": False},
        {"do_sample": True, "top_k": 5},
        {"do_sample": False, "output_hidden_states": True},
    ):
        texts = []
        for disabled in (True, False):
            torch.manual_seed(1)
            settings = {"max_new_tokens": 15, "disable_compile": disabled, **options}
            texts.append(model.generate(ids, attention_mask=mask, **settings))
        assert torch.equal(*texts), options
        expected = "num_beams" not in options and "output_hidden_states" not in options
        assert bool(used) == expected, options
        used.clear()


def _counted(replay, used):
    def count(self):
        used.append(1)
        replay(self)

    return count


@pytest.mark.slow
@over_cells
@torch.no_grad()
def test_a_step_is_traced_whole_and_once_for_texts_of_any_length(cell):
    model = shared_model("Qwen3", cell)

    def step(token, cache, position):
        options = {"ahn_position": position, "use_cache": True}
        return model(input_ids=token, **{CACHE: cache}, **options).logits[:, -1]

    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=False)
    for length in (40, 41, 90):
        _, cache = prefill(model, random_ids(length))
        expected = prefill(model, random_ids(1, seed=3), cache.fork())[0]
        logits = compiled(random_ids(1, seed=3), cache, torch.tensor([length]))
        assert_close(logits, expected, 1e-5)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_layers_that_grow_cannot_be_captured(monkeypatch):
    graph_unsupported_reason = sys.modules["ahn.runtime.decode_step"].graph_unsupported_reason

    model = new_model(full_attention_layers=(0,))
    _, cache = prefill(model, random_ids(30))
    monkeypatch.setattr(type(model), "parameters", lambda self: iter([_OnCuda()]))
    assert "a memory in every layer" in graph_unsupported_reason(model, cache)


def _hook(module, args):
    return None


def _replace_map(model):
    linear = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(linear)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: None, "a CUDA device"),
        (lambda model: model.model.layers[1].mlp.register_forward_pre_hook(_hook), "no hooks"),
        (_replace_map, "plain linear maps, got Sequential"),
        (lambda model: model.lm_head.double(), "weights of one dtype"),
        (
            lambda model: setattr(model.model.layers[0].ahn.fn, "kernels", "torch"),
            "kernels='torch'",
        ),
        (lambda model: setattr(model.config, "hidden_act", "gelu"), "an MLP with SiLU, got gelu"),
    ],
)
def test_what_stops_a_fused_step_is_named(change, reason):
    model = new_model("Qwen3")
    change(model)
    assert reason in fused_unsupported_reason(model)


def test_hooks_of_the_decoder_are_its_own_but_those_of_others_are_not():
    model = new_model("Qwen3")
    attention = model.model.layers[0].self_attn
    handle = attention.register_forward_pre_hook(_hook)
    reason = fused_unsupported_reason(model)
    assert reason == "no hooks, got a forward pre-hook on Qwen3Attention"
    handle.remove()
    model.model.norm.register_forward_hook(lambda *_: None)
    reason = fused_unsupported_reason(model)
    assert reason == "no hooks, got a forward hook on Qwen3RMSNorm"


@pytest.mark.parametrize("family", ADDED)
def test_an_entry_makes_a_family_known_to_the_fused_step(family, monkeypatch):
    stranger = ahn.attach(ADDED[family][1](), SETTINGS)
    reason = f"layers of {', '.join(FAMILIES)}, got {family}DecoderLayer"
    assert fused_unsupported_reason(stranger) == reason
    known = ahn.attach(added_base(family, monkeypatch), SETTINGS)
    assert "a CUDA device" in fused_unsupported_reason(known)


@pytest.mark.parametrize("settings", [{"use_q_proj": True}, {"use_router": True}])
def test_cells_that_a_fused_step_does_not_know(settings):
    assert "without router and query map" in fused_unsupported_reason(new_model(**settings))


class _OnCuda:
    device = torch.device("cuda:0")
