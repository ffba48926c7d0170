"""Rows further back than the base has seen: left out, or read as if they stood nearer."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ahn.memory import Evicted
from ahn.ops.window_attention import ExactRows, Reach, SlotRows, Turned


@dataclass(frozen=True)
class Distance:
    """The setting of a model, see `AHNConfig.slot_distance`.

    Attributes:
        most: the furthest distance at which a row is read as it is.
        beyond: `clamp` reads the others at that distance; `drop` leaves them out.
        rotary: the decoder's own module, that gives cosine and sine of positions.
    """

    most: int
    beyond: str
    rotary: Any


def at_distance(
    rows: ExactRows | SlotRows,
    distance: Distance,
    module: Any,
    query: Tensor,
    evicted: Evicted,
    window: int,
    num_sinks: int,
) -> ExactRows | SlotRows:
    """The same rows, of which each reader reads those as they are that are near enough to it.

    A key at position i carries a rotation by i, and query t one by t; their product depends on
    t - i. Beyond the most distance D the key is turned back to 0 and the query to D. Both follow
    from the positions alone, so nothing depends on how a text is cut.

    Args:
        module: the layer's `self_attn`, whose family rotates query and key.
        query: `[B, H, C, K]`, of which the last E are the readers.
    """
    assert rows.position is not None, "the slots say where their tokens stood"
    first = evicted.position[:, :1, None] + window  # position of the first reader
    limit = distance.most + 1 - first + rows.position
    if distance.beyond == "drop":
        return replace(rows, reach=Reach(limit))
    back = partial(_turned, distance.rotary, module, back=True)
    position = evicted.position + window
    turned = back(query[:, :, -rows.readers :], position)
    turned = _turned(distance.rotary, module, turned, torch.full_like(position, distance.most))
    key = back(rows.key.flatten(0, 1)[:, None], rows.position.flatten(0, 1))
    sinks = torch.arange(num_sinks, device=query.device)[None]
    turn = Turned(
        turned.to(query.dtype),
        key.view(rows.key.shape).to(rows.key.dtype),
        lambda x: back(x, sinks).to(x.dtype),
        distance.most + 1 - first + sinks,
    )
    return replace(rows, reach=Reach(limit, turn))


def _turned(rotary: Any, module: Any, x: Tensor, position: Tensor, *, back: bool = False) -> Tensor:
    """`x` `[B, h, N, K]` turned by the positions `[B or 1, N]`, or back; in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = getattr(rotary, "attention_scaling", 1.0)
    cos, sin = (y / scale for y in rotary(x, position))
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    return rotate(x, x, cos, -sin if back else sin)[0]
