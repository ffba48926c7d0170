"""Attention weights of a forward: given where the base would give them, else refused by name."""

from __future__ import annotations

import warnings
from typing import Any

from ahn.layer.context import ForwardContext


def check_attention_weights(
    decoder: Any, kwargs: dict[str, Any], context: ForwardContext, seen: int, length: int
) -> None:
    """Raise ValueError where `output_attentions` asks for weights that nobody computes.

    The base's eager attention alone gives weights, and it runs up to the budget. Another attention
    function gives none and is warned of, as transformers does.
    """
    wanted = kwargs.get("output_attentions")
    if not (getattr(decoder.config, "output_attentions", False) if wanted is None else wanted):
        return
    backend = decoder.config.ahn_backend
    if backend != "eager":
        warnings.warn(
            f"output_attentions: {backend!r} gives no attention weights; choose 'eager' by "
            "model.set_attn_implementation",
            stacklevel=2,
        )
    elif reason := _reason(context, seen, length):
        raise ValueError(f"output_attentions: expected {reason}")


def _reason(context: ForwardContext, seen: int, length: int) -> str | None:
    """What would have to be otherwise."""
    if not context.mode.is_bounded:
        return None
    if seen + length > context.budget:
        return f"at most {context.budget} tokens (window and sinks), got {seen + length}"
    if context.segments is not None:
        return "one document in each row, got packed documents"
    if seen and context.padding is not None:
        return "rows without padding after the first forward, got padded rows"
    return None
