"""Attention to sinks, window and slots over a whole text at once, as training needs it.

Column i is the token at position i of one text, without padding. All forms are plain PyTorch, cut
into blocks of queries; each block is computed again in the backward pass, so that memory grows with
the text and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ahn.ops.layout import repeat_heads
from ahn.ops.slots.api import choose
from ahn.ops.slots.choice import EMPTY

QUERIES = 256  # of a block
STEEPEST = 30.0  # of a sigmoid: beyond, its gradient is zero in float32
LARGEST_EXPONENT = 15.0  # of an unseen key against the seen ones: bounds a single gradient


def visible_until(priority: Tensor, sizes: Tensor | int, window: int, num_sinks: int) -> Tensor:
    """The first query that no longer sees each key, `[B, G, T]`; T where every later one does.

    Query t sees key i where `i <= t < visible_until[i]`: by its window, then while it is in a slot.

    Args:
        priority: `[B, G, T]`, of all tokens.
        sizes: slots of every key head, one number or `[G]`. With T of them a head sees all tokens,
            with 0 its window alone: so it is to ask which layers and heads look far.
    """
    length = priority.shape[-1]
    end = torch.arange(window, window + length, device=priority.device).clamp(max=length)
    end = end.expand(priority.shape).clone()
    if length > window:
        life = lifetimes(_arriving(priority, window, num_sinks), sizes)
        end[..., : length - window] = torch.maximum(end[..., : length - window], life + window)
    end[..., :num_sinks] = length
    return end


def lifetimes(arriving: Tensor, sizes: Tensor | int) -> Tensor:
    """For slots that are empty before: readers j <= e < `lifetimes[j]` see arrival j.

    Args:
        arriving: `[B, G, E]`, priorities of all tokens that arrive, in order.
        sizes: slots of every head, one number or `[G]`.

    Returns:
        `[B, G, E]` integers; E where it is never displaced, and 0 where its priority is `EMPTY`.
    """
    number = arriving.shape[-1]
    slots = min(number, int(sizes if isinstance(sizes, int) else sizes.max()))
    end = arriving.new_full(arriving.shape, number, dtype=torch.long)
    if not slots:
        return torch.zeros_like(end)
    by_head = sizes.clamp(max=slots) if isinstance(sizes, Tensor) else None
    empty = arriving.new_full((*arriving.shape[:2], slots), EMPTY)
    choice = choose(empty, torch.zeros_like(empty, dtype=torch.int32), arriving, by_head)
    block = choice.block
    start = block * torch.arange(choice.index.shape[2], device=end.device)[:, None]
    leaves = (choice.slot_end > 0) & (choice.slot_end < block)
    column = torch.where(leaves, choice.index - slots, number).flatten(2)  # the last one: nobody
    end = F.pad(end, (0, 1)).scatter(-1, column, (start + choice.slot_end).flatten(2))[..., :-1]
    arrival_end = (start + choice.arrival_end).flatten(2)[..., :number]
    displaced = (choice.arrival_end < block).flatten(2)[..., :number]
    end = torch.where(displaced, arrival_end, end)
    return end.masked_fill(arriving == EMPTY, 0)


def attend_until(
    query: Tensor, key: Tensor, value: Tensor, end: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax attention of query t over the keys `i <= t < end[i]`, `[B, H, T, V]`.

    Args:
        query: `[B, H, T, K]`; key, value: `[B, G, T, *]`.
        end: `[B or 1, G, T]` integers, see `visible_until`; more than i for each key i.
    """
    heads, outputs = query.shape[1], []
    for part, first in _blocks(query):
        last = first + part.shape[2]
        mask = repeat_heads(_seen(end, first, last), heads, dim=1)
        near = [repeat_heads(x[:, :, :last], heads, dim=1) for x in (key, value)]
        attend = partial(F.scaled_dot_product_attention, scale=scale)
        outputs.append(_recomputed(attend, part, *near, mask))
    return torch.cat(outputs, 2)


