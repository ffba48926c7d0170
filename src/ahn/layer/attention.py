"""The attention function that transformers calls in every layer of an attached model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ahn.layer.base_attention import BaseAttention, LazyMask
from ahn.layer.context import LayerContext
from ahn.layer.modes import Mode

NAME = "ahn"  # of the attention function, as transformers knows it


def ahn_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    ahn: LayerContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of an attached model, as transformers calls it.

    Its arguments have the order of transformers' own functions, which callers may rely on.

    Args:
        query: `[B, H, C, K]`.
        key, value: `[B, G, C, *]` of the new tokens (in a layer without a memory: of all tokens).

    Returns:
        `[B, C, H, V]`, and attention weights where the base's own function gave some.
    """
    if ahn is None:
        raise RuntimeError(f"{type(module).__name__}: expected attach's hook to run before it")
    if is_causal is not None:
        kwargs["is_causal"] = is_causal
    base = BaseAttention(module, attention_mask, scaling, dropout, kwargs)
    if ahn.keeps_own:
        return base(query, key, value)
    mode = ahn.forward.mode if ahn.is_bounded else ahn.forward.mode.without_memory()
    if ahn.forward.segments is not None and mode.splits_documents(base):
        return _documents(mode, base, query, key, value, ahn), None
    return mode(base, query, key, value, ahn)


def _documents(
    mode: Mode,
    base: BaseAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: LayerContext,
) -> Tensor:
    """Packed rows: every document on its own."""
    rows = []
    for row, documents in enumerate(context.forward.segments or ()):
        outputs = []
        for first, end in documents:
            q, k, v = (x[row : row + 1, :, first:end] for x in (query, key, value))
            outputs.append(mode.document(base, q, k, v, context.document(row, first, end)))
        rows.append(torch.cat(outputs, 1))
    return torch.cat(rows)


AttentionInterface.register(NAME, ahn_attention)
AttentionMaskInterface.register(NAME, LazyMask)
