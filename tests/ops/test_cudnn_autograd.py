"""Law: blocks of a sequence by cuDNN, with their gradients, equal the reference.

cuDNN runs on a GPU alone; here plain PyTorch takes its place, forward and backward.
"""

from __future__ import annotations

import pytest
import torch

from ahn.ops.window_attention import api, blocks, cudnn_autograd
from ahn.ops.window_attention.reference import blocked_window_attention
from ahn.training import Distiller, two_streams
from backend_rows import replace_reason
from tiny_models import assert_close, memory_parameters, new_model, random_ids


@pytest.fixture(autouse=True)
def _plain_blocks(monkeypatch):
    replace_reason(monkeypatch, "window_attention", "cudnn", fits)
    monkeypatch.setattr(cudnn_autograd, "attend", attend)
    monkeypatch.setattr(cudnn_autograd, "attend_backward", attend_backward)
    monkeypatch.setattr(cudnn_autograd, "merge_lse", merge_lse)
    monkeypatch.setattr(blocks, "reverse", reverse)


def fits(query, value, *, is_sequence=False, **options):
    return None if torch.is_grad_enabled() and is_sequence else "a sequence and its gradient"


def reverse(to, x, add=False):
    """As the kernel does it, which needs the numbers of a token to be contiguous."""
    assert to.shape == x.shape and all(y[0, 0].is_contiguous() for y in (to, x))
    to.copy_(to + x.flip(1) if add else x.flip(1))


def merge_lse(out, base, full, anticausal, with_lse):
    """Into `base`, as the kernel does it."""
    assert out is base.out and with_lse and (full is None or anticausal is None)
    part, lse = full or (x.flip(2) for x in anticausal)
    rows = slice(part.shape[2])
    merged = torch.logaddexp(base.lse[:, :, rows], lse)
    weight = (base.lse[:, :, rows] - merged).exp()[..., None]
    base.out[:, :, rows] = base.out[:, :, rows] * weight + part * (lse - merged).exp()[..., None]
    base.lse[:, :, rows] = merged


def scores_of(query, key, causal, scale):
    scores = query @ key.transpose(-1, -2) * scale
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf) if causal else scores


def attend(query, key, value, *, causal, scale):
    assert min(query.shape[1], key.shape[1]) > 1, "torch keeps single tokens from cuDNN"
    q, k, v = heads_first(query, key, value)
    scores = scores_of(q, k, causal, scale)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)[..., None]


def attend_backward(query, key, value, d_out, out, lse, *, causal, scale):
    """As cuDNN's: from the given log-sum-exp and output, whatever keys they are over."""
    assert all(x.is_contiguous() for x in (query, key, value, d_out, out, lse))
    q, k, v = heads_first(query, key, value)
    d_out, out, lse = (x.transpose(1, 2) for x in (d_out, out, lse))
    weights = (scores_of(q, k, causal, scale) - lse).exp()
    slope = weights * (d_out @ v.transpose(-1, -2) - (d_out * out).sum(-1, keepdim=True))
    by_query, by_key = slope @ k * scale, slope.transpose(-1, -2) @ q * scale
    by_value = weights.transpose(-1, -2) @ d_out
    groups = key.shape[2]
    by_key, by_value = (x.unflatten(1, (groups, -1)).sum(2) for x in (by_key, by_value))
    return tuple(x.transpose(1, 2) for x in (by_query, by_key, by_value))


def heads_first(query, key, value):
    repeat = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(repeat, 2) for x in (key, value))
    return (x.transpose(1, 2) for x in (query, key, value))


SIZES = [(s, w, t) for s in (0, 1, 5) for w in (1, 2, 7, 40) for t in (1, 4, 14, 33, 50)]
CASES = [(*case, 0) for case in SIZES] + [(s, w, t, s + w) for s, w, t in SIZES if s + w < t]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("sinks", "window", "length", "first"), CASES)
def test_output_and_gradients_equal_the_reference(sinks, window, length, first, batch):
    """Of all tokens, or of those beyond the budget."""

    def draw(heads, dim):  # in the order of a model's projections
        return torch.randn(batch, length, heads, dim, dtype=torch.float64).transpose(1, 2)

    leaves = [x.requires_grad_() for x in (draw(4, 12), draw(2, 12), draw(2, 8))]
    wanted = torch.randn(batch, 4, length - first, 8, dtype=torch.float64)
    found = []
    for run in (api.window_attention, reference):
        query, key, value = leaves
        query = query[:, :, first:]
        known = min(sinks, length)
        out = run(query, key, value, key[:, :, :known], value[:, :, :known], window=window, start=0)
        found.append([out, *torch.autograd.grad(out, leaves, wanted)])
    for ours, expected in zip(*found):
        assert_close(ours, expected, 1e-12)


def reference(*tensors, window, start):
    return blocked_window_attention(*tensors, window, start, None, 0.0)


@pytest.mark.parametrize(("length", "expected"), [(24576, 2), (24576 + 128, 5), (131072, 2)])
def test_a_sequence_of_any_length_takes_a_few_calls(length, expected):
    assert len(blocks.plan_calls(length, 2048, 0)) == expected


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_that_saves_attention_equals_one_that_does_not(rows, shares, monkeypatch):
    """Every layer's attention is computed once for the student, not twice."""
    monkeypatch.setattr(two_streams, "_may_share", lambda hidden: shares)
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return attend(*args, **kwargs)

    monkeypatch.setattr(cudnn_autograd, "attend", counted)
    ids = random_ids(50, batch=rows)
    found = []
    for saves in (False, True):
        monkeypatch.setattr(two_streams, "_has_room", lambda *_, saves=saves: saves)
        model = new_model(dtype=torch.float64)
        calls.clear()
        loss = Distiller(model)(ids, window=16, num_sinks=4).loss
        first = len(calls)
        loss.backward(retain_graph=saves)
        assert len(calls) == first * (1 if saves else 2)
        found.append({n: p.grad.clone() for n, p in memory_parameters(model).items()})
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name
    loss.backward()  # a second time: nothing is saved any longer
    assert len(calls) == 2 * first
    for name, parameter in memory_parameters(model).items():
        assert_close(parameter.grad, 2 * found[1][name], 1e-12, name)
