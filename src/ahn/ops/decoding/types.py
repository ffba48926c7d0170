"""What a decoding step of one layer is given: its cache and the new token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ahn.ops.slots import SlotBuffers


@dataclass(frozen=True)
class Ring:
    """A layer's cache and the place of the new token, see `ahn.layer.context.DecodePlacement`.

    Attributes:
        keys, values: `[B, G, N, K]`, N places: the sinks, then the ring.
        gates: `[B, H, N, n]`, raw write gates of the cached tokens; None without a memory.
        state: `[B, H, K, V]` float32; None without a memory.
        ring_index: `[B or 1]`, where the new token goes; until then it holds the evicted one.
        filled: `[B or 1]`, number of leading places that hold a token, the new one counted.
        write_mask: `[B or 1, 1]` bool, False where nothing is evicted, so nothing is written.
        limit: places to attend to, an upper bound of `filled` that the host knows.
        slots: pairs that are attended to beside them; the evicted token has been inserted. None
            has none.
        scores: `[B, G, N, 1]` float32, for the slots, of the cached tokens.
    """

    keys: Tensor
    values: Tensor
    gates: Tensor | None
    state: Tensor | None
    ring_index: Tensor
    filled: Tensor
    write_mask: Tensor
    limit: int
    slots: SlotBuffers | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class QKTransform:
    """Norm and RoPE that the new token's queries and key still need, in this order.

    Attributes:
        cos, sin: `[B or 1, K / 2]`, contiguous; element i of a head is rotated with i + K / 2.
        query_norm, key_norm: `[K]`, weights of an RMSNorm over each head; None norms nothing.
        eps: of these norms.
    """

    cos: Tensor
    sin: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class NewToken:
    """The new token of every row, as one layer sees it; the last dimension is contiguous.

    Attributes:
        query: `[B, H, 1, K]`; key, value: `[B, G, 1, K]`.
        memory_query: `[B, H, 1, K]`, with which the memory is read; None is `query`.
        gates: `[B, 1, H, n]`, raw, of any strides; None without a memory.
        output_gate: `[B, 1, H]`, raw.
        transform: norm and RoPE still to be applied; None where they have been.
        scores: `[B, G]` float32, contiguous; None without slots.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    memory_query: Tensor | None = None
    gates: Tensor | None = None
    output_gate: Tensor | None = None
    transform: QKTransform | None = None
    scores: Tensor | None = None
