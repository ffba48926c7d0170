"""Launches of the kernels that put an evicted token into slots; see `insert_evicted`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ahn.ops.decoding.insertion import Leaving, SlotLayer
from ahn.ops.slots import group_size

TILE = 1024  # slots that a program compares in one go


def insert_in_layer(layer: SlotLayer, leaving: Leaving) -> None:
    """Of one layer, whose tensors are given."""
    from ahn.ops.decoding.insertion_triton import insert_in_layer_kernel

    batch, groups = layer.keys.shape[:2]
    insert_in_layer_kernel[(batch * groups,)](
        *_tensors(layer), layer.slots.rows.total, *_leaving(leaving), **_sizes(layer)
    )


def insert_in_layers(like: SlotLayer, table: Tensor, leaving: Leaving) -> None:
    """Of all layers, from a table of their `addresses_of`; they are shaped as `like` is."""
    from ahn.ops.decoding.insertion_triton import insert_in_layers_kernel

    batch, groups = like.keys.shape[:2]
    insert_in_layers_kernel[(len(table), batch * groups)](
        table, like.keys, *_leaving(leaving), COLUMNS=table.shape[1], **_sizes(like)
    )


def addresses_of(layer: SlotLayer) -> list[int]:
    """Where its tensors lie, in the order of the kernel, and how many slots a sequence has."""
    return [*(x.data_ptr() for x in _tensors(layer)), layer.slots.rows.total]


def _tensors(layer: SlotLayer) -> list[Tensor]:
    slots = layer.slots
    pairs = [x for i in (0, -1) for x in (slots.key[i], slots.value[i])]  # then their scales
    first = slots.rows.first(layer.keys.device)
    ring = [layer.keys, layer.values, layer.scores, layer.rate]
    return [*ring, first, slots.priority, slots.place, *pairs]


def _leaving(leaving: Leaving) -> tuple[Any, ...]:
    stride = 0 if len(leaving.ring_index) == 1 else 1
    tensors = (leaving.ring_index, leaving.write_mask, leaving.position)
    return (*tensors, leaving.offset, stride)


def _sizes(layer: SlotLayer) -> dict[str, Any]:
    """What all layers have in common."""
    groups, rows, dim = layer.keys.shape[1:]
    shared = group_size(dim)
    return {
        "G": groups, "R": rows, "DIM": dim, "PADDED": _power(dim), "BITS": layer.slots.bits,
        "SHARED": shared, "SCALES": _power(dim // shared), "HALF": _power(-(-shared // 2)),
        "TILE": TILE,
    }  # fmt: skip


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
