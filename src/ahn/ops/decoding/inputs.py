"""What all layers of a decoding step share, in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepInputs:
    """The new tokens, and where they go in a ring of `window` slots behind `num_sinks`.

    Attributes:
        hidden: `[B, D]`, their embeddings.
        cos, sin: `[B or 1, K / 2]`, by which the halves of a head turn, in the model's dtype.
        slot, filled: `[B or 1]`, keep: `[B or 1, 1]`: as in `ahn.layer.context.DecodePlacement`.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    slot: Tensor
    filled: Tensor
    keep: Tensor


def embed_and_place(
    token: Tensor,
    position: Tensor,
    embedding: Tensor,
    frequencies: Tensor,
    scaling: float,
    window: int,
    num_sinks: int,
) -> StepInputs:
    """Look up tokens `[B]` at `position` `[B or 1]`, which is advanced in place.

    Args:
        embedding: `[vocabulary, D]`, contiguous.
        frequencies: `[K / 2]`, float32, radians a token; scaling: factor on cosine and sine.
    """
    from ahn.ops.decoding.inputs_triton import embed_and_place_kernel

    rows, half, size = len(position), len(frequencies), embedding.shape[1]
    inputs = StepInputs(
        hidden=embedding.new_empty(len(token), size),
        cos=embedding.new_empty(rows, half),
        sin=embedding.new_empty(rows, half),
        slot=position.new_empty(rows),
        filled=position.new_empty(rows),
        keep=position.new_empty(rows, 1, dtype=torch.bool),
    )
    embed_and_place_kernel[(len(token),)](
        token.contiguous(), position, embedding, frequencies, inputs.hidden, inputs.cos, inputs.sin,
        inputs.slot, inputs.filled, inputs.keep, rows, window, num_sinks, size, scaling=scaling,
        BLOCK=min(2048, 1 << (size - 1).bit_length()), HALF=half,
        PADDED=1 << (half - 1).bit_length(),
    )  # fmt: skip
    return inputs