def soft_slot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    priority: Tensor,
    *,
    sizes: Tensor | int,
    window: int,
    num_sinks: int,
    scale: float | None = None,
) -> Tensor:
    """Attention over sinks, window and slots whose gradient reaches the priorities, `[B, H, T, V]`.

    Forwards it is that of `attend_until(..., visible_until(priority, ...))`. Backwards a key i
    beyond the window has, in place of being chosen or not, the weight sigmoid(p_i - tau_t). tau_t
    is the best priority that a slot has lost until query t, the (M + 1)-th of all that have
    arrived. Its gradient counts too, so a key that wins displaces another.

    Args:
        query: `[B, H, T, K]`; key, value: `[B, G, T, *]`.
        priority: `[B, G, T]` float32, with a gradient, see `ahn.memory.Slots.priorities`.
        sizes: slots of every key head, one number or `[G]`; a head without any has no gradient.
        scale: factor on the scores; None is K^-1/2.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    end = visible_until(priority.detach(), sizes, window, num_sinks)
    tau = _thresholds(priority, end, window, num_sinks, sizes)
    groups, outputs = key.shape[1], []
    for part, first in _blocks(query):
        last = first + part.shape[2]
        columns = (x[:, :, :last] for x in (key, value, priority, end))
        arguments = (part.unflatten(1, (groups, -1)), *columns, tau[..., first:last])
        out = _recomputed(_soft_block, *arguments, first, window, num_sinks, scale)
        outputs.append(out.flatten(1, 2))
    return torch.cat(outputs, 2)


def _soft_block(
    query: Tensor, key: Tensor, value: Tensor, priority: Tensor, end: Tensor, tau: Tensor,
    first: int, window: int, num_sinks: int, scale: float,
) -> Tensor:  # fmt: skip
    """Queries `[B, G, H / G, Q, K]` from column `first` on, over all keys up to them."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key[:, :, None].mT).to(wide) * scale
    i = torch.arange(key.shape[2], device=key.device)
    t = first + torch.arange(query.shape[3], device=key.device)[:, None]
    seen = _seen(end, first, key.shape[2])
    soft = ((priority[..., None, :] - tau[..., None]).clamp(-STEEPEST, STEEPEST)).sigmoid()
    arrived = (i <= t - window) & (i >= num_sinks)
    weight = torch.where(arrived, seen.to(wide) + soft - soft.detach(), seen.to(wide))
    # Relative to the keys that are seen, so that the output is theirs, however large another is.
    largest = scores.detach().masked_fill(~seen[:, :, None], -torch.inf).amax(-1, keepdim=True)
    exponent = (scores - largest).masked_fill(i > t, -torch.inf).clamp(max=LARGEST_EXPONENT)
    weight = exponent.exp() * weight[:, :, None]
    weight = weight / weight.sum(-1, keepdim=True)
    return weight.to(value.dtype) @ value[:, :, None]


def _thresholds(
    priority: Tensor, end: Tensor, window: int, num_sinks: int, sizes: Tensor | int
) -> Tensor:
    """tau `[B, G, T]` of each query, with its gradient; -inf before a slot has lost a token.

    As query t enters at most one token is lost, the arriving one among others.
    """
    length, number = priority.shape[-1], max(0, priority.shape[-1] - window)
    before = priority.new_full((*priority.shape[:2], length - number), EMPTY)
    if not number:
        return before
    arriving, end = _arriving(priority, window, num_sinks), end[..., :number]
    column = torch.where((end < length) & (arriving > EMPTY), end - window, number)
    token = torch.full_like(F.pad(end, (0, 1)), number)
    i = torch.arange(number, device=end.device).expand_as(column)
    token = token.scatter(-1, column, i)[..., :number]
    lost = F.pad(arriving, (0, 1), value=EMPTY).gather(-1, token)
    tau = torch.cat([before, lost.cummax(-1).values], -1)
    without = torch.as_tensor(sizes, device=tau.device).reshape(-1, 1) == 0
    return tau.masked_fill(without, EMPTY)


def _arriving(priority: Tensor, window: int, num_sinks: int) -> Tensor:
    """Priorities `[B, G, T - window]` of the tokens that leave the window; sinks have none."""
    i = torch.arange(priority.shape[-1] - window, device=priority.device)
    return priority[..., : len(i)].masked_fill(i < num_sinks, EMPTY)


def _seen(end: Tensor, first: int, last: int) -> Tensor:
    """Which of the keys up to `last` the queries `first` to `last` - 1 see, `[B, G, Q, last]`."""
    i = torch.arange(last, device=end.device)
    t = i[first:, None]
    return (i <= t) & (t < end[..., None, :last])


def _blocks(query: Tensor) -> list[tuple[Tensor, int]]:
    """Blocks of queries `[B, H, Q, K]`, and the column of the first of each."""
    return [(part, n * QUERIES) for n, part in enumerate(query.split(QUERIES, dim=2))]


def _recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call it; where gradients are wanted, save its inputs alone."""
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
