"""The token that leaves the window of every row goes from the ring into the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.ops.backends import choose
from ahn.ops.slots import EMPTY, SlotBuffers


@dataclass(frozen=True)
class SlotLayer:
    """A layer's ring and slots.

    Attributes:
        keys, values: `[B, G, R, K]`, of the ring with its sinks.
        scores: `[B, G, R, 1]`, of its tokens; in the kernels float32.
        rate: `[G]`, what a thousand positions add to a priority.
    """

    keys: Tensor
    values: Tensor
    scores: Tensor
    rate: Tensor
    slots: SlotBuffers


@dataclass(frozen=True)
class Leaving:
    """Which token of each row leaves, in all layers.

    Attributes:
        ring_index: `[B or 1]`, its row of the ring.
        write_mask: `[B or 1, 1]` bool, False where it is a sink or there is none.
        position: `[B or 1]`; its own position is this number plus `offset`.
    """

    ring_index: Tensor
    write_mask: Tensor
    position: Tensor
    offset: int


@torch.no_grad()
def insert_evicted(layer: SlotLayer, leaving: Leaving, *, kernels: str = "auto") -> None:
    """Let the token that leaves arrive in a layer's slots, in place; no host waits for a device.

    Its priority is `score + rate * position / 1000`; see `ahn.ops.slots.insert_one` for whom it
    displaces. Where `fused_decoding` runs by a kernel, so does this; `kernels` and errors are its.
    """
    asked = {"slot_bits": layer.slots.bits}
    if choose("fused_decoding", kernels, layer.keys, layer.values, **asked) == "triton":
        from ahn.ops.decoding.insertion_launch import insert_in_layer

        insert_in_layer(layer, leaving)
        return
    batch = len(layer.keys)
    rows, index = torch.arange(batch, device=layer.keys.device), leaving.ring_index.expand(batch)
    key, value, score = (x[rows, :, index] for x in (layer.keys, layer.values, layer.scores))
    position = (leaving.position + leaving.offset)[:, None]
    priority = score[..., 0] + layer.rate.to(score.dtype) * position.to(score.dtype) / 1000
    priority = priority.float().masked_fill(~leaving.write_mask, EMPTY)
    layer.slots.insert(key[:, :, None], value[:, :, None], priority, (position + 1).int())


class StepInsertion:
    """`insert_evicted` of all layers by one kernel, which finds their tensors in a table.

    The table is made anew where a tensor lies elsewhere than before. A graph may be captured once a
    step has run on the same tensors.
    """

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def __call__(self, layers: Sequence[SlotLayer], leaving: Leaving) -> None:
        """Layers whose rings have the same shape, and whose slots as many bits."""
        from ahn.ops.decoding.insertion_launch import addresses_of, insert_in_layers

        addresses = [x for layer in layers for x in addresses_of(layer)]
        if addresses != self.addresses:
            self.table = torch.tensor(addresses, device=layers[0].keys.device)
            self.table, self.addresses = self.table.view(len(layers), -1), addresses
        insert_in_layers(layers[0], self.table, leaving)
