"""Exact attention over sinks + window: contract and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
    unsupported_reason,
)
from ahn.ops.wide_copy import concat_tokens
from ahn.ops.window_attention.cudnn_autograd import cudnn_sequence_attention, fits_sequence
from ahn.ops.window_attention.cudnn_forward import cudnn_window_attention
from ahn.ops.window_attention.exact_rows import ExactRows, SlotRows
from ahn.ops.window_attention.flash import flash_window_attention
from ahn.ops.window_attention.reference import blocked_window_attention
from ahn.ops.window_attention.ring_views import num_tokens, token_slice
from ahn.ops.window_attention.saved import SavedOutputs
from ahn.ops.window_attention.slot_rows import add_slot_rows
from ahn.ops.window_attention.slot_rows import unsupported_reason as slot_rows_reason

FIRST_TORCH = (2, 11)  # from here on cuDNN's operator takes grouped heads
OP = "window_attention"
SMALL_WINDOW = 4096  # tokens: below it `flash` is faster than cuDNN on an H200
LARGEST_HEAD = 256
LARGEST_CUDNN_HEAD = 128  # with gradients, or before Hopper


def window_attention(
    query: Tensor,
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    *,
    window: int,
    start: int | Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    saved: SavedOutputs | None = None,
    exact_rows: ExactRows | SlotRows | None = None,
    sink_logits: Tensor | None = None,
    kernels: str = "auto",
) -> Tensor:
    """Softmax attention of each query over the sinks and its last `window` tokens, itself included.

    Positions count real tokens of a row from 0; padding on the left has negative ones. Key
    column j has position `start + j`; the queries are the last C of those tokens.

    Args:
        query: `[B, H, C, K]`.
        key: `[B, G, T, K]`; value: `[B, G, T, V]`, with T >= C; or each as views `[B, G, T_i, *]`
            of these tokens, in order, as they lie in a ring. cuDNN's blocks copy only the part
            of them that a block needs.
        sink_key: `[B, G, S, K]`; sink_value: `[B, G, S, V]`: the tokens at positions 0 to S - 1.
            Columns of `key` at those positions are not looked at a second time.
        start: position of the first key, one for all rows or `[B]`.
        scale: factor on the scores; None is K^-1/2.
        dropout: probability of dropping an attention weight.
        saved: of a layer that is computed again for its gradient. The backend `cudnn` saves its
            outputs there in the first run and takes them from there in the second; PyTorch
            computes them again.
        exact_rows: pairs of a memory that join the same softmax. `cudnn` and `flash` take
            `SlotRows` without a gradient and a `reach`, and add them by a Triton kernel.
        sink_logits: `[H]`, one more term of each head's log-sum-exp, as in gpt-oss; no value
            belongs to it. By PyTorch alone.
        kernels: `auto`, `torch`, `cudnn` or `flash`, see `ahn.ops.backends`. cuDNN's blocks are
            merged by a Triton kernel, `flash` is one; `triton` and `fla` choose as `auto` does.

    Returns:
        `[B, H, C, V]`. A query that is padding gets a finite value without meaning.

    Raises:
        ValueError: T < C, or the kernels asked for cannot run here.
    """
    keys, values = ([x] if isinstance(x, Tensor) else x for x in (key, value))
    if num_tokens(keys) < query.shape[2]:
        raise ValueError(
            f"window_attention: expected at least {query.shape[2]} keys, got {num_tokens(keys)}"
        )
    tokens = (query, keys, values, sink_key, sink_value)
    is_sequence = torch.is_grad_enabled() and fits_sequence(*tokens, window, start)
    backend = chosen_backend(
        kernels, window, query, values[0],
        dropout=dropout, start=start, is_sequence=is_sequence, exact_rows=exact_rows,
        sink_logits=sink_logits,
    )  # fmt: skip
    if backend == "cudnn" and not is_sequence:
        assert isinstance(start, int), "cuDNN's blocks have one start for all rows"
        assert exact_rows is None or isinstance(exact_rows, SlotRows), "asked before"
        return _attend_by_cudnn(*tokens, window, start, scale, exact_rows)
    whole = (query, concat_tokens(keys), concat_tokens(values), sink_key, sink_value)
    if backend == "cudnn":
        return cudnn_sequence_attention(*whole, window, scale, saved)
    if backend == "flash":
        assert exact_rows is None or isinstance(exact_rows, SlotRows), "asked before"
        return _attend_by_flash(*whole, window, start, scale, exact_rows)
    others = (exact_rows, sink_logits)
    return blocked_window_attention(*whole, window, start, scale, dropout, *others)


def chosen_backend(kernels: str, window: int, *inputs: Tensor, **options: Any) -> str:
    """Name of the backend that attends. A small window is cut into too many calls of cuDNN's."""
    prefers_flash = kernels not in ("torch", "cudnn") and window < SMALL_WINDOW
    if prefers_flash and unsupported_reason(OP, "flash", *inputs, **options) is None:
        return "flash"
    return choose(OP, kernels, *inputs, **options)


