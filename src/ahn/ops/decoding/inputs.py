"""The inputs that all layers of a decoding step share, computed by one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepInputs:
    """The new tokens, and where they go in a ring of `window` tokens behind `num_sinks`.

    Attributes:
        hidden: `[B, D]`, their embeddings.
        cos, sin: `[B or 1, K / 2]`, of the RoPE angles, in the model's dtype.
        ring_index: `[B or 1]`, filled: `[B or 1]`, write_mask: `[B or 1, 1]`: as in
            `ahn.layer.context.DecodePlacement`.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    ring_index: Tensor
    filled: Tensor
    write_mask: Tensor


def embed_and_place(
    token: Tensor,
    position: Tensor,
    embedding: Tensor,
    frequencies: Tensor,
    scaling: float,
    window: int,
    num_sinks: int,
) -> StepInputs:
    """Embed tokens `[B]` and compute their RoPE angles and places; adds 1 to `position` in place.

    Args:
        position: `[B or 1]`, real tokens of a row before this one.
        embedding: `[vocabulary, D]`, contiguous.
        frequencies: `[K / 2]`, float32, radians a token.
        scaling: factor on cosine and sine.
    """
    from ahn.ops.decoding.inputs_triton import embed_and_place_kernel

    rows, half, size = len(position), len(frequencies), embedding.shape[1]
    inputs = StepInputs(
        hidden=embedding.new_empty(len(token), size),
        cos=embedding.new_empty(rows, half),
        sin=embedding.new_empty(rows, half),
        ring_index=position.new_empty(rows),
        filled=position.new_empty(rows),
        write_mask=position.new_empty(rows, 1, dtype=torch.bool),
    )
    embed_and_place_kernel[(len(token),)](
        token.contiguous(), position, embedding, frequencies, inputs.hidden, inputs.cos, inputs.sin,
        inputs.ring_index, inputs.filled, inputs.write_mask, rows, window, num_sinks, size,
        scaling=scaling, BLOCK=min(2048, 1 << (size - 1).bit_length()), HALF=half,
        PADDED=1 << (half - 1).bit_length(),
    )  # fmt: skip
    return inputs
