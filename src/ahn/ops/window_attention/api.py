"""Exact attention over sinks + window: contract and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ahn.ops.backends import (
    Backend,
    choose,
    device_unsupported_reason,
    dtype_unsupported_reason,
    register,
)
from ahn.ops.wide_copy import concat_tokens
from ahn.ops.window_attention.cudnn_autograd import cudnn_sequence_attention, has_single_tokens
from ahn.ops.window_attention.cudnn_forward import cudnn_window_attention
from ahn.ops.window_attention.exact_rows import ExactRows
from ahn.ops.window_attention.reference import blocked_window_attention, with_exact_rows
from ahn.ops.window_attention.ring_views import num_tokens, token_slice
from ahn.ops.window_attention.saved import SavedOutputs

FIRST_TORCH = (2, 11)  # from here on cuDNN's operator takes grouped heads
LARGEST_HEAD = 128


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
    exact_rows: ExactRows | None = None,
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
        exact_rows: pairs of a memory that join the same softmax, by PyTorch alone.
        kernels: `auto`, `torch` or `cudnn`, see `ahn.ops.backends`. cuDNN's blocks are merged by a
            Triton kernel; `triton` and `fla` choose as `auto` does.

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
    is_sequence = torch.is_grad_enabled() and _is_sequence(*tokens, window, start)
    backend = choose(
        "window_attention", kernels, query, values[0],
        dropout=dropout, start=start, is_sequence=is_sequence, exact_rows=exact_rows,
    )  # fmt: skip
    if backend == "torch":
        seen = (concat_tokens(keys), concat_tokens(values), sink_key, sink_value)
        return blocked_window_attention(query, *seen, window, start, scale, dropout, exact_rows)
    if is_sequence:
        seen = (concat_tokens(keys), concat_tokens(values), sink_key, sink_value)
        return cudnn_sequence_attention(query, *seen, window, scale, saved)
    assert isinstance(start, int), "cuDNN's blocks have one start for all rows"
    return _attend_by_cudnn(*tokens, window, start, scale)


def _is_sequence(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int | Tensor,
) -> bool:
    """Whether cuDNN's form with gradients fits: keys from position 0, and queries of the same
    tokens or of those beyond the budget, which cut into blocks without single tokens."""
    if not isinstance(start, int) or start:
        return False
    length, sinks = num_tokens(keys), sink_key.shape[2]
    before = length - query.shape[2]
    return before in (0, sinks + window) and not has_single_tokens(length, window, sinks, before)


def _attend_by_cudnn(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    sink_key: Tensor,
    sink_value: Tensor,
    window: int,
    start: int,
    scale: float | None,
) -> Tensor:
    """cuDNN's form without gradients. Queries that are sinks come in a first chunk alone, and are
    the reference's."""
    before = num_tokens(keys) - query.shape[2]
    sinks = min(max(0, sink_key.shape[2] - start - before), query.shape[2])
    outputs = []
    if sinks:
        key, value = (concat_tokens(token_slice(x, 0, before + sinks)) for x in (keys, values))
        tokens = (query[:, :, :sinks], key, value, sink_key, sink_value)
        outputs.append(blocked_window_attention(*tokens, window, start, scale, 0.0))
    if sinks < query.shape[2]:
        rest = (query[:, :, sinks:], keys, values, sink_key, sink_value)
        outputs.append(cudnn_window_attention(*rest, window, start, scale))
    return concat_tokens(outputs)


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    filled: Tensor | None = None,
    exact_rows: ExactRows | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query a row over a ring, in whatever order its tokens lie.

    Args:
        query: `[B, H, 1, K]`; key: `[B, G, N, K]`; value: `[B, G, N, V]`, read in place.
        filled: `[B]`, number of leading ring rows that hold a token; None is all N.
        exact_rows: pairs of a memory that join the softmax; reader 0 is the query.
        scale: factor on the scores; None is K^-1/2.

    Returns:
        `[B, H, 1, V]`.
    """
    batch, heads, _, dim = query.shape
    groups, rows = key.shape[1], key.shape[2]
    mask = None
    if filled is not None:
        mask = (torch.arange(rows, device=key.device) < filled[:, None])[:, None, None]
    if exact_rows is not None:
        mask = query.new_ones(1, 1, 1, rows, dtype=torch.bool) if mask is None else mask
        mask = with_exact_rows(mask, exact_rows, groups, 0)
        key, value = torch.cat([key, exact_rows.key], 2), torch.cat([value, exact_rows.value], 2)
    # The heads of a group become rows of one query block: no key is copied for each of them.
    grouped = query.reshape(batch, groups, heads // groups, dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, 1, value.shape[-1])


def _cudnn_unsupported_reason(
    query: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    start: int | Tensor = 0,
    is_sequence: bool = False,
    exact_rows: ExactRows | None = None,
) -> str | None:
    """`is_sequence` says that the form with gradients fits, see `_is_sequence`."""
    reason = device_unsupported_reason(query, capability=(8, 0))
    reason = reason or dtype_unsupported_reason((torch.float16, torch.bfloat16), query)
    if reason:
        return reason
    if tuple(map(int, torch.__version__.split(".")[:2])) < FIRST_TORCH:
        return f"torch {'.'.join(map(str, FIRST_TORCH))}, got {torch.__version__}"
    if dropout:
        return f"no dropout, got {dropout}"
    if exact_rows is not None:
        return "no exact rows, got some"
    if any(x.shape[-1] > LARGEST_HEAD or x.shape[-1] % 8 for x in (query, value)):
        sizes = f"{query.shape[-1]} and {value.shape[-1]}"
        return f"head sizes up to {LARGEST_HEAD} in steps of 8, got {sizes}"
    if not isinstance(start, int):
        return "one start for all rows, got one for each row"
    if torch.is_grad_enabled() and not is_sequence:
        return "no gradient, or a sequence from position 0 on that cuts into blocks"
    return None


register(Backend("window_attention", "cudnn", 1, _cudnn_unsupported_reason))
