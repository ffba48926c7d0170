"""Read a prompt of any length in chunks: peak memory depends on the chunk, not on the length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.hf.inputs import left_padding
from ahn.layer.cache import AHNCache
from ahn.runtime.fill_cache import fill_cache
from ahn.runtime.prefill_chunk import default_prefill_chunk_size


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    cache: AHNCache | None = None,
    *,
    chunk: int | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, AHNCache]:
    """Read tokens into a cache; logits are computed for the last token alone.

    Args:
        ids: `[B, T]` token ids, or an iterable of such pieces (a text that is never whole).
        cache: continue this one, in place; None starts anew.
        chunk: tokens per forward; None chooses by the memory that is free, see
            `ahn.runtime.prefill_chunk`.
        attention_mask: `[B, T]` for left-padded rows of a whole prompt read into a new cache.

    Returns:
        Logits `[B, vocabulary]` of the token that follows, and the cache.

    Raises:
        ValueError: no tokens, a chunk below 1, or padding that is not on the left.
    """
    cache = AHNCache(model.config) if cache is None else cache
    padding = _left_padding(ids, attention_mask, cache)
    logits = None
    if chunk is None:
        chunk = default_prefill_chunk_size(model, ids.shape[0] if isinstance(ids, Tensor) else 1)
    for piece, is_last in _with_last(split(ids, chunk)):
        piece = piece.to(model.device)
        options = {} if padding is None else _padded_inputs(piece, padding, cache, attention_mask)
        if is_last:
            output = model(
                input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1, **options
            )
            logits = output.logits[:, -1]
        else:
            fill_cache(model, input_ids=piece, past_key_values=cache, **options)
    if logits is None:
        raise ValueError("prompt: expected at least one token, got none")
    return logits, cache


def split(ids: Tensor | Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    """Cut `[B, T]`, or the concatenation of such pieces, into pieces of `chunk` tokens."""
    if chunk < 1:
        raise ValueError(f"prefill chunk: expected at least 1 token, got {chunk}")
    held: list[Tensor] = []
    count = 0
    for piece in [ids] if isinstance(ids, Tensor) else ids:
        if piece.ndim != 2:
            raise ValueError(f"ids: expected [batch, tokens], got {list(piece.shape)}")
        for part in piece.split(chunk - count if count else chunk, dim=1):
            held.append(part)
            count += part.shape[1]
            while count >= chunk:
                joined = torch.cat(held, 1)
                yield joined[:, :chunk]
                held, count = [joined[:, chunk:]], count - chunk
    if count:
        yield torch.cat(held, 1)


def _with_last(pieces: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each piece, and whether it is the last: known once the next one has been asked for."""
    previous = None
    for piece in pieces:
        if previous is not None:
            yield previous, False
        previous = piece
    if previous is not None:
        yield previous, True


def _left_padding(
    ids: Tensor | Iterable[Tensor], mask: Tensor | None, cache: AHNCache
) -> Tensor | None:
    """Padding of each row `[B]`, from the mask or from the cache that has read it."""
    layer = cache.memory_layers[0]
    if mask is None:
        return layer.padding
    if not isinstance(ids, Tensor) or mask.shape != ids.shape:
        got = list(ids.shape) if isinstance(ids, Tensor) else "pieces"
        raise ValueError(f"attention_mask: expected ids of shape {list(mask.shape)}, got {got}")
    if layer.seen:
        raise ValueError(f"attention_mask: expected a new cache, got one of {layer.seen} tokens")
    if not mask[:, -1].all():
        raise ValueError("attention_mask: expected left padding, got a row that ends in padding")
    return left_padding(mask.bool(), None, 0)


def _padded_inputs(
    piece: Tensor, padding: Tensor, cache: AHNCache, mask: Tensor | None
) -> dict[str, Tensor]:
    seen, length = cache.get_seq_length(), piece.shape[1]
    index = torch.arange(seen, seen + length, device=piece.device)
    position = index - padding.to(piece.device)[:, None]
    options = {"position_ids": position.clamp(min=0)}
    if mask is not None:
        options["attention_mask"] = mask[:, : seen + length].to(piece.device)
    return options
