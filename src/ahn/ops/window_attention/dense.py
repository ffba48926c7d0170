"""Sinks + window attention by dense and causal blocks of cuDNN's kernel, joined by log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ahn.ops.window_attention.pieces import columns, count, joined

TESTED_TORCH = (2, 11)  # from here on the operator takes grouped heads
LARGEST_DIM = 128


def why_not_dense(query: Tensor, value: Tensor, dropout: float) -> str | None:
    """What these blocks would need; None where they can run."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"a CUDA device of compute capability 8.0, got {query.device}"
    if tuple(map(int, torch.__version__.split(".")[:2])) < TESTED_TORCH:
        return f"torch {'.'.join(map(str, TESTED_TORCH))}, got {torch.__version__}"
    if find_spec("triton") is None:
        return "triton to be installed"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16, got {query.dtype}"
    if torch.is_grad_enabled() or dropout:
        return "no gradient and no dropout: parts are joined in place"
    if any(x.shape[-1] > LARGEST_DIM or x.shape[-1] % 8 for x in (query, value)):
        return f"head sizes up to {LARGEST_DIM} in steps of 8, got {query.shape[-1]}"
    return None


class Part(NamedTuple):
    """Attention of some queries over some of their keys."""

    out: Tensor  # [B, H, C, V]
    lse: Tensor  # [B, H, C], log-sum-exp of the scores, float32


def dense_window_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; every query is past the sinks.

    A block of C queries sees a band of keys: itself (`near`), what all of it sees, sinks with it
    (`shared`), and a triangle that its first queries lose one by one (`far`).
    Only the two triangles compute scores that are thrown away, and cuDNN skips most of those.
    """
    sinks, tokens = (sink_key, sink_value), (keys, values)
    doubled = max(0, sink_key.shape[2] - start)  # columns that are sinks as well
    before = count(keys) - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs = []
    for block in query.split(window, dim=2):
        after = before + block.shape[2]
        low, lowest = (max(doubled, x) for x in (after - window, before + 1 - window))
        own = [columns(x, before, after) for x in tokens]
        known = [
            columns([s], 0, s.shape[2]) + columns(x, low, before) for s, x in zip(sinks, tokens)
        ]
        lost = [columns(x, lowest, low) for x in tokens]
        near = attend(block, joined(own[0]), joined(own[1]), True, scale)
        shared = far = None
        if known[0]:
            shared = attend(block, joined(known[0]), joined(known[1]), False, scale)
        if lost[0]:
            # Backwards in queries and keys this triangle is a causal one. Its last query is the
            # first to see nothing there.
            first, key, value = (
                x.flip(2) for x in (block[:, :, :-1], joined(lost[0]), joined(lost[1]))
            )
            far = attend(first, key, value, True, scale)
        outputs.append(join(near, shared, far))
        before = after
    return joined(outputs)


def attend(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> Part:
    """Attention of `[B, H, C, K]` over `[B, G, N, *]`; causal is j <= i from the first on."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scale
    )
    return Part(out, lse.reshape(out.shape[:3]))


def join(near: Part, shared: Part | None, far: Part | None) -> Tensor:
    """Attention over the keys of all parts, `[B, H, C, V]`, written into `near`.

    Args:
        far: of the first P <= C queries, in reverse order.
    """
    from ahn.ops.window_attention.join import join_kernel

    if shared is None and far is None:
        return near.out
    batch, heads, rows, dim = near.out.shape
    tensors = [x for part in (near, shared or near, far or near) for x in part]
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    block = 32
    join_kernel[(-(-rows // block), batch * heads)](
        *tensors, *strides, heads, rows, 0 if far is None else far.out.shape[2],
        HAS_SHARED=shared is not None, HAS_FAR=far is not None,
        BLOCK=block, DIM=dim, PADDED=1 << (dim - 1).bit_length(),
    )  # fmt: skip
    return near.out
