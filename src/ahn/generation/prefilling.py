"""Prefill in chunks: peak memory depends on the size of a chunk, not on the prompt's length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.cache_argument import CACHE
from ahn.hf.inputs import check_rows_end_in_tokens, left_padding
from ahn.hf.vocabulary import check_token_ids
from ahn.layer.cache import AHNCache
from ahn.runtime.fill_cache import fill_cache
from ahn.runtime.prefill_chunk import default_prefill_chunk_size


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    cache: AHNCache | None = None,
    *,
    prefill_chunk_size: int | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, AHNCache]:
    """Run a prompt through the model to fill a cache; only the last token gets logits.

    Args:
        ids: `[B, T]` token ids, or an iterable of such blocks.
        cache: continue this one, in place; None starts a new one.
        prefill_chunk_size: tokens per forward; None chooses by the free memory, see
            `ahn.runtime.prefill_chunk`.
        attention_mask: `[B, T]` for left-padded rows, if `ids` is a tensor and the cache is new.

    Returns:
        Logits `[B, vocabulary]` of the token that follows, and the cache.

    Raises:
        ValueError: no tokens, one that the base has not, a chunk size below 1, or padding that is
            not on the left.
    """
    cache = AHNCache(model.config) if cache is None else cache
    padding = _left_padding(ids, attention_mask, cache)
    if prefill_chunk_size is None:
        batch = ids.shape[0] if isinstance(ids, Tensor) else 1
        prefill_chunk_size = default_prefill_chunk_size(model, batch)
    logits = None
    for chunk, is_last in _with_last(split(ids, prefill_chunk_size)):
        inputs = _inputs(model, chunk, cache, padding, attention_mask)
        if is_last:
            logits = model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
        else:
            fill_cache(model, **inputs)
    if logits is None:
        raise ValueError("prompt: expected at least one token, got none")
    return logits, cache


@torch.no_grad()
def fill(model: PreTrainedModel, ids: Tensor, cache: AHNCache) -> None:
    """Read tokens `[B, T]` into a cache in one forward, as `prefill` does before its last chunk."""
    fill_cache(model, **_inputs(model, ids, cache, cache.memory_layers[0].padding, None))


def split(ids: Tensor | Iterable[Tensor], prefill_chunk_size: int) -> Iterator[Tensor]:
    """Cut `[B, T]`, or the concatenation of such blocks, into chunks of so many tokens.

    The last chunk holds the rest.
    """
    size = prefill_chunk_size
    if size < 1:
        raise ValueError(f"prefill_chunk_size: expected at least 1 token, got {size}")
    waiting: list[Tensor] = []  # blocks of the next chunk
    count = 0  # their tokens
    for block in [ids] if isinstance(ids, Tensor) else ids:
        if block.ndim != 2:
            raise ValueError(f"ids: expected [batch, tokens], got {list(block.shape)}")
        for part in block.split(size - count if count else size, dim=1):
            waiting.append(part)
            count += part.shape[1]
            while count >= size:
                joined = torch.cat(waiting, 1)
                yield joined[:, :size]
                waiting, count = [joined[:, size:]], count - size
    if count:
        yield torch.cat(waiting, 1)


def _with_last(chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each chunk, and whether it is the last one.

    So a chunk is given out once the one after it is known.
    """
    previous = None
    for chunk in chunks:
        if previous is not None:
            yield previous, False
        previous = chunk
    if previous is not None:
        yield previous, True


def _left_padding(
    ids: Tensor | Iterable[Tensor], mask: Tensor | None, cache: AHNCache
) -> Tensor | None:
    """Padding of each row `[B]`, from the mask or as the cache noted it for an earlier prompt."""
    layer = cache.memory_layers[0]
    if mask is None:
        return layer.padding
    if not isinstance(ids, Tensor) or mask.shape != ids.shape:
        got = list(ids.shape) if isinstance(ids, Tensor) else "an iterable"
        raise ValueError(f"attention_mask: expected ids of shape {list(mask.shape)}, got {got}")
    if layer.seen:
        raise ValueError(f"attention_mask: expected a new cache, got one of {layer.seen} tokens")
    check_rows_end_in_tokens(mask)
    return left_padding(mask.bool(), None, 0)


def _inputs(
    model: PreTrainedModel,
    chunk: Tensor,
    cache: AHNCache,
    padding: Tensor | None,
    mask: Tensor | None,
) -> dict[str, Any]:
    """What one forward is given to read a chunk."""
    if chunk.device.type == "cpu" and chunk.numel():  # elsewhere to ask is to wait
        check_token_ids(int(chunk.max()), model)
    chunk = chunk.to(model.device)
    padded = {} if padding is None else _padded_inputs(chunk, padding, cache, mask)
    return {"input_ids": chunk, CACHE: cache, **padded}


def _padded_inputs(
    chunk: Tensor, padding: Tensor, cache: AHNCache, mask: Tensor | None
) -> dict[str, Tensor]:
    """Positions, and the mask up to the chunk's end, of left-padded rows."""
    seen, length = cache.get_seq_length(), chunk.shape[1]
    index = torch.arange(seen, seen + length, device=chunk.device)
    position = index - padding.to(chunk.device)[:, None]
    offset = cache.memory_layers[0].rope_offset
    position = position.clamp(min=0) if offset is None else position + offset[:, None]
    options = {"position_ids": position}
    if mask is not None:
        options["attention_mask"] = mask[:, : seen + length].to(chunk.device)
    return options
