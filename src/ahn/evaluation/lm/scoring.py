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

from ahn.evaluation.lm.sequences import ScoredSequence
from ahn.evaluation.streaming import CHUNK, cache_bytes, new_cache
from ahn.hf.cache_argument import CACHE
from ahn.runtime.fill_cache import fill_cache


@dataclass
class Score:
    """Nats of a continuation, and whether each of its tokens is the likeliest one."""

    loglikelihood: float = 0.0
    is_greedy: bool = True


@torch.no_grad()
def score_batch(
    model: PreTrainedModel,
    batch: Sequence[ScoredSequence],
    *,
    prefill_chunk_size: int,
    dtype: torch.dtype | None = None,
) -> tuple[dict[int, Score], int]:
    """Score the spans of a batch of sequences in one pass over them, in chunks.

    Logits exist for at most `CHUNK` tokens of the batch at a time, and only from the first token
    on whose logits any row scores.

    Args:
        model: looks back as the context it is called in says.
        prefill_chunk_size: tokens of each row per forward where nothing is scored.
        dtype: of the log-softmax; None is float32, or float64 of a float64 model.

    Returns:
        A score for every request of the batch, by its index, and the final bytes of the cache.
    """
    ids, mask = _left_padded(batch, model.device)
    scores = {span.request: Score() for sequence in batch for span in sequence.spans}
    cache = new_cache(model)
    logits_chunk_size = max(1, CHUNK // len(batch))
    for first, last, is_scored in _chunks(batch, prefill_chunk_size, logits_chunk_size):
        options = {**_inputs(ids, mask, first, last), CACHE: cache}
        if not is_scored:
            fill_cache(model, **options)
            continue
        logits = model(**options, use_cache=True).logits
        _add_scores(logits, batch, ids.shape[1], first, dtype, scores)
        del logits
    return scores, cache_bytes(cache)


@torch.no_grad()
def score_branches(
    model: PreTrainedModel,
    sequence: ScoredSequence,
    *,
    prefill_chunk_size: int,
    dtype: torch.dtype | None = None,
    change: Callable[[Cache], None] | None = None,
) -> tuple[dict[int, Score], int]:
    """As `score_batch` of one sequence with branches, each continued on a copy of the cache.

    Args:
        change: changes each copy before its branch. Then every continuation is scored as a branch,
            so that its score depends on its own context alone.
    """
    if change is not None:
        sequence = ScoredSequence(sequence.inputs, branches=sequence.all_branches())
    branches = sorted(sequence.branches, key=lambda branch: branch.span.first)
    scores = {span.request: Score() for span in sequence.spans}
    cache = new_cache(model)
    sizes = (prefill_chunk_size, dtype)
    cuts = [0, *(branch.span.first for branch in branches)]
    for branch, (begin, end) in zip(branches, pairwise(cuts)):
        _continue(model, cache, sequence, (begin, end), *sizes, scores)
        copied = copy.deepcopy(cache)
        if change is not None:
            change(copied)
        alone = ScoredSequence(branch.inputs, [replace(branch.span, first=0)])
        scores[branch.span.request] = Score()
        _continue(model, copied, alone, (0, len(alone)), *sizes, scores)
    if sequence.spans:
        _continue(model, cache, sequence, (cuts[-1], len(sequence)), *sizes, scores)
    return scores, cache_bytes(cache)


def _continue(
    model: PreTrainedModel,
    cache: Cache,
    sequence: ScoredSequence,
    positions: tuple[int, int],
    prefill_chunk_size: int,
    dtype: torch.dtype | None,
    scores: dict[int, Score],
) -> None:
    """Run the tokens at `[begin, end)` of one sequence and score its spans there."""
    begin, end = positions
    ids = torch.tensor([sequence.inputs[begin:end]], device=model.device)
    for first, last, is_scored in _chunks([sequence], prefill_chunk_size, CHUNK, begin, end):
        chunk = ids[:, first - begin : last - begin]
        if not is_scored:
            fill_cache(model, input_ids=chunk, **{CACHE: cache})
            continue
        logits = model(input_ids=chunk, **{CACHE: cache}, use_cache=True).logits
        _add_scores(logits, [sequence], len(sequence), first, dtype, scores)
        del logits


def _left_padded(
    batch: Sequence[ScoredSequence], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Ids and mask `[B, T]`; the mask is None where no row is padded."""
    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, width - len(sequence) :] = torch.tensor(sequence.inputs)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), None if mask.all() else mask.to(device)


def _chunks(
    batch: Sequence[ScoredSequence],
    prefill_chunk_size: int,
    logits_chunk_size: int,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, int, bool]]:
    """Columns `[first, last)` of each forward within `[begin, end)`, and whether any row scores."""
    width = max(map(len, batch))
    is_scored = torch.zeros(width, dtype=torch.bool)
    for sequence in batch:
        offset = width - len(sequence)
        for span in sequence.spans:
            is_scored[offset + span.first : offset + span.last] = True
    first = begin
    for scored, run in groupby(is_scored[begin:end].tolist()):
        run_end = first + len(list(run))
        size = min(prefill_chunk_size, logits_chunk_size) if scored else prefill_chunk_size
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


def _add_scores(
    logits: Tensor,
    batch: Sequence[ScoredSequence],
    width: int,
    first: int,
    dtype: torch.dtype | None,
    scores: dict[int, Score],
) -> None:
    """Add to `scores` what the logits `[B, n, vocabulary]` of the columns from `first` on give."""
    wide = dtype or torch.promote_types(logits.dtype, torch.float32)
    for row, sequence in enumerate(batch):
        offset = width - len(sequence) - first
        for span in sequence.spans:
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
