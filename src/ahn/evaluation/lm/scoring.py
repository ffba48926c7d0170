"""Log-likelihoods of continuations in bounded memory: no logits beyond what is scored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ahn.evaluation.lm.readings import Reading
from ahn.evaluation.streaming import CHUNK, cache_bytes, new_cache
from ahn.runtime.fill_cache import fill_cache


@dataclass
class Score:
    """Nats of a continuation, and whether each of its tokens is the likeliest one."""

    loglikelihood: float = 0.0
    is_greedy: bool = True


@torch.no_grad()
def score_batch(
    model: PreTrainedModel,
    batch: Sequence[Reading],
    *,
    chunk: int,
    dtype: torch.dtype | None = None,
) -> tuple[dict[int, Score], int]:
    """Read a batch of texts once, in chunks, and score what they carry.

    Logits exist for at most `CHUNK` tokens of the batch at a time, and only from the first token
    that any row scores.

    Args:
        model: looks back as the context it is called in says.
        chunk: tokens of each row per forward where nothing is scored.
        dtype: of the log-softmax; None is float32, or float64 of a float64 model.

    Returns:
        A score for every request of the batch, by its index, and bytes of the cache in the end.
    """
    ids, mask = _left_padded(batch, model.device)
    scores = {span.request: Score() for reading in batch for span in reading.spans}
    cache = new_cache(model)
    for first, last, is_scored in _pieces(batch, chunk, max(1, CHUNK // len(batch))):
        options = {**_inputs(ids, mask, first, last), "past_key_values": cache}
        if not is_scored:
            fill_cache(model, **options)
            continue
        logits = model(**options, use_cache=True).logits
        _score_piece(logits, batch, ids.shape[1], first, dtype, scores)
        del logits
    return scores, cache_bytes(cache)


@torch.no_grad()
def score_branches(
    model: PreTrainedModel,
    reading: Reading,
    *,
    chunk: int,
    dtype: torch.dtype | None = None,
    change: Callable[[Cache], None] | None = None,
) -> tuple[dict[int, Score], int]:
    """As `score_batch` of one text with branches, each read with a copy of the cache.

    Args:
        change: changes such a copy first; everything is scored as a branch then, so that a score
            depends on its own context alone, whatever else is scored on the way.
    """
    if change is not None:
        reading = Reading(reading.inputs, branches=reading.all_branches())
    branches = sorted(reading.branches, key=lambda branch: branch.span.first)
    scores = {span.request: Score() for span in reading.spans}
    cache = new_cache(model)
    cuts = [0, *(branch.span.first for branch in branches)]
    for branch, (begin, end) in zip(branches, pairwise(cuts)):
        _read_on(model, cache, reading, begin, end, chunk, dtype, scores)
        copied = copy.deepcopy(cache)
        if change is not None:
            change(copied)
        own = Reading(branch.inputs, [replace(branch.span, first=0)])
        scores[branch.span.request] = Score()
        _read_on(model, copied, own, 0, len(own), chunk, dtype, scores)
    if reading.spans:
        _read_on(model, cache, reading, cuts[-1], len(reading), chunk, dtype, scores)
    return scores, cache_bytes(cache)


def _read_on(
    model: PreTrainedModel,
    cache: Cache,
    reading: Reading,
    begin: int,
    end: int,
    chunk: int,
    dtype: torch.dtype | None,
    scores: dict[int, Score],
) -> None:
    """Read the tokens `[begin, end)` of one text and score what they carry."""
    ids = torch.tensor([reading.inputs[begin:end]], device=model.device)
    for first, last, is_scored in _pieces([reading], chunk, CHUNK, begin, end):
        piece = ids[:, first - begin : last - begin]
        if not is_scored:
            fill_cache(model, input_ids=piece, past_key_values=cache)
            continue
        logits = model(input_ids=piece, past_key_values=cache, use_cache=True).logits
        _score_piece(logits, [reading], len(reading), first, dtype, scores)
        del logits


def _left_padded(batch: Sequence[Reading], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids and mask `[B, T]`; the mask is None where no row is padded."""
    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, reading in enumerate(batch):
        ids[row, width - len(reading) :] = torch.tensor(reading.inputs)
        mask[row, width - len(reading) :] = 1
    return ids.to(device), None if mask.all() else mask.to(device)


def _pieces(
    batch: Sequence[Reading], chunk: int, scored_chunk: int, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, bool]]:
    """Columns `[first, last)` of each forward within `[begin, end)`, and whether any row scores."""
    width = max(map(len, batch))
    is_scored = torch.zeros(width, dtype=torch.bool)
    for reading in batch:
        offset = width - len(reading)
        for span in reading.spans:
            is_scored[offset + span.first : offset + span.last] = True
    first = begin
    for scored, run in groupby(is_scored[begin:end].tolist()):
        run_end = first + len(list(run))
        size = min(chunk, scored_chunk) if scored else chunk
        while first < run_end:
            last = min(run_end, first + size)
            yield first, last, scored
            first = last


def _inputs(ids: Tensor, mask: Tensor | None, first: int, last: int) -> dict[str, Tensor]:
    inputs = {"input_ids": ids[:, first:last]}
    if mask is not None:
        inputs["attention_mask"] = mask[:, :last]
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, first:last]
    return inputs


def _score_piece(
    logits: Tensor,
    batch: Sequence[Reading],
    width: int,
    first: int,
    dtype: torch.dtype | None,
    scores: dict[int, Score],
) -> None:
    """Add what the logits `[B, n, vocabulary]` of the columns from `first` on say."""
    wide = dtype or torch.promote_types(logits.dtype, torch.float32)
    for row, reading in enumerate(batch):
        offset = width - len(reading) - first
        for span in reading.spans:
            begin = max(0, offset + span.first)
            end = min(logits.shape[1], offset + span.last)
            if begin >= end:
                continue
            skipped = begin - offset - span.first
            targets = torch.tensor(span.targets[skipped : skipped + end - begin])
            targets = targets.to(logits.device)
            nats = logits[row, begin:end].log_softmax(-1, dtype=wide)
            score = scores[span.request]
            score.loglikelihood += nats.gather(1, targets[:, None]).sum().item()
            score.is_greedy &= bool((nats.argmax(-1) == targets).all())
