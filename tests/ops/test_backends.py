"""One table of backends: one choice for every op, and a choice by name never falls back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ahn
from ahn import ops
from ahn.ops import backends
from ahn.ops.backends import Backend, check_kernels, choose, register, unsupported_reason
from ahn.ops.window_attention import Reach, SlotRows, chosen_backend
from backend_rows import replace_reason
from op_calls import flat, op_calls
from tiny_models import base_model, random_ids, read, wake

FAST = ["fla", "triton"]
CALLS = op_calls()
over_calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call[1])


def rows():
    """The whole table: every op's contract is imported."""
    for path in Path(ops.__file__).parent.glob("*/api.py"):
        import_module(f"ahn.ops.{path.parent.name}.api")
    return backends.registered_backends()


def test_every_op_has_pytorch_which_always_runs_and_comes_last():
    table = rows()
    names = [(row.op, row.name) for row in table]
    assert len(set(names)) == len(names)
    assert {op for op, _ in names} == {op for op, _ in CALLS}, "give a new op a line in op_calls"
    for op in {op for op, _ in names}:
        every = [row for row in table if row.op == op]
        assert len(every) > 1
        assert every[-1].name == "torch"
        assert unsupported_reason(op, "torch", "anything") is None
        assert all(row.priority > every[-1].priority for row in every[:-1])


@over_calls
@torch.no_grad()
def test_a_named_backend_that_cannot_run_is_refused_with_the_reason(call):
    named = [row.name for row in rows() if row.op == call[0] and row.name != "torch"]
    assert named
    for name in named:
        with pytest.raises(ValueError) as refusal:
            CALLS[call](name)
        assert str(refusal.value) == f"kernels='{name}': expected a CUDA device, got cpu"


@over_calls
@torch.no_grad()
def test_on_a_cpu_every_choice_that_an_op_does_not_know_is_auto_and_runs_pytorch(call):
    expected = flat(CALLS[call]("torch"))
    assert all(x.isfinite().all() for x in expected)
    unknown = [k for k in backends.KERNELS if k not in {r.name for r in rows() if r.op == call[0]}]
    assert "auto" in unknown
    for kernels in unknown:
        for got, wanted in zip(flat(CALLS[call](kernels)), expected):
            assert torch.equal(got, wanted), kernels
    with pytest.raises(ValueError, match="kernels: expected one of auto, torch, fla, triton"):
        CALLS[call]("cutlass")


def test_a_new_backend_is_chosen_by_priority_and_refused_by_reason(monkeypatch):
    monkeypatch.setattr(backends, "_TABLE", {})

    def small(size):
        return None if size < 10 else f"fewer than 10, got {size}"

    register(Backend("toy", "triton", 2, small))
    register(Backend("toy", "wood", 3, lambda size: None if size < 5 else "fewer than 5"))
    assert [row.name for row in backends.registered_backends()] == ["wood", "triton", "torch"]
    assert [choose("toy", "auto", size) for size in (1, 7, 50)] == ["wood", "triton", "torch"]
    assert choose("toy", "fla", 7) == "triton", "no backend of that name: as auto"
    assert choose("toy", "triton", 1) == "triton"
    assert choose("toy", "torch", 1) == "torch"
    assert unsupported_reason("toy", "wood", 7) == "fewer than 5"
    with pytest.raises(ValueError, match="kernels='triton': expected fewer than 10, got 50"):
        choose("toy", "triton", 50)
    with pytest.raises(ValueError, match=r"kernels: expected one of .*, got 'stone'"):
        choose("toy", "stone", 1)
    with pytest.raises(ValueError, match="toy: expected an unused backend name, got 'wood' again"):
        register(Backend("toy", "wood", 1, small))


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


def on_gpu(*shape, dtype=HALF, requires_grad=False):
    """What the reasons look at, of a tensor on a GPU."""
    device = torch.device("cuda")
    return SimpleNamespace(
        is_cuda=True, device=device, shape=shape, dtype=dtype, requires_grad=requires_grad
    )


