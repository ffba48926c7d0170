"""`ahn bench` on a tiny model: every method is measured, and bytes are those that are held."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ahn
from ahn.bench import build
from ahn.bench.models import filled_cache
from ahn.cli.bench.result import _command
from ahn.config import AHNConfig
from ahn.cost import (
    Shape,
    attended_pairs,
    cache_bytes,
    decode_bytes,
    prefill_flops,
    train_flops,
)
from ahn.training import Distiller, two_streams
from commands import call
from tiny_models import over_cells, random_ids, shared_model

TINY = ["--model", "tiny", "--num-sinks", "4", "--dtype", "float32"]
SMALL = [*TINY, "--window", "64"]
RUNS = {
    "prefill": [*TINY, "--lengths", "100,200", "--windows", "64,32", "--chunks", "50,64",
                "--repeats", "1"],
    "decode": [*SMALL, "--tokens", "300", "--steps", "eager", "--new-tokens", "8"],
    "batch": [*SMALL, "--tokens", "300", "--sizes", "1,3", "--new-tokens", "8"],
    "kernels": ["--tokens", "70", "--heads", "4", "--dim", "16", "--window", "64",
                "--prefill-chunk-size", "32", "--dtype", "float32"],
    "gradients": ["--tokens", "70", "--heads", "4", "--dim", "16", "--window", "32",
                  "--gradients", "--dtype", "float32"],
    "train": [*SMALL, "--lengths", "200,300", "--rows", "2", "--steps", "1"],
}  # fmt: skip
COMMANDS = {"gradients": "kernels"}
EXPECTED = {
    "prefill": 18, "decode": 3, "batch": 4, "kernels": 8, "gradients": 7, "train": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", RUNS)
def test_the_last_line_and_the_file_hold_every_row(what, tmp_path):
    out = tmp_path / "result.json"
    result = call(
        "bench", COMMANDS.get(what, what), *RUNS[what], "--device", "cpu", "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == json.loads(out.read_text())
    assert len(found["rows"]) == EXPECTED[what]
    assert {"command", "hardware", "torch", "transformers"} <= found.keys()
    for row in found["rows"]:
        speed = row.get("tokens_per_s") or row["ms"]
        assert speed > 0, row


@pytest.mark.parametrize("place", [["--out", "/a/b.json"], ["--out=/a/b.json"], []])
def test_the_command_that_is_noted_names_no_place(place):
    assert _command(["bench", "decode", *place, "--steps", "fused"]) == (
        "ahn bench decode --steps fused"
    )


def test_peers_may_be_left_out():
    result = call("bench", "kernels", *RUNS["kernels"], "--no-peers", "--device", "cpu")
    rows = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert len(rows) == EXPECTED["kernels"] - 1
    assert {row["by"] for row in rows} == {"ahn"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prefill", "--methods", "ahn,half"], "--methods: expected some of ahn, window, full"),
        (["prefill", "--lengths", "1k"], "--lengths: expected numbers >= 1 with commas"),
        (["prefill", *TINY, "--profile", "--device", "cpu"], "profile: expected a CUDA device"),
        (["decode", "--dtype", "int8"], "--dtype: expected bfloat16, float16 or float32"),
        (["decode", *SMALL, "--steps", "graph", "--device", "cpu"], "all weights on one CUDA"),
        (["train", *SMALL, "--lengths", "60", "--device", "cpu"], "budget of 68 tokens, got 60"),
        (["train", *SMALL, "--strategy", "fsdp3", "--device", "cpu"], "expected one of ddp, fsdp2"),
        (["train", *SMALL, "--strategy", "fsdp2", "--device", "cpu"], "expected GPUs, got a CPU"),
        (["train", *SMALL, "--profile", "--device", "cpu"], "profile: expected a CUDA device"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    result = call("bench", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@over_cells
@torch.no_grad()
def test_bytes_of_a_sequence_are_known_in_advance(cell):
    model = shared_model("Qwen3", cell)
    settings = AHNConfig.from_dict(model.config.ahn_config)
    memory = type(model.model.layers[0].ahn.fn)
    expected = cache_bytes(Shape.of(model.config), 10**6, settings, memory, number=4)
    cache = ahn.AHNCache(model.config)
    ahn.generation.prefill(model, random_ids(60, batch=3), cache)
    assert cache.nbytes == 3 * expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"slots": 8, "slot_bits": 4}, {"memory": None, "slots": 8}], ids=str
)
@torch.no_grad()
def test_a_filled_cache_is_as_large_as_a_read_one(settings):
    config = AHNConfig(window=64, num_sinks=4, **settings)
    bench = build("tiny", config, torch.device("cpu"), torch.float32)
    read = ahn.AHNCache(bench.model.config)
    ahn.generation.prefill(bench.model, torch.randint(512, (2, 100)), read)
    with filled_cache(bench, "ahn", 2, 100) as cache:
        assert (cache.nbytes, cache.get_seq_length()) == (read.nbytes, 100)
        kinds = [{k: x.dtype for k, x in y.layers[0].tensors().items()} for y in (cache, read)]
        assert kinds[0] == kinds[1]
        logits, _ = ahn.generation.prefill(bench.model, torch.randint(512, (2, 1)), cache)
        assert logits.isfinite().all()


def test_costs_by_hand():
    settings = AHNConfig(window=3, num_sinks=1)
    assert attended_pairs(4, settings) == attended_pairs(4, None) == 10
    assert attended_pairs(6, settings) == 10 + 2 * 4
    shape = Shape(1, hidden=8, intermediate=16, heads=2, groups=1, head_dim=4, vocabulary=10)
    weights = 2 * 8 * 4 * 3 + 3 * 8 * 16
    assert shape.weights_read == weights + 80
    scores, products, state = 4 * 2 * 4 * 18, 2 * weights * 6, 6 * 2 * 2 * 16
    assert prefill_flops(shape, 6, settings) == scores + products + state + 160
    assert decode_bytes(shape, 6, settings, batch=2) == 2 * (weights + 80) + 2 * (4 * 16 + 256)


class Products(TorchDispatchMode):
    """Counts the operations of matrix products and their shapes."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in ("aten::mm", "aten::addmm"):
            left, right = args[-2:]
            self.shapes[(*left.shape, right.shape[1])] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_computes_the_products_that_its_cost_counts(monkeypatch):
    """No gradient by a frozen weight, no layer's last product a second time, the head thrice."""
    monkeypatch.setattr(two_streams, "_may_share", lambda hidden: True)  # as on a GPU
    settings, length = AHNConfig(window=64, num_sinks=4), 512
    bench = build("tiny", settings, torch.device("cpu"), torch.float32)
    ids = torch.randint(512, (1, length))
    with Products() as found:
        Distiller(bench.model)(ids, ids, window=64, num_sinks=4).loss.backward()
    shape, counted = bench.shape, length - settings.budget
    # The cell's own products are by its heads, and cost next to nothing.
    of_base = {size: count for size, count in found.shapes.items() if shape.heads not in size}
    total = sum(2 * a * b * c * count for (a, b, c), count in of_base.items())
    pairs = 4 * 64 * (attended_pairs(length, None) + 3 * counted * settings.budget)
    state = 4 * 6 * counted * 64 * 16
    expected = train_flops(shape, length, settings, counted) - shape.layers * (pairs + state)
    first = 2 * 64 * (64 + 2 * 32) * counted  # nothing before the first layer wants a gradient
    assert total == expected - first
