"""Law: blocks of a whole text, with their gradients, equal the reference.

cuDNN runs on a GPU alone; here plain PyTorch stands in for it, forward and backward.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ahn.ops.window_attention import api
from ahn.ops.window_attention import cudnn_autograd as gradient
from ahn.ops.window_attention.reference import blocked_window_attention
from ahn.training import Distiller, two_streams
from backend_rows import replace_reason
from tiny_models import assert_close, memory_parameters, new_model, random_ids


@pytest.fixture(autouse=True)
def _plain_blocks(monkeypatch):
    replace_reason(monkeypatch, "window_attention", "cudnn", fits)
    monkeypatch.setattr(gradient, "attend", attend)
    monkeypatch.setattr(gradient, "attend_backward", attend_backward)
    monkeypatch.setattr(gradient, "merge_lse", merge_lse)
    monkeypatch.setitem(
        sys.modules, "ahn.ops.window_attention.reverse", SimpleNamespace(reverse=reverse)
    )


def fits(query, value, *, is_sequence=False, **options):
    return None if torch.is_grad_enabled() and is_sequence else "a sequence and its gradient"


def reverse(to, x, add=False):
    """As the kernel does it, that asks for a token's numbers one after the other."""
    assert to.shape == x.shape and all(y[0, 0].is_contiguous() for y in (to, x))
    to.copy_(to + x.flip(1) if add else x.flip(1))


def merge_lse(out, near, shared, far, with_lse):
    """Into `near`, as the kernel does it."""
    assert out is near.out and with_lse and (shared is None or far is None)
    part, lse = shared or (x.flip(2) for x in far)
    rows = slice(part.shape[2])
    whole = torch.logaddexp(near.lse[:, :, rows], lse)
    share = (near.lse[:, :, rows] - whole).exp()[..., None]
    near.out[:, :, rows] = near.out[:, :, rows] * share + part * (lse - whole).exp()[..., None]
    near.lse[:, :, rows] = whole


def scores_of(query, key, causal, scale):
    scores = query @ key.transpose(-1, -2) * scale
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf) if causal else scores


def attend(query, key, value, *, causal, scale):
    assert min(query.shape[1], key.shape[1]) > 1, "torch keeps single tokens from cuDNN"
    q, k, v = heads_first(query, key, value)
    scores = scores_of(q, k, causal, scale)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)[..., None]


def attend_backward(query, key, value, gradient, out, lse, *, causal, scale):
    """As cuDNN's: from the given log-sum-exp and output, whatever keys they are of."""
    assert all(x.is_contiguous() for x in (query, key, value, gradient, out, lse))
    q, k, v = heads_first(query, key, value)
    gradient, out, lse = (x.transpose(1, 2) for x in (gradient, out, lse))
    share = (scores_of(q, k, causal, scale) - lse).exp()
    slope = share * (gradient @ v.transpose(-1, -2) - (gradient * out).sum(-1, keepdim=True))
    by_query, by_key = slope @ k * scale, slope.transpose(-1, -2) @ q * scale
    by_value = share.transpose(-1, -2) @ gradient
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
def test_a_text_of_any_length_takes_a_few_calls(length, expected):
    assert len(gradient.pieces(length, 2048, 0)) == expected


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_that_keeps_attention_equals_one_that_does_not(rows, shares, monkeypatch):
    """Every layer's attention is computed once for the student, not twice."""
    monkeypatch.setattr(two_streams, "_may_share", lambda hidden: shares)
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return attend(*args, **kwargs)

    monkeypatch.setattr(gradient, "attend", counted)
    ids = random_ids(50, batch=rows)
    found = []
    for keeps in (False, True):
        monkeypatch.setattr(two_streams, "_has_room", lambda *_, keeps=keeps: keeps)
        model = new_model(dtype=torch.float64)
        calls.clear()
        loss = Distiller(model)(ids, window=16, num_sinks=4).loss
        first = len(calls)
        loss.backward(retain_graph=keeps)
        assert len(calls) == first * (1 if keeps else 2)
        found.append({n: p.grad.clone() for n, p in memory_parameters(model).items()})
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name
    loss.backward()  # a second time: nothing is kept any longer
    assert len(calls) == 2 * first
    for name, parameter in memory_parameters(model).items():
        assert_close(parameter.grad, 2 * found[1][name], 1e-12, name)
