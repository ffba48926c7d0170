"""The chunk kernels in Triton's interpreter, float32: run by `test_interpreted_kernels`.

It is a process of its own because Triton decides once, when it is imported, who runs its kernels.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ahn.ops.chunk_scan import segments
from ahn.ops.delta_rule import chunk_delta_rule
from ahn.ops.delta_rule import triton as delta
from ahn.ops.layout import l2_normalize, repeat_heads
from ahn.ops.ssd import chunk_ssd
from ahn.ops.ssd import triton as state_space
from tiny_models import assert_close
from triton_interpreter import mend_bfloat16, mend_indexing, unwritten_is_nan, watch

HEADS, GROUPS = 4, 2
RULES = ["delta_rule", "gated_delta_rule", "ssd"]
over_rules = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True)
def _watched_memory(monkeypatch):
    mend_indexing(monkeypatch)
    watch(monkeypatch)
    with unwritten_is_nan():
        yield


def inputs(length: int, dim: int, width: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """Raw queries and keys; heads that decay slowly and fast; some tokens write nothing."""
    keep = (torch.rand(batch, length, 1) < 0.9).float()
    speed = torch.tensor([0.001, 0.05, 1.0, 8.0])
    return {
        "query": 3 * torch.randn(batch, length, HEADS, dim),
        "key": 5 * torch.randn(batch, length, GROUPS, dim),
        "value": torch.randn(batch, length, GROUPS, width),
        "beta": torch.rand(batch, length, HEADS) * keep,
        "log_decay": -speed * torch.rand(batch, length, HEADS) * keep,
        "state": torch.randn(batch, HEADS, dim, width),
    }


def by_kernels(rule, query, key, value, beta, log_decay, state):
    if rule == "ssd":
        return state_space.ssd(query, key, value, log_decay, state, dt=beta, normalize=True)
    decay = None if rule == "delta_rule" else log_decay
    return delta.delta_rule(query, key, value, beta, decay, state, normalize=True, scale=0.3)


def by_pytorch(rule, query, key, value, beta, log_decay, state):
    query, key = l2_normalize(query), l2_normalize(key)
    if rule == "ssd":
        key, value = (repeat_heads(x, HEADS) for x in (key, value))
        return chunk_ssd(query, key * beta[..., None], value, log_decay, state)
    decay = None if rule == "delta_rule" else log_decay
    return chunk_delta_rule(0.3 * query, key, value, beta, decay, state)


def run(form, rule, arguments, dtype):
    """Output, final state and all gradients."""
    leaves = {name: x.to(dtype).detach().requires_grad_() for name, x in arguments.items()}
    output, final = form(rule, **leaves)
    (output.sin().sum() + final.sin().sum()).backward()
    gradients = {f"gradient of {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {"output": output.detach(), "final state": final.detach(), **gradients}


def assert_equal(rule, arguments):
    exact = run(by_pytorch, rule, arguments, torch.float64)
    got = run(by_kernels, rule, arguments, torch.float32)
    assert got.keys() == exact.keys()
    for name, expected in exact.items():
        assert got[name].dtype == torch.float32
        assert_close(got[name], expected, 5e-6, name)


@over_rules
@pytest.mark.parametrize("length", [1, 64, 130])
def test_kernels_equal_the_reference(rule, length):
    assert_equal(rule, inputs(length, 12, 20))


@over_rules
@pytest.mark.parametrize("count", [2, 5])
def test_segments_equal_the_whole_sequence(rule, count, monkeypatch):
    length = -(-5 // count)  # in chunks
    monkeypatch.setattr(segments, "_segment_counts", lambda *_: (-(-5 // length), length))
    assert_equal(rule, inputs(5 * 64 - 7, 12, 20, batch=1))


@over_rules
@pytest.mark.parametrize("sizes", [(16, 16), (80, 24), (24, 80)])
def test_head_sizes_may_be_any(rule, sizes, monkeypatch):
    monkeypatch.setattr(segments, "_segment_counts", lambda *_: (3, 1))
    assert_equal(rule, inputs(150, *sizes, batch=1))


@over_rules
def test_strides_are_followed(rule):
    arguments = inputs(70, 16, 16)
    for name in ("query", "key", "value", "beta", "log_decay"):
        x = arguments[name].transpose(1, 2)
        arguments[name] = torch.cat([x, x * torch.nan], 2).transpose(1, 2)[:, :70]
    assert not arguments["query"].is_contiguous()
    assert_equal(rule, arguments)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_computes_the_same_again(reentrant):
    arguments = inputs(70, 16, 16)

    def again(rule, **leaves):
        def of_tensors(*tensors):
            return by_kernels(rule, **dict(zip(leaves, tensors)))

        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(of_tensors, *leaves.values(), use_reentrant=reentrant)

    expected = run(by_kernels, "gated_delta_rule", arguments, torch.float32)
    for name, got in run(again, "gated_delta_rule", arguments, torch.float32).items():
        assert torch.equal(got, expected[name]), name


@over_rules
@torch.no_grad()
def test_without_a_state_it_starts_from_zeros(rule):
    arguments = inputs(70, 16, 16)
    zeros = {**arguments, "state": torch.zeros_like(arguments["state"])}
    for got, expected in zip(
        by_kernels(rule, **{**arguments, "state": None}), by_kernels(rule, **zeros)
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("rule", RULES[1:])
def test_the_decay_loses_little_in_half_precision(rule, monkeypatch):
    """Its gradient is a small difference of large sums, summed once more over all tokens."""
    mend_bfloat16(monkeypatch)
    arguments = {name: x.bfloat16().float() for name, x in inputs(200, 16, 16).items()}
    half = ("query", "key", "value")
    wanted = torch.randn(2, 200, HEADS, 16).bfloat16()
    found = []
    for form, dtype in ((by_pytorch, torch.float64), (by_kernels, torch.float32)):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in arguments.items()}
        given = (
            leaves
            if form is by_pytorch
            else {name: x.bfloat16() if name in half else x for name, x in leaves.items()}
        )
        output, _ = form(rule, **given)
        (output * wanted.to(output.dtype)).sum().backward()
        decay = leaves["log_decay"]
        found.append(torch.stack([decay.grad.sum((0, 1)), (decay.grad * decay).sum((0, 1))]))
    exact, got = (x.detach().double() for x in found)
    for head, error in enumerate((got - exact).norm(dim=0) / exact.norm(dim=0)):
        assert error < 0.06, (head, error)
