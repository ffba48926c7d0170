"""The planner: its bytes are the measured ones, its operations those of a counter, ratios known."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ahn
from ahn.bench.models import config_of
from ahn.cost import bounded_pairs
from ahn.generation import prefill
from ahn.hf.cache_argument import CACHE
from ahn.planning import GPUS, Decoder, Gpu, plan
from ahn.planning.costs import METHODS, cache_nbytes, mixer_flops, prefill_flops
from ahn.planning.decoder import held_bytes
from commands import call, error
from tiny_models import MIXED, RECURRENT, base_model, random_ids, wake

WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 16}
SETTINGS = {
    "GatedDeltaNet": {},
    "DeltaNet": {},
    "Mamba2": {},
    "Slots": {"memory": None, "slots": 8, "slot_bits": 4},
    "both": {"memory": "GatedDeltaNet", "slots": 8},
    "shares": {"memory": "DeltaNet", "window_shares": (0.25, 0.75)},
}


def settings_of(name, window=16):
    own = SETTINGS[name]
    memory = own.get("memory", name)
    rest = {k: v for k, v in own.items() if k != "memory"}
    return ahn.AHNConfig(memory=memory, window=window, num_sinks=4, **rest)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_bytes_are_those_of_a_cache(name):
    model, settings = base_model("Qwen3"), settings_of(name)
    decoder = Decoder.of(model.config, settings)
    ids = random_ids(60)
    past = getattr(model(ids, use_cache=True), "past_key_values")  # noqa: B009
    full = sum(x.nbytes for layer in past.layers for x in (layer.keys, layer.values))
    assert cache_nbytes(decoder, "full", 60, 4) == full
    assert decoder.parameters == sum(x.numel() for x in model.parameters())
    wake(ahn.attach(model, settings))
    _, cache = prefill(model, ids)
    assert cache_nbytes(decoder, "memory", 60, 4) == pytest.approx(cache.nbytes, rel=0.01)
    with ahn.memory_off(model):
        _, cache = prefill(model, ids)
    assert cache_nbytes(decoder, "window", 60, 4) == cache.nbytes
    everything = sum(x.numel() for x in model.parameters())
    assert decoder.parameters + decoder.memory_parameters == everything


@pytest.mark.parametrize("family", sorted(set(MIXED) - RECURRENT))
@torch.no_grad()
def test_layers_without_a_memory_count_as_they_are(family):
    model = base_model(family)
    settings = ahn.AHNConfig(window=16, num_sinks=4)
    decoder = Decoder.of(model.config, settings)
    wake(ahn.attach(model, settings))
    _, cache = prefill(model, random_ids(60))
    assert cache_nbytes(decoder, "memory", 60, 4) == pytest.approx(cache.nbytes, rel=0.01)


def token_by_token(model, ids, cache):
    """Read with a cache; None makes the base's own."""
    for token in ids.split(1, 1):
        cache = model(token, use_cache=True, **{CACHE: cache}).past_key_values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GatedDeltaNet", "Mamba2", "Slots"])
@torch.no_grad()
def test_operations_are_those_that_a_counter_finds(name):
    """Token by token, so that no operation is spent on what a mask hides."""
    model, settings = base_model(**WIDE), settings_of(name)
    decoder, ids = Decoder.of(model.config, settings), random_ids(40)
    wake(ahn.attach(model, settings))
    contexts = {"full": ahn.disabled, "window": ahn.memory_off, "memory": nullcontext}
    plain = partial(
        sdpa_kernel, SDPBackend.MATH
    )  # the counter does not know the CPU's fused attention
    for method in METHODS:
        with contexts[method](model), plain(), FlopCounterMode(display=False) as counter:
            token_by_token(model, ids, None if method == "full" else ahn.AHNCache(model.config))
        heads = 39 * 2 * decoder.head  # of every token, where the planner counts the last one's
        expected = prefill_flops(decoder, method, 40) + heads
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.02), method


PAPER = {"qwen2.5-3b": (46.7, 59.4, 26.0), "qwen2.5-14b": (49.7, 62.5, 25.9)}