HEADS = on_gpu(1, 9, 4, 64)
FAR = SlotRows(HEADS, HEADS, None, 1, 0, reach=Reach(torch.zeros(1)))
REFUSALS = [  # op, backend, inputs, options, reason
    ("delta_rule", "triton", (on_gpu(1, 9, 4, 64, dtype=SINGLE), HEADS), {"gated": False},
     "bfloat16, got float32 and bfloat16"),
    ("delta_rule", "triton", (HEADS, on_gpu(1, 9, 4, 512)), {"gated": False},
     "a head size of at most 256, got 512"),
    ("ssd", "triton", (HEADS, on_gpu(1, 9, 4, 64, dtype=torch.float16)), {"gated": False},
     "bfloat16, got bfloat16 and float16"),
    ("ssd", "fla", (HEADS, on_gpu(1, 9, 4, 64, dtype=SINGLE)), {"gated": False},
     "float16 or bfloat16, got float32"),
    ("ssd", "fla", (HEADS, on_gpu(1, 9, 4, 512)), {"gated": False},
     "a head size of at most 256, got 512"),
    ("window_attention", "cudnn", (HEADS, HEADS), {"dropout": 0.1}, "no dropout, got 0.1"),
    ("window_attention", "cudnn", (HEADS, on_gpu(1, 2, 9, 60)), {},
     "head sizes up to 256 in steps of 8, got 64 and 60"),
    ("window_attention", "cudnn", (on_gpu(1, 9, 4, 64, dtype=SINGLE), HEADS), {},
     "float16 or bfloat16, got float32"),
    ("window_attention", "cudnn", (HEADS, HEADS), {"start": torch.zeros(1)},
     "one start for all rows, got one for each row"),
    ("window_attention", "flash", (HEADS, HEADS), {"dropout": 0.1}, "no dropout, got 0.1"),
    ("window_attention", "flash", (HEADS, HEADS), {"exact_rows": FAR},
     "slots at any distance, got slot_distance"),
    ("window_attention", "cudnn", (HEADS, HEADS), {"exact_rows": object()},
     "slots as exact rows, got object"),
    ("window_attention", "cudnn", (HEADS, HEADS), {"exact_rows": FAR},
     "slots at any distance, got slot_distance"),
    ("fused_decoding", "triton", (HEADS, HEADS), {"slot_distance": 9},
     "slots at any distance, got slot_distance"),
    ("fused_decoding", "triton", (on_gpu(1, 4, 1, 50),) * 2, {"slot_bits": 4},
     "codes of slots whose scale is that of an even number of them, got 25"),
    ("window_attention", "cudnn", (HEADS, HEADS), {"sink_logits": object()},
     "no sink logits, got some"),
    ("fused_decoding", "triton", (HEADS, on_gpu(1, 4, 1, 32)), {},
     "keys and values of one size up to 256, got 64 and 32"),
    ("fused_decoding", "triton", (on_gpu(1, 4, 1, 64, dtype=DOUBLE), HEADS), {},
     "float16, bfloat16 or float32, got float64"),
    ("fused_decoding", "triton", (HEADS, HEADS), {"sink_logits": object()},
     "no sink logits, got some"),
    ("gated_norm", "triton", (on_gpu(1, 9, 100, 128),), {},
     "at most 8192 padded numbers a token, got 16384"),
    ("gated_norm_linear", "triton", (on_gpu(1, 9, 100, 128), on_gpu(100, 128, 128, dtype=SINGLE)),
     {}, "at most 8192 padded numbers a token, got 16384"),
    ("logit_losses", "triton", (on_gpu(9, 50, dtype=DOUBLE),), {},
     "float16, bfloat16 or float32, got float64"),
    ("gated_mlp", "triton", (on_gpu(9, 50), [on_gpu(50, 9, dtype=SINGLE)]), {},
     "bfloat16, got float32"),
    ("slot_choice", "triton", (on_gpu(1, 2, 70000, dtype=SINGLE),), {},
     "at most 65536 slots a head, got 70000"),
    ("slot_choice", "triton", (on_gpu(1, 2, 70, dtype=DOUBLE),), {}, "float32, got float64"),
    ("gemv", "triton", (on_gpu(9, 50, dtype=DOUBLE),), {},
     "float16, bfloat16 or float32, got float64"),
]  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 9.0 with everything installed."""
    monkeypatch.setattr(backends, "_INSTALLED", {"triton", "fla"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize(("op", "name", "inputs", "options", "reason"), REFUSALS)
@torch.no_grad()
def test_what_a_backend_cannot_run_is_named(gpu, op, name, inputs, options, reason):
    assert unsupported_reason(op, name, *inputs, **options) == reason
    with pytest.raises(ValueError, match=f"^kernels='{name}': expected {reason}$"):
        choose(op, name, *inputs, **options)
    assert choose(op, "auto", *inputs, **options) != name


def test_what_takes_no_gradient_is_named(gpu):
    trained = (on_gpu(9, 50), [on_gpu(50, 9, requires_grad=True)])
    assert unsupported_reason("gated_mlp", "triton", *trained).startswith("frozen weights")
    reason = unsupported_reason("window_attention", "cudnn", HEADS, HEADS)
    assert reason.startswith("no gradient, or a sequence from position 0 on")
    sequence = {"start": 0, "is_sequence": True}
    assert unsupported_reason("window_attention", "flash", HEADS, HEADS) == "no gradient"
    large, gated = on_gpu(1, 9, 4, 256), {"gated": False}
    reason = "heads of at most 128 where gradients are taken, got 256"
    assert unsupported_reason("window_attention", "cudnn", large, HEADS, **sequence) == reason
    reason = "a head size of at most 128, got 256"
    assert unsupported_reason("delta_rule", "triton", large, HEADS, **gated) == reason
    assert choose("window_attention", "auto", HEADS, HEADS, **sequence) == "cudnn"


@torch.no_grad()
def test_who_attends_where_cudnn_cannot(gpu, monkeypatch):
    def chosen(query, **options):
        return choose("window_attention", "auto", query, query, **options)

    large = on_gpu(1, 9, 4, 256)
    assert chosen(large) == "cudnn"
    sizes = {512: "flash", 4095: "flash", 4096: "cudnn"}
    assert {w: chosen_backend("auto", w, HEADS, HEADS) for w in sizes} == sizes
    assert chosen_backend("torch", 512, HEADS, HEADS) == "torch"
    assert chosen_backend("auto", 512, HEADS, HEADS, dropout=0.1) == "torch"
    assert chosen(HEADS, start=torch.zeros(1)) == "flash"
    assert chosen(on_gpu(1, 9, 4, 64, dtype=SINGLE)) == "flash"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert (chosen(HEADS), chosen(large)) == ("cudnn", "flash")


def test_what_every_kernel_needs_is_asked_once(gpu, monkeypatch):
    gated = {"gated": False}
    assert choose("delta_rule", "auto", HEADS, HEADS, **gated) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    least = "a device of compute capability 8.0 or more, got 7.5"
    assert unsupported_reason("delta_rule", "triton", HEADS, HEADS, **gated) == least
    assert unsupported_reason("window_attention", "cudnn", HEADS, HEADS) == least
    assert choose("delta_rule", "auto", HEADS, HEADS, **gated) == "fla"
    monkeypatch.setattr(backends, "_INSTALLED", set())
    for row in rows():
        if row.name not in ("torch", "fla"):
            inputs = next(case[2:4] for case in REFUSALS if case[:2] == (row.op, row.name))
            reason = row.unsupported_reason(*inputs[0], **inputs[1])
            assert reason == "triton to be installed", row
    reason = unsupported_reason("ssd", "fla", HEADS, HEADS, **gated)
    assert reason == "flash-linear-attention (pip install fla-core) to be installed"


def test_unknown_kernels_are_refused_when_attaching():
    known = "kernels: expected one of auto, torch, fla, triton"
    for name in ("cuda", "cudnn"):
        with pytest.raises(ValueError, match=f"{known}, got '{name}'"):
            check_kernels(name)
    with pytest.raises(ValueError, match=known):
        ahn.attach(base_model(), ahn.AHNConfig(), kernels="cutlass")


@pytest.mark.parametrize("kernels", FAST)
def test_the_choice_reaches_the_cells(kernels):
    model = ahn.attach(base_model(), ahn.AHNConfig(window=4, num_sinks=0), kernels=kernels)
    with pytest.raises(ValueError, match=f"kernels='{kernels}': expected a CUDA device"):
        model(torch.zeros(1, 9, dtype=torch.long))


@torch.no_grad()
def test_pytorch_alone_asks_no_other_backend_in_any_op_of_a_layer(monkeypatch):
    """A prompt in chunks and new tokens; under `auto` the others are asked first."""
    asked = set()
    for row in rows():
        if row.name != "torch":

            def ask(*inputs, row=row, **options):
                asked.add(row.op)
                return "another device"

            replace_reason(monkeypatch, row.op, row.name, ask)
    settings, ids = ahn.AHNConfig(window=8, num_sinks=2), random_ids(40)
    for kernels, expected in (
        ("torch", set()),
        ("auto", {"delta_rule", "window_attention", "fused_decoding"}),
    ):
        model = wake(ahn.attach(base_model(), settings, kernels=kernels))
        read(model, ids, [20, 17, 1, 1, 1])
        assert asked == expected, kernels
