"""What is read of a text, and the state that it ends with."""

from __future__ import annotations

from torch import Tensor

from ahn.ops.chunk_scan.segments import Segments
from ahn.ops.chunk_scan.text import Text


def read_text(text: Text, segments: Segments) -> tuple[Tensor, Tensor]:
    """out `[B, T, H, V]` in the dtype of the values, final_state `[B, H, K, V]` float32."""
    from ahn.ops.chunk_scan.triton.forward import read

    batch, heads, dim, width = text.shape
    out = text.value.new_empty(batch, text.query.shape[1], heads, width)
    final = segments.starts.new_empty(batch, heads, dim, width)
    read[(heads * text.blocks, segments.starts.shape[2], batch)](
        *text.arguments, segments.starts, out, final, *text.counts, *segments.split, **text.sizes,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return out, final
