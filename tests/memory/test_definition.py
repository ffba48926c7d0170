"""The first layer against an independent reading of the paper: dense mask, loop over tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from tiny_models import COMMON, WINDOW, assert_close, random_ids, shared_model

LENGTH, HEADS, DIM = 60, COMMON["num_attention_heads"], 16


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def delta_net(fn, q, k, v, writer, reader, state, decay=1.0):
    q, k, beta = unit(q) / math.sqrt(DIM), unit(k), torch.sigmoid(fn.b_proj(writer))
    state = decay * state
    error = v - torch.einsum("hk,hkv->hv", k, state)
    state = state + torch.einsum("hk,hv->hkv", k, beta[:, None] * error)
    read = rms_norm(torch.einsum("hk,hkv->hv", q, state), fn.o_norm.weight)
    return read * F.silu(fn.g_proj(reader))[:, None], state


def gated_delta_net(fn, q, k, v, writer, reader, state):
    log_decay = -torch.exp(fn.A_log) * F.softplus(fn.a_proj(writer) + fn.dt_bias)
    return delta_net(fn, q, k, v, writer, reader, state, torch.exp(log_decay)[:, None, None])


def mamba2(fn, q, k, v, writer, reader, state):
    dt = F.softplus(fn.dt_proj(writer) + fn.dt_bias)
    decay = torch.exp(-torch.exp(fn.A_log) * dt)
    written = torch.einsum("h,hk,hv->hkv", dt, unit(k), v)
    state = decay[:, None, None] * state + written
    read = torch.einsum("hk,hkv->hv", unit(q), state) * F.silu(fn.g_proj(reader))[:, None]
    return rms_norm(read.flatten(), fn.norm.weight).view(HEADS, DIM), state


DEFINITIONS = {"GatedDeltaNet": gated_delta_net, "DeltaNet": delta_net, "Mamba2": mamba2}


def expected_of_first_layer(model, cell, ids, num_sinks, router=None):
    """What o_proj of layer 0 is given, `[T, H, V]`."""
    layer = model.model.layers[0]
    attention, fn = layer.self_attn, layer.ahn.fn
    embedded = model.model.embed_tokens(ids)
    hidden = layer.input_layernorm(embedded)
    q, k, v = (
        projection(hidden).view(1, LENGTH, -1, DIM).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    rope = model.model.rotary_emb(embedded, torch.arange(LENGTH)[None])
    own = q if fn.q_proj is None else torch.einsum("bhti,hio->bhto", q, fn.q_proj.weight)
    q, k_rotated = apply_rotary_pos_emb(q, k, *rope)
    own = apply_rotary_pos_emb(own, k, *rope)[0]
    k, v = (x.repeat_interleave(HEADS // k.shape[1], 1) for x in (k_rotated, v))
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    visible = (j <= i) & ((i - j < WINDOW) | (j < num_sinks))
    scores = (q @ k.mT / math.sqrt(DIM)).masked_fill(~visible, -math.inf)
    out = (scores.softmax(-1) @ v)[0].transpose(0, 1).clone()
    state = torch.zeros(HEADS, DIM, DIM, dtype=out.dtype)
    for t in range(num_sinks + WINDOW, LENGTH):
        e = t - WINDOW
        arguments = (own[0, :, t], k[0, :, e], v[0, :, e], hidden[0, e], hidden[0, t])
        read, state = DEFINITIONS[cell](fn, *arguments, state)
        read = torch.einsum("hi,hio->ho", read, fn.o_proj.weight)
        out[t] += read if router is None else read * router(e - num_sinks + 1)
    return out


@pytest.mark.parametrize("cell", DEFINITIONS)
@pytest.mark.parametrize("num_sinks", [0, 4])
@pytest.mark.parametrize("use_q_proj", [False, True])
@torch.no_grad()
def test_the_first_layer(cell, num_sinks, use_q_proj):
    options = {"num_sinks": num_sinks, "dtype": torch.float64, "use_q_proj": use_q_proj}
    model, ids = shared_model("Qwen2", cell, **options), random_ids(LENGTH)
    expected = expected_of_first_layer(model, cell, ids, num_sinks)
    assert_close(first_layer(model, ids), expected.flatten(1), 1e-12)


@torch.no_grad()
def test_the_router_counts_what_is_written():
    """Scale of the r-th reader: sigmoid(alpha log(r / window) + beta), one for each head."""
    model = shared_model(dtype=torch.float64, use_router=True)
    weights, ids = model.model.layers[0].ahn_router, random_ids(LENGTH)

    def router(count):
        ratio = torch.tensor(count / WINDOW, dtype=torch.float64).log()
        return torch.sigmoid(weights.alpha * ratio + weights.beta)[:, None]

    expected = expected_of_first_layer(model, "GatedDeltaNet", ids, 4, router)
    assert_close(first_layer(model, ids), expected.flatten(1), 1e-6)


def first_layer(model, ids):
    given = []
    handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda _, arguments: given.append(arguments[0])
    )
    try:
        model(ids, use_cache=False)
    finally:
        handle.remove()
    return given[0][0]
