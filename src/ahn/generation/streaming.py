"""Generate token by token in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ahn.generation.prefilling import prefill
from ahn.layer.cache import AHNCache
from ahn.runtime.decode_step import DecodeStep


def stream(
    model: PreTrainedModel,
    ids: Tensor | Iterable[Tensor],
    cache: AHNCache | None = None,
    *,
    max_new_tokens: int,
    prefill_chunk_size: int | None = None,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    step: str = "auto",
) -> Iterator[Tensor]:
    """Prefill a prompt, then yield new tokens `[B]` until every row has ended.

    Args:
        ids, cache, prefill_chunk_size, attention_mask: as in `prefill`. When the stream ends, the
            cache has seen the prompt and the answer without its last token.
        max_new_tokens: the most tokens to yield.
        temperature: 0 takes the likeliest token.
        top_k, top_p: sample among this many tokens, this much probability; 0 and 1 mean all.
        generator: source of the random numbers.
        step: how a token is decoded, see `ahn.runtime.decode_step.DecodeStep`.

    Yields:
        Token ids `[B]`; a row that has ended repeats its end token.

    Raises:
        ValueError: an option out of range, or as `prefill`.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    warp = warpers(temperature, top_k, top_p)
    logits, cache = prefill(
        model, ids, cache, prefill_chunk_size=prefill_chunk_size, attention_mask=attention_mask
    )
    decode = DecodeStep(model, cache, step)
    tokens = _decoded(logits, decode, end_tokens(model), lambda x: choose(x, warp, generator))
    yield from islice(tokens, max_new_tokens)


def _decoded(
    logits: Tensor,
    decode: Callable[[Tensor], Tensor],
    ends: Tensor,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """New tokens `[B]` until every row has ended; `decode` gives the logits after a token."""
    ends = ends.to(logits.device)
    ended = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    token = choose(logits)
    while True:
        yield token
        ended |= torch.isin(token, ends)
        if ended.all():
            return
        token = torch.where(ended, token, choose(decode(token)))


def warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList | None:
    """Transformers' own warpers for sampling; None for greedy decoding."""
    if temperature < 0:
        raise ValueError(f"temperature: expected >= 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k: expected >= 0, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected above 0 and at most 1, got {top_p}")
    if temperature == 0:
        return None
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    return chain


def choose(
    logits: Tensor, warp: LogitsProcessorList | None, generator: torch.Generator | None
) -> Tensor:
    """The next token `[B]` by logits `[B, vocabulary]`: the likeliest, or a sample."""
    if warp is None:
        return logits.argmax(-1)
    no_history: Any = None  # these warpers use the scores alone
    probabilities = warp(no_history, logits.float()).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def end_tokens(model: PreTrainedModel) -> Tensor:
    """Ids of the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends
    return torch.tensor([ends] if isinstance(ends, int) else list(ends), dtype=torch.long)
