"""Laws of the ops that kernels fuse: their PyTorch forms equal the modules and the general path."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import ahn
from ahn.layer import decode
from ahn.memory import build_memory
from ahn.ops.decoding import NewToken, QKTransform, Ring, fused_decoding
from ahn.ops.gated_mlp import gated_mlp
from ahn.ops.gated_norm import gated_norm, gated_norm_linear
from ahn.ops.gemv import Linear, Norm, linear_add, norm_linear, norm_swiglu
from tiny_models import assert_close, left_padded, new_model, over_shipped, read

BUFFERS = ("keys", "values", "write_inputs.gates", "states.recurrent_state")


@over_shipped
@pytest.mark.parametrize("settings", [{}, {"use_q_proj": True}], ids=["plain", "q_proj"])
@pytest.mark.parametrize("window_alone", [False, True])
@torch.no_grad()
def test_a_decoding_step_equals_the_general_path(cell, settings, window_alone, monkeypatch):
    """Rows that are full, filling, and all but empty."""
    model = new_model("Qwen3", cell, dtype=torch.float64, **settings)
    _, ids, mask = left_padded((60, 25, 16))
    calls, caches, logits = [], [], []

    def counted(*args, **kwargs):
        calls.append(kwargs["kernels"])
        return fused_decoding(*args, **kwargs)

    monkeypatch.setattr(decode, "fused_decoding", counted)
    for is_fused in (False, True):
        monkeypatch.setattr(decode, "_can_fuse", lambda *_, is_fused=is_fused: is_fused)
        cache = ahn.AHNCache(model.config)
        lengths = [ids.shape[1] - 12, *[1] * 12]
        if window_alone:
            with ahn.memory_off(model):
                logits.append(read(model, ids, lengths, cache, mask))
        else:
            logits.append(read(model, ids, lengths, cache, mask))
        caches.append(cache)
    assert len(calls) == 12 * len(model.model.layers), "the reference ran"
    assert_close(logits[1], logits[0], 1e-6)  # the state is float32
    for ours, other in zip(*(cache.memory_layers for cache in caches)):
        for name in BUFFERS[:2] if window_alone else BUFFERS:
            assert_close(ours.tensors()[name], other.tensors()[name], 1e-6, name)


@torch.no_grad()
def test_norm_and_rotation_of_the_new_token():
    """As transformers rotates: the second half of a head goes with the first."""
    dim, slots = 8, 5
    query, key, value = torch.randn(2, 4, 1, dim), *torch.randn(2, 2, 2, 1, dim).double()
    query = query.double()
    angle, weight = torch.randn(2, dim // 2).double(), torch.randn(2, dim).double()
    transform = QKTransform(angle.cos(), angle.sin(), *weight, eps=1e-6)

    def ready(x, weight):
        x = F.rms_norm(x, (dim,), weight, 1e-6)
        half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
        cos, sin = (torch.cat([y, y], -1)[:, None, None] for y in (angle.cos(), angle.sin()))
        return x * cos + half * sin

    given = (NewToken(query, key, value, transform=transform),)
    given += (NewToken(ready(query, weight[0]), ready(key, weight[1]), value),)
    keys, values = torch.randn(2, 2, 2, slots, dim).double()
    rings = []
    for _ in given:
        place = (torch.tensor([1]), torch.tensor([4]), torch.tensor([[True]]), 5)
        rings.append(Ring(keys.clone(), values.clone(), None, None, *place))
    ours, expected = (fused_decoding(token, ring, None) for token, ring in zip(given, rings))
    assert_close(ours, expected, 1e-12)
    assert_close(rings[0].keys, rings[1].keys, 1e-12)
    assert torch.equal(rings[0].values[:, :, 1], value[:, :, 0])


@over_shipped
@pytest.mark.parametrize("heads", [1, 3])
def test_norm_gate_and_map_are_those_of_the_cell(cell, heads):
    """Of one head too, where a norm over all heads has as many weights as a norm over each."""
    cell = build_memory(cell, 20, heads, 16).double()
    torch.nn.init.normal_(cell.o_proj.weight)
    spec, hidden = cell.spec(), torch.randn(2, 5, 20, dtype=torch.float64)
    read = torch.randn(2, 5, heads, 16, dtype=torch.float64, requires_grad=True)
    gate = cell.output_gate(hidden)
    expected = cell.gated_norm(read, hidden)
    assert_close(gated_norm(read, gate, spec, torch.float64), expected, 1e-12)
    mapped, expected = gated_norm_linear(read, gate, spec), cell.o_proj(expected)
    assert_close(mapped, expected, 1e-12)
    leaves, slope = [read, spec.norm, cell.g_proj.weight], torch.randn_like(expected)
    got, wanted = (
        torch.autograd.grad(x, leaves, slope, retain_graph=True) for x in (mapped, expected)
    )
    for ours, theirs in zip(got, wanted):
        assert_close(ours, theirs, 1e-12)


def test_a_gated_mlp_is_the_plain_product():
    names = {"gate_proj": (12, 40), "up_proj": (12, 40), "down_proj": (40, 12)}
    mlp = SimpleNamespace(**{n: torch.nn.Linear(*s, bias=False) for n, s in names.items()})
    x = torch.randn(2, 5, 12, requires_grad=True)
    expected = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    got = gated_mlp(x, mlp)
    assert_close(got, expected, 1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), [x, mlp.up_proj.weight]),
        torch.autograd.grad(expected.sum(), [x, mlp.up_proj.weight]),
    ):
        assert_close(ours, theirs, 1e-6)


def test_maps_of_a_new_token():
    x, norm = torch.randn(3, 24), Norm(torch.randn(24), 1e-6)
    maps = [Linear(torch.randn(8, 24), torch.randn(8)), Linear(torch.randn(8, 24))]
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * norm.weight
    mapped = [normed @ one.weight.T + (0 if one.bias is None else one.bias) for one in maps]
    assert_close(norm_linear(x, norm, maps), torch.cat(mapped, 1), 1e-5)
    gate, up = Linear(maps[0].weight), maps[1]
    expected = F.silu(normed @ gate.weight.T) * mapped[1]
    assert_close(norm_swiglu(x, norm, gate, up), expected, 1e-5)
    residual = torch.randn(3, 8)
    expected = residual + x @ maps[0].weight.T + maps[0].bias
    assert_close(linear_add(x, maps[0], residual.clone()), expected, 1e-5)