def _attend_by_cudnn(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
    rows: SlotRows | None,
) -> Tensor:
    """cuDNN's form without gradients. Queries that are sinks come in a first chunk alone, and are
    the reference's: they see no slots. To the others slots are added by log-sum-exp."""
    before = num_tokens(keys) - query.shape[2]
    sinks = min(max(0, sink_key.shape[2] - start - before), query.shape[2])
    outputs = []
    if sinks:
        key, value = (concat_tokens(token_slice(x, 0, before + sinks)) for x in (keys, values))
        tokens = (query[:, :, :sinks], key, value, sink_key, sink_value)
        outputs.append(blocked_window_attention(*tokens, window, start, scale, 0.0))
    if sinks < query.shape[2]:
        asked = query[:, :, sinks:]
        lse = None if rows is None else asked.new_empty(asked.shape[:3], dtype=torch.float32)
        rest = (asked, keys, values, sink_key, sink_value)
        out = cudnn_window_attention(*rest, window, start, scale, lse)
        if rows is not None and lse is not None:
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            add_slot_rows(out, lse, asked, rows, scale)
        outputs.append(out)
    return concat_tokens(outputs)


def _attend_by_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int | Tensor,
    scale: float | None,
    rows: SlotRows | None,
) -> Tensor:
    """One kernel over sinks and window; to the readers slots are added by log-sum-exp."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    tokens = (query, key, value, sink_key, sink_value)
    out, lse = flash_window_attention(*tokens, window, start, scale)
    if rows is not None:
        add_slot_rows(out, lse, query, rows, scale)
    return out


def _cudnn_unsupported_reason(
    query: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    start: int | Tensor = 0,
    is_sequence: bool = False,
    exact_rows: ExactRows | SlotRows | None = None,
    sink_logits: Tensor | None = None,
) -> str | None:
    """`is_sequence` says that the form with gradients fits, see `fits_sequence`."""
    half = (torch.float16, torch.bfloat16)
    if reason := _kernel_unsupported_reason(half, query, value, dropout, exact_rows, sink_logits):
        return reason
    if tuple(map(int, torch.__version__.split(".")[:2])) < FIRST_TORCH:
        return f"torch {'.'.join(map(str, FIRST_TORCH))}, got {torch.__version__}"
    if (largest := max(query.shape[-1], value.shape[-1])) > LARGEST_CUDNN_HEAD:
        if torch.is_grad_enabled():
            return f"heads of at most {LARGEST_CUDNN_HEAD} where gradients are taken, got {largest}"
        if reason := device_unsupported_reason(query, capability=(9, 0)):
            return reason
    if not isinstance(start, int):
        return "one start for all rows, got one for each row"
    if torch.is_grad_enabled() and not is_sequence:
        return "no gradient, or a sequence from position 0 on that cuts into blocks"
    return None


def _flash_unsupported_reason(
    query: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    start: int | Tensor = 0,
    exact_rows: ExactRows | SlotRows | None = None,
    sink_logits: Tensor | None = None,
    **_: Any,
) -> str | None:
    """It takes any start, float32, and larger heads before Hopper than cuDNN; no gradients."""
    half = (torch.float16, torch.bfloat16)
    dtypes = half if exact_rows is not None else (*half, torch.float32)
    if reason := _kernel_unsupported_reason(dtypes, query, value, dropout, exact_rows, sink_logits):
        return reason
    if exact_rows is not None and not isinstance(start, int):
        return "one start for all rows beside slots, got one for each row"
    return "no gradient" if torch.is_grad_enabled() else None


def _kernel_unsupported_reason(
    dtypes: tuple[torch.dtype, ...],
    query: Tensor,
    value: Tensor,
    dropout: float,
    exact_rows: ExactRows | SlotRows | None,
    sink_logits: Tensor | None,
) -> str | None:
    """What both need."""
    reason = device_unsupported_reason(query, capability=(8, 0))
    if reason := reason or dtype_unsupported_reason(dtypes, query):
        return reason
    if dropout:
        return f"no dropout, got {dropout}"
    if sink_logits is not None:
        return "no sink logits, got some"
    sizes = (query.shape[-1], value.shape[-1])
    if any(size > LARGEST_HEAD or size % 8 for size in sizes):
        return f"head sizes up to {LARGEST_HEAD} in steps of 8, got {sizes[0]} and {sizes[1]}"
    return None if exact_rows is None else slot_rows_reason(exact_rows, value)


register(Backend(OP, "cudnn", 2, _cudnn_unsupported_reason))
register(Backend(OP, "flash", 1, _flash_unsupported_reason))
