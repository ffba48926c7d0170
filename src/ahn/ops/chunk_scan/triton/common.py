"""Functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl

# Kernels are not compiled again for another length.
RUNTIME = ["T", "num_chunks", "num_segments", "segment_chunks"]


@triton.jit
def load_rows(base, first, stride, o_row, o_col, mask):
    """Rows from `first` on as a tile; zeros outside the mask."""
    return tl.load(base + first * stride + (o_row[:, None] * stride + o_col[None, :]), mask, 0.0)


@triton.jit
def load_matrix(base, i_chunk, o_t, BT: tl.constexpr):
    """The `[BT, BT]` matrix of one chunk."""
    return tl.load(base + i_chunk * BT * BT + (o_t[:, None] * BT + o_t[None, :]))


@triton.jit
def load_decays(g_cumsum, first, o_t, DECAY: tl.constexpr, BT: tl.constexpr):
    """Decay from a chunk's start to each token, from each token to its end, and over all of it."""
    b_g, g_last = tl.zeros((BT,), tl.float32), 0.0
    if DECAY:
        b_g = tl.load(g_cumsum + first + o_t)
        g_last = tl.load(g_cumsum + first + BT - 1)
    return tl.exp2(b_g), tl.exp2(g_last - b_g), tl.exp2(g_last)


@triton.jit
def decay_mask(b_g, o_t, DECAY: tl.constexpr, BT: tl.constexpr):
    """Causal mask with the decay from the column's token to the row's, `[BT, BT]`."""
    is_past = o_t[:, None] >= o_t[None, :]
    b_mask = tl.where(is_past, 1.0, 0.0)
    if DECAY:
        # The mask comes first: above the diagonal the exponent is positive and may overflow.
        b_mask = tl.exp2(tl.where(is_past, b_g[:, None] - b_g[None, :], float("-inf")))
    return b_mask


@triton.jit
def delta_errors(b_v, b_k, b_h, b_beta, b_k_decay, DELTA: tl.constexpr):
    """beta (v - decay k h), `[BT, BV]` float32; without the delta rule beta v."""
    b_v = b_v.to(tl.float32)
    if DELTA:
        b_v -= tl.dot(b_k, b_h, input_precision="ieee") * b_k_decay[:, None]
    return b_v * b_beta[:, None]