@pytest.mark.parametrize("name", PAPER)
def test_ratios_are_the_papers(name):
    """Table 1 of arXiv 2510.07318: 128,000 tokens, a window of 32,768, embeddings as products."""
    length, layers = 128000, 2
    config = config_of(name)
    share = config.num_hidden_layers / layers
    config.num_hidden_layers = layers
    config.layer_types = config.layer_types[:layers]
    decoder = Decoder.of(config, ahn.AHNConfig(window=32768, num_sinks=0))
    mixers = {
        method: sum(mixer_flops(decoder, i, method, length) for i in range(layers))
        for method in ("full", "memory")
    }
    rest = sum(2 * layer.mlp * length for layer in decoder.layers)
    rest += 2 * 2 * decoder.head * length / share  # what goes in and what comes out
    mixer, model, cache = PAPER[name]
    assert 100 * mixers["memory"] / mixers["full"] == pytest.approx(mixer, abs=0.3)
    assert 100 * (mixers["memory"] + rest) / (mixers["full"] + rest) == pytest.approx(
        model, abs=0.3
    )
    # The paper takes four bytes for every number, and leaves out the gates that wait in the window.
    held = {method: cache_nbytes(decoder, method, length, 4) for method in mixers}
    gates = sum(32768 * held_bytes(layer.waiting, 4) for layer in decoder.layers)
    assert 100 * (held["memory"] - gates) / held["full"] == pytest.approx(cache, abs=0.1)


@pytest.fixture(scope="module")
def tiny():
    return Decoder.of(config_of("tiny"), ahn.AHNConfig(window=512, num_sinks=4))


def test_what_fits_fits_and_one_more_does_not(tiny):
    gpu = Gpu(64 * 2**20, 1e12, 1e14)
    made = plan(tiny, 8192, batch=2, gpu=gpu)
    free = int(gpu.nbytes * 0.95) - made.weights_nbytes - tiny.widest * 2048 * 2
    for method, costs in made.costs.items():
        assert costs.largest_batch * costs.nbytes <= free < (costs.largest_batch + 1) * costs.nbytes
        if (longest := costs.largest_length) is not None:
            assert 2 * cache_nbytes(tiny, method, longest) <= free
            assert 2 * cache_nbytes(tiny, method, longest + 1) > free
    assert made.costs["memory"].largest_length is None
    window = made.recommended_window
    for size, fits in ((window, True), (window + 256, window >= 8192 - 4 - 256)):
        other = replace(tiny, settings=tiny.settings.with_budget(window=size))
        assert (2 * cache_nbytes(other, "memory", 8192) <= free) == fits
    assert plan(tiny, 8192, batch=10**6, gpu=gpu).recommended_window is None


def test_bounds_are_of_the_rates(tiny):
    gpu = GPUS["4090"]
    costs = plan(tiny, 8192, batch=4, gpu=gpu).costs["full"]
    assert costs.prefill_seconds == 4 * costs.prefill_flops / gpu.flops
    assert costs.decode_seconds == costs.decode_nbytes / gpu.bandwidth
    assert costs.decode_nbytes > 4 * costs.nbytes
    assert bounded_pairs(3, 9) == 6


def test_smaller_weights_leave_more_room(tiny):
    weights = [
        plan(tiny, 64, dtype=x).weights_nbytes for x in ("float32", "bfloat16", "int8", "int4")
    ]
    assert weights == sorted(weights, reverse=True) and len(set(weights)) == 4
    assert weights[0] == 4 * (tiny.parameters + tiny.memory_parameters)


def test_the_command_prints_plan_and_picture(tmp_path):
    common = ("plan", "--model", "tiny", "--length", 4096, "--window", 256, "--num-sinks", 4)
    options = ("--gpu", "4090", "--vram", 1, "--dtype", "int4", "--dtype", "bfloat16")
    result = call(*common, *options, "--png", tmp_path / "plan.png", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [each["dtype"] for each in facts["plans"]] == ["int4", "bfloat16"]
    assert (tmp_path / "plan.png").read_bytes()[1:4] == b"PNG"
    shown = call(*common, "--vram", 1).stdout
    assert "take a window of 3,840 tokens" in shown and "cache of a text" in shown
    config = tmp_path / "config.json"
    config_of("tiny").to_json_file(config)
    again = json.loads(call(*common[:1], "--model", config, *common[3:], "--json").stdout)
    assert (
        again["plans"][0]["costs"]
        == json.loads(call(*common, "--json").stdout)["plans"][0]["costs"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "--model: expected qwen2.5-0.5b"),
        (["--model", "tiny", "--gpu", "abacus"], "gpu: expected one of b200, h200"),
        (["--model", "tiny", "--dtype", "int3"], "dtype: expected one of float32"),
        (["--model", "tiny", "--vram", "0"], "--vram: expected a number above 0"),
        (["--model", "tiny", "--memory", "Elman"], "memory: expected"),
        (["--model", "tiny", "--slots", "1", "--slot-bits", "5"], "slot_bits: expected 16, 8 or 4"),
        (["--model", "tiny", "--png", "no/such/x.png"], "--png: expected a file"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, message):
    assert message in error("plan", *arguments)


def test_layers_that_recur_are_refused():
    for family in RECURRENT:
        with pytest.raises(ValueError, match="plan: expected layers that attend, got linear_att"):
            Decoder.of(base_model(family).config, ahn.AHNConfig(window=16))
