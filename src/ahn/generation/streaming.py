"""Answer token by token: nothing that grows with the text is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    chunk: int | None = None,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    step: str = "auto",
) -> Iterator[Tensor]:
    """Read a prompt as `prefill` does, then yield new tokens `[B]` until every row has ended.

    Args:
        ids, cache, chunk, attention_mask: as in `prefill`; the cache holds prompt and answer
            (all but the last token) when the stream ends.
        max_new_tokens: the most tokens to yield.
        temperature: 0 takes the likeliest token.
        top_k, top_p: keep this many tokens, this much probability; 0 and 1 keep all.
        generator: source of the random numbers.
        step: how a token is decoded, see `ahn.runtime.decode_step.DecodeStep`.

    Yields:
        Token ids `[B]`; a row that has ended repeats its end token.

    Raises:
        ValueError: an option out of range, or as `prefill`.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    warp = _warpers(temperature, top_k, top_p)
    cache = AHNCache(model.config) if cache is None else cache
    logits, cache = prefill(model, ids, cache, chunk=chunk, attention_mask=attention_mask)
    ends = _end_tokens(model).to(logits.device)
    ended = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    token = logits.argmax(-1)
    read = DecodeStep(model, cache, step)
    for number in range(max_new_tokens):
        if number:
            logits = read(token)
        token = torch.where(ended, token, _choose(logits, warp, generator))
        yield token
        ended |= torch.isin(token, ends)
        if ended.all():
            return


def _warpers(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList | None:
    """Sampling by transformers' own warpers; None is greedy."""
    if temperature < 0:
        raise ValueError(f"temperature: expected >= 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k: expected >= 0, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected above 0 and at most 1, got {top_p}")
    if temperature == 0:
        return None
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _choose(
    logits: Tensor, warp: LogitsProcessorList | None, generator: torch.Generator | None
) -> Tensor:
    if warp is None:
        return logits.argmax(-1)
    no_history: Any = None  # these warpers look at the scores alone
    probabilities = warp(no_history, logits.float()).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _end_tokens(model: PreTrainedModel) -> Tensor:
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends
    return torch.tensor([ends] if isinstance(ends, int) else list(ends), dtype=torch.long)
