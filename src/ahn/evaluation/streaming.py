"""Nats per token of a text of any length, in one pass and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from ahn.generation.prefilling import split
from ahn.hf.attached_state import attached_state
from ahn.hf.cache_argument import CACHE
from ahn.layer.cache import AHNCache
from ahn.modeling.attached import AHNModelMixin

CHUNK = 512  # tokens whose logits exist at once


def token_losses(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    *,
    prefill_chunk_size: int = CHUNK,
    cache: Cache | None = None,
) -> Tensor:
    """Nats of every token but the first, given all before it.

    What the model looks at is decided by the context it is called in: its memory, window and
    sinks alone (`ahn.memory_off`), or full attention (`ahn.disabled`, or a plain model).

    Args:
        ids: `[1, T]` token ids, or an iterable of such blocks.
        prefill_chunk_size: tokens per forward.
        cache: continue this one, in place; None starts a new one.

    Returns:
        `[T - 1]`, float32 (float64 of a float64 model), on the model's device.

    Raises:
        ValueError: fewer than two tokens, more than one row, or a chunk size below 1.
    """
    of_chunks = list(stream_losses(model, ids, prefill_chunk_size=prefill_chunk_size, cache=cache))
    losses = torch.cat(of_chunks) if of_chunks else torch.empty(0)
    if not len(losses):
        raise ValueError(f"ids: expected at least 2 tokens, got {len(of_chunks)}")
    return losses


def stream_losses(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    *,
    prefill_chunk_size: int = CHUNK,
    cache: Cache | None = None,
) -> Iterator[Tensor]:
    """As `token_losses`, but yields the losses of each chunk after its forward.

    The first chunk gives one loss less than it has tokens. Consume the iterator within the context
    (`ahn.memory_off`, ...) that the losses are for.
    """
    yield from _scored(model, ids, prefill_chunk_size, cache, _nats)


def stream_likeliest(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    *,
    prefill_chunk_size: int = CHUNK,
    cache: Cache | None = None,
) -> Iterator[Tensor]:
    """As `stream_losses`, but yields of each token whether it was the likeliest, `[n]` bool."""
    yield from _scored(model, ids, prefill_chunk_size, cache, _likeliest)


def _scored(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    size: int,
    cache: Cache | None,
    score: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """What `score` says of logits `[n, vocabulary]` and their tokens `[n]`, of chunks of `size`."""
    cache = new_cache(model) if cache is None else cache
    before: Tensor | None = None  # logits [1, vocabulary] for the first token of a chunk
    for chunk in split(ids, size):
        if chunk.shape[0] != 1:
            raise ValueError(f"ids: expected one row, got {chunk.shape[0]}")
        chunk = chunk.to(model.device)
        with torch.no_grad():
            logits = model(input_ids=chunk, **{CACHE: cache}, use_cache=True).logits[0]
            scores = score(logits[:-1], chunk[0, 1:])
            if before is not None:
                scores = torch.cat([score(before, chunk[0, :1]), scores])
        before = logits[-1:].clone()  # a view would keep the logits of the chunk in memory
        del logits
        yield scores


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache for what the model looks at now: bounded, or growing for full attention."""
    if isinstance(model, AHNModelMixin) and attached_state(model).mode.is_bounded:
        return AHNCache(model.config)
    return DynamicCache(config=model.config)


def cache_bytes(cache: Cache) -> int:
    """Bytes of all tensors in a cache of `new_cache`."""
    if isinstance(cache, AHNCache):
        return cache.nbytes
    tensors = (getattr(layer, name) for layer in cache.layers for name in ("keys", "values"))
    return sum(x.nbytes for x in tensors if x is not None)


def bits_per_byte(nats: Tensor, num_bytes: int) -> float:
    """The sum of `nats` in bits, per byte of text; ValueError where there is no byte."""
    if num_bytes < 1:
        raise ValueError(f"bits per byte: expected at least 1 byte, got {num_bytes}")
    return nats.double().sum().item() / math.log(2) / num_bytes


def encode_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tensor, Tensor]:
    """Token ids `[T]` of a text, no special tokens added, and how many bytes each one spells.

    Raises ValueError where the tokenizer is not byte-level, or changes the text (normalises it).
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    # A byte-level vocabulary writes every byte as one character.
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    size = len(text.encode())
    if sum(lengths) != size:
        raise ValueError(
            f"tokenizer: expected byte-level tokens of {size} bytes, got {sum(lengths)} bytes"
        )
    return torch.tensor(ids, dtype=torch.long), torch.tensor(lengths, dtype=torch.long)


def beyond_budget(losses: Tensor, lengths: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Losses and bytes `[T - budget]` of the tokens at positions >= budget, the first being 0.

    Args:
        losses: `[T - 1]` of tokens 1 to T - 1, as `token_losses` gives them.
        lengths: `[T]` bytes of tokens 0 to T - 1.

    Raises:
        ValueError: no token is beyond the budget, or the two are not of one text.
    """
    if len(losses) != len(lengths) - 1:
        raise ValueError(f"losses: expected {len(lengths) - 1} of them, got {len(losses)}")
    if len(lengths) <= budget:
        raise ValueError(f"text: expected more than {budget} tokens, got {len(lengths)}")
    return losses[budget - 1 :], lengths[budget:]


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, reduction="none")


def _likeliest(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.argmax(-1) == targets
