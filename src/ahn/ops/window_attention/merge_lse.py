"""Triton kernel that merges attentions over different keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_lse_kernel(
    target, near, near_lse, shared, shared_lse, far, far_lse,
    target_b, target_h, target_q,
    near_b, near_h, near_q, near_lse_b, near_lse_h, near_lse_q,
    shared_b, shared_h, shared_q, shared_lse_b, shared_lse_h, shared_lse_q,
    far_b, far_h, far_q, far_lse_b, far_lse_h, far_lse_q,
    heads, rows, far_rows,
    HAS_SHARED: tl.constexpr, HAS_FAR: tl.constexpr, WITH_LSE: tl.constexpr,
    BLOCK: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """See `ahn.ops.window_attention.cudnn_forward.merge_lse`."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    j = tl.arange(0, PADDED)[None, :]
    near += batch * near_b + head * near_h + row[:, None] * near_q + j
    inside = row < rows
    both = inside[:, None] & (j < DIM)
    near_lse += batch * near_lse_b + head * near_lse_h + row * near_lse_q
    top = tl.load(near_lse, inside, 0.0)
    out, total = tl.load(near, both, 0.0).to(tl.float32), tl.full((BLOCK,), 1.0, tl.float32)
    if HAS_SHARED:
        shared_lse += batch * shared_lse_b + head * shared_lse_h + row * shared_lse_q
        shared += batch * shared_b + head * shared_h + row[:, None] * shared_q + j
        lse, part = tl.load(shared_lse, inside, 0.0), tl.load(shared, both, 0.0)
        out, total, top = _add(out, total, top, part, lse)
    if HAS_FAR:
        other = far_rows - 1 - row
        seen = other >= 0
        far_lse += batch * far_lse_b + head * far_lse_h + other * far_lse_q
        far += batch * far_b + head * far_h + other[:, None] * far_q + j
        lse = tl.load(far_lse, seen, -float("inf"))
        part = tl.load(far, seen[:, None] & (j < DIM), 0.0)
        out, total, top = _add(out, total, top, part, lse)
    target += batch * target_b + head * target_h + row[:, None] * target_q + j
    tl.store(target, (out / total[:, None]).to(target.dtype.element_ty), both)
    if WITH_LSE:
        tl.store(near_lse, top + tl.log(total), inside)


@triton.jit
def _add(out, total, top, part, lse):
    """One more part: sums `out` and `total` of weights relative to exp(top)."""
    new = tl.maximum(top, lse)
    kept, added = tl.exp(top - new), tl.exp(lse - new)
    out = out * kept[:, None] + part.to(tl.float32) * added[:, None]
    return out, total * kept + added, new
