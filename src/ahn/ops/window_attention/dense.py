"""Sinks + window attention by dense and causal blocks of cuDNN's kernel, joined by log-sum-exp."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

TESTED_TORCH = (2, 11)  # from here on the operator takes grouped heads
LARGEST_DIM = 128


def why_not_cudnn(query: Tensor, value: Tensor, dropout: float) -> str | None:
    """What parts computed by cuDNN's kernel and joined would need; None where they can run."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"a CUDA device of compute capability 8.0, got {query.device}"
    if tuple(map(int, torch.__version__.split(".")[:2])) < TESTED_TORCH:
        return f"torch {'.'.join(map(str, TESTED_TORCH))}, got {torch.__version__}"
    if find_spec("triton") is None:
        return "triton to be installed"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16, got {query.dtype}"
    if dropout:
        return "no dropout"
    if any(x.shape[-1] > LARGEST_DIM or x.shape[-1] % 8 for x in (query, value)):
        return f"head sizes up to {LARGEST_DIM} in steps of 8, got {query.shape[-1]}"
    return None


def why_not_dense(query: Tensor, value: Tensor, dropout: float) -> str | None:
    """What these blocks would need; None where they can run."""
    if torch.is_grad_enabled():
        return "no gradient: parts are joined in place"
    return why_not_cudnn(query, value, dropout)


def dense_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
) -> Tensor:
    """See `ahn.ops.window_attention`; every query is past the sinks.

    A block of C queries sees a band of keys: a triangle that its first queries lose one by one
    (`left`), the keys that all of it sees, sinks before them (`shared`), and itself (`right`).
    Only the two triangles compute scores that are thrown away, and cuDNN skips most of those.
    """
    doubled = max(0, sink_key.shape[2] - start)  # columns that are sinks as well
    key, value = key[:, :, doubled:], value[:, :, doubled:]
    before = key.shape[2] - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs = []
    for block in query.split(window, dim=2):
        size = block.shape[2]
        near = slice(before, before + size)
        shared = slice(max(0, before + size - window), before)
        far = slice(max(0, before + 1 - window), shared.start)
        out, lse = attend(block, key[:, :, near], value[:, :, near], True, scale)
        keys = torch.cat([sink_key, key[:, :, shared]], 2)
        if keys.shape[2]:
            values = torch.cat([sink_value, value[:, :, shared]], 2)
            join(out, lse, *attend(block, keys, values, False, scale))
        if far.start < far.stop:
            # Backwards in queries and keys the left triangle is a causal one. Its last query is
            # the first to see nothing there.
            last, first_keys, first_values = (
                x.flip(2) for x in (block[:, :, :-1], key[:, :, far], value[:, :, far])
            )
            part = attend(last, first_keys, first_values, True, scale)
            join(out, lse, *part, is_reversed=True)
        outputs.append(out)
        before += size
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention `[B, H, C, V]` and log-sum-exp `[B, H, C]`; causal is j <= i from the first on."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scale
    )
    return out, lse.reshape(out.shape[:3])


def join(
    out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, is_reversed: bool = False
) -> None:
    """Merge attention over other keys into `out` and `lse`, in place.

    Args:
        out, part: `[B, H, C, V]` and `[B, H, P, V]`, P <= C: of the first P queries.
        lse, part_lse: `[B, H, C]`, `[B, H, P]`, float32.
        is_reversed: the part's queries are in reverse order.
    """
    from ahn.ops.window_attention.join import join_kernel

    batch, heads, rows, dim = part.shape
    block = 32
    join_kernel[(-(-rows // block), batch * heads)](
        out, lse, part, part_lse, heads, rows, *out.stride()[:3], *lse.stride()[:3],
        *part.stride()[:3], *part_lse.stride()[:3],
        IS_REVERSED=is_reversed, BLOCK=block, DIM=dim, PADDED=1 << (dim - 1).bit_length(),
    )  # fmt: skip
