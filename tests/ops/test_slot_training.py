"""The forms for training: a mask over sets made in one go, and a gradient through the choice."""

from __future__ import annotations

import pytest
import torch

from ahn.ops.slots import attend_until, soft_slot_attention, visible_until
from ahn.ops.slots import parallel as parallel_module
from ahn.ops.window_attention import window_attention
from tiny_models import assert_close

BATCH, HEADS, GROUPS, DIM, LENGTH, WINDOW, SINKS = 2, 4, 2, 8, 75, 7, 3
SIZES = torch.tensor([5, 9])


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(parallel_module, "QUERIES", 32)


def tokens(requires_grad: bool = False):
    """Query, key, value and priorities of a text, in float64."""
    shapes = [(HEADS, LENGTH, DIM), (GROUPS, LENGTH, DIM), (GROUPS, LENGTH, DIM), (GROUPS, LENGTH)]
    made = [torch.randn(BATCH, *shape, dtype=torch.float64) for shape in shapes]
    return [x.requires_grad_(requires_grad) for x in made]


def evicted(t: int) -> range:
    return range(SINKS, t - WINDOW + 1)


def seen_by_definition(priority, sizes):
    """`[B, G, T, T]`: the window, the sinks, and of what has left the best."""
    i = torch.arange(LENGTH)
    seen = (i <= i[:, None]) & ((i > i[:, None] - WINDOW) | (i < SINKS))
    seen = seen.repeat(BATCH, GROUPS, 1, 1)
    for b in range(BATCH):
        for g in range(GROUPS):
            p = priority[b, g].tolist()
            for t in range(LENGTH):
                best = sorted(evicted(t), key=lambda x: (-p[x], x))[: int(sizes[g])]
                seen[b, g, t, best] = True
    return seen


def dense(query, key, value, weight):
    """Softmax attention in which a key of weight w counts w times."""
    key, value, weight = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (key, value, weight))
    scores = (query @ key.mT) * DIM**-0.5
    i = torch.arange(LENGTH)
    scores = (scores - scores.detach().amax(-1, keepdim=True)).masked_fill(i > i[:, None], -1e3)
    weight = scores.exp() * weight
    return weight / weight.sum(-1, keepdim=True) @ value


def until(end):
    i = torch.arange(LENGTH)
    return (i <= i[:, None]) & (i[:, None] < end[..., None, :])


@pytest.mark.parametrize("ties", [False, True])
def test_a_key_is_visible_while_it_is_chosen(ties):
    priority = tokens()[3].float()
    if ties:
        priority = priority.round()
    end = visible_until(priority, SIZES, WINDOW, SINKS)
    assert torch.equal(until(end), seen_by_definition(priority, SIZES))
    alike = visible_until(priority, 5, WINDOW, SINKS)
    assert torch.equal(alike, visible_until(priority, torch.tensor([5, 5]), WINDOW, SINKS))


def test_attention_is_that_of_the_mask():
    query, key, value, priority = tokens()
    end = visible_until(priority, SIZES, WINDOW, SINKS)
    expected = dense(query, key, value, seen_by_definition(priority, SIZES).double())
    assert_close(attend_until(query, key, value, end), expected, 1e-12)


def test_heads_that_see_all_or_their_window_alone():
    query, key, value, priority = tokens()
    end = visible_until(priority, torch.tensor([LENGTH, 0]), WINDOW, SINKS)
    out = attend_until(query, key, value, end).split(HEADS // GROUPS, dim=1)
    causal = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.float64).expand(BATCH, GROUPS, -1, -1)
    assert_close(out[0], dense(query, key, value, causal)[:, : HEADS // GROUPS], 1e-12)
    sinks = (key[:, :, :SINKS], value[:, :, :SINKS])
    near = window_attention(query, key, value, *sinks, window=WINDOW, start=0)
    assert_close(out[1], near[:, HEADS // GROUPS :], 1e-12)


def soft_by_definition(query, key, value, priority):
    """1[p > tau] + sigmoid(p - tau) - its value, tau the (M + 1)-th best that has left."""
    seen = seen_by_definition(priority.detach(), SIZES).double()
    weight = seen.clone()
    for b in range(BATCH):
        for g, size in enumerate(SIZES.tolist()):
            for t in range(LENGTH):
                left = list(evicted(t))
                if len(left) > size:
                    p = priority[b, g, left]
                    soft = (p - p.sort(descending=True).values[size]).sigmoid()
                    weight[b, g, t, left] = seen[b, g, t, left] + soft - soft.detach()
    return dense(query, key, value, weight)


def test_forwards_the_choice_is_hard_and_backwards_soft():
    given = tokens(requires_grad=True)
    query, key, value, priority = given
    options = {"sizes": SIZES, "window": WINDOW, "num_sinks": SINKS}
    out = soft_slot_attention(query, key, value, priority, **options)
    end = visible_until(priority.detach(), SIZES, WINDOW, SINKS)
    assert_close(out, attend_until(query, key, value, end), 1e-12)
    target = torch.randn_like(out)
    got = torch.autograd.grad((out * target).sum(), given)
    expected = torch.autograd.grad((soft_by_definition(*given) * target).sum(), given)
    for name, x, y in zip(("query", "key", "value", "priority"), got, expected):
        assert y.abs().max() > 1e-3
        assert_close(x, y, 1e-10, name)


def test_a_text_within_the_window_and_heads_without_slots_have_no_gradient_there():
    query, key, value, priority = tokens(requires_grad=True)
    for sizes, window in ((SIZES, LENGTH), (0, WINDOW), (LENGTH, WINDOW)):
        options = {"sizes": sizes, "window": window, "num_sinks": SINKS}
        out = soft_slot_attention(query, key, value, priority, **options)
        (gradient,) = torch.autograd.grad(out.square().sum(), priority)
        assert not gradient.any(), (sizes, window)


def test_a_useful_key_that_is_not_kept_is_drawn_in():
    """The gradient raises the one token that the last query asks for; raised, it is found."""
    query, key, value, priority = tokens()
    wanted = 20
    key[:, :, wanted] *= 3 / key[:, :, wanted].norm(dim=-1, keepdim=True)
    query[:, :, -1] = 3 * key[:, :, wanted].repeat_interleave(HEADS // GROUPS, 1)
    priority[:, :, wanted] = -2.0
    options = {"sizes": SIZES, "window": WINDOW, "num_sinks": SINKS}

    def loss(priority):
        out = soft_slot_attention(query, key, value, priority, **options)[:, :, -1]
        found = value[:, :, wanted].repeat_interleave(HEADS // GROUPS, 1)
        return (out - found).square().sum((1, 2))

    (gradient,) = torch.autograd.grad(loss(priority.requires_grad_()).sum(), priority)
    assert (gradient[..., wanted] < 0).all()
    raised = priority.detach().clone()
    raised[..., wanted] += 6
    assert (loss(raised) < 0.2 * loss(priority)).all()
