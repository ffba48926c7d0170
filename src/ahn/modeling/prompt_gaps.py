"""Prompts with masked tokens between real ones, such as a pad token that the text itself holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def without_gaps(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor | None, tuple[Any, ...], dict[str, Any]]:
    """Arguments of `generate` in which all masked tokens are padding on the left.

    As in the base, nobody sees a masked token and it takes no position: so where it stands makes no
    difference. Without a mask transformers masks every pad token, where that ends no text.

    Returns:
        The prompt `[B, T]` as it was, None where nothing was moved, and the arguments.
    """
    name = next((x for x in ("inputs", "input_ids") if kwargs.get(x) is not None), None)
    ids = args[0] if args else kwargs.get(name or "")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        return None, args, kwargs
    mask = kwargs.get("attention_mask")
    mask = _inferred_mask(model, ids, kwargs) if mask is None else mask
    if mask is None or mask.shape != ids.shape or not mask[:, -1].all():
        return None, args, kwargs
    mask = mask.bool()
    if not ((~mask) & (mask.cumsum(1) > 0)).any():
        return None, args, kwargs
    order = mask.int().argsort(dim=1, stable=True)
    moved, kwargs = ids.gather(1, order), {**kwargs, "attention_mask": mask.gather(1, order).long()}
    if args:
        return ids, (moved, *args[1:]), kwargs
    return ids, args, {**kwargs, str(name): moved}


def with_prompt(output: Any, prompt: Tensor) -> Any:
    """What `generate` gave, with the prompt `[B, T]` as it was before its tokens."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = prompt.to(sequences.device).repeat_interleave(len(sequences) // len(prompt), 0)
    sequences[:, : prompt.shape[1]] = prompt
    return output


def _inferred_mask(model: Any, ids: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask that transformers makes of pad tokens; None where it makes none."""
    settings = kwargs.get("generation_config") or model.generation_config
    pad, end = (
        kwargs.get(name, getattr(settings, name, None)) for name in ("pad_token_id", "eos_token_id")
    )
    if pad is None or pad in torch.as_tensor([] if end is None else end).flatten().tolist():
        return None
    return ids.ne(int(pad))
