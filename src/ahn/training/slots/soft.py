"""The student's attention while slots are trained: the choice passes gradients on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.layer.base_attention import BaseAttention
from ahn.layer.context import LayerContext
from ahn.ops.slots import soft_slot_attention

if TYPE_CHECKING:
    from ahn.training.short_cut import Prefix


def soft_attention(
    base: BaseAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: LayerContext,
    prefix: Prefix,
) -> Tensor:
    """Sinks, window and slots, `[B, C, H, V]`.

    Args:
        query, key, value: of the tokens behind the prefix; without a cache and without padding.
    """
    slots, hidden = context.slots, context.hidden
    assert slots is not None
    if prefix.length:
        assert prefix.key is not None and prefix.value is not None and prefix.hidden is not None
        key, value = torch.cat([prefix.key, key], 2), torch.cat([prefix.value, value], 2)
        hidden = torch.cat([prefix.hidden, hidden], 1)
    position = torch.arange(hidden.shape[1], device=hidden.device)[None]
    out = soft_slot_attention(
        F.pad(query, (0, 0, prefix.length, 0)),  # the prefix has no queries of its own
        key,
        value,
        slots.priorities(slots.scores(hidden), position),
        sizes=torch.tensor(slots.sizes, device=key.device),
        window=context.forward.window,
        num_sinks=context.forward.num_sinks,
        scale=base.scaling,
    )
    return out[:, :, prefix.length :].transpose(1, 2)
