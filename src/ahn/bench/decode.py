"""Decoding: milliseconds per token after a long prompt, by method and kind of step."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ahn.bench.machine import synchronize
from ahn.bench.models import BenchModel, filled_cache
from ahn.cost import decode_bytes
from ahn.hf.cache_argument import CACHE
from ahn.io.progress import Report, counted
from ahn.memory import Slots
from ahn.runtime.decode_step import DecodeStep

ROUND = 8  # tokens between two readings of the clock


def bench_decode(
    bench: BenchModel,
    tokens: int,
    methods: list[str],
    *,
    steps: list[str],
    new_tokens: int = 128,
    batch: int = 1,
    ceilings: dict[str, float] | None = None,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """One row a method and step: median milliseconds, tokens/s, and TB/s.

    The bytes are those that a step must at least move: weights and cache.

    Args:
        tokens: length of the prompt; its cache is filled with random numbers.
        steps: kinds of step, see `ahn.runtime.decode_step.DecodeStep`; full attention runs eagerly.
        new_tokens: tokens to time, after a warm-up.
        report: told how many rows are measured.
    """
    kinds = [(x, step) for x in methods for step in (["eager"] if x == "full" else steps)]
    rows = []
    for method, step in counted(kinds, "decoding", report):
        row: dict[str, Any] = {"method": method, "step": step, "tokens": tokens, "batch": batch}
        slots = Slots if method == "ahn" else None
        moved = decode_bytes(bench.shape, tokens, bench.cost_settings(method), batch, slots=slots)
        try:
            with bench.method(method), filled_cache(bench, method, batch, tokens) as cache:
                times = _measure(bench, method, cache, step, new_tokens, batch)
        except torch.OutOfMemoryError:
            rows.append({**row, "error": "out of memory"})
            continue
        seconds = times["ms_per_step"] / 1e3
        row |= times | {"tokens_per_s": batch / seconds, "tb_per_s": moved / seconds / 1e12}
        if ceilings:
            row["share_of_copy"] = row["tb_per_s"] / ceilings["copy_tb_per_s"]
        rows.append(row)
    return rows


def _measure(
    bench: BenchModel, method: str, cache: Any, how: str, new_tokens: int, batch: int
) -> dict[str, float]:
    """Warm-up in seconds and milliseconds per step of greedy decoding."""
    step = (
        _full_attention_step(bench, cache)
        if method == "full"
        else DecodeStep(bench.model, cache, how)
    )
    token = torch.arange(batch, device=bench.device) % bench.shape.vocabulary
    start = time.perf_counter()
    token = _decode(step, token, ROUND)
    synchronize(bench.device)
    warm_up, seconds = time.perf_counter() - start, []
    for _ in range(max(1, new_tokens // ROUND)):
        start = time.perf_counter()
        token = _decode(step, token, ROUND)
        synchronize(bench.device)
        seconds.append(time.perf_counter() - start)
    return {"warm_up_s": warm_up, "ms_per_step": median(seconds) / ROUND * 1e3}


def _decode(step: Callable[[Tensor], Tensor], token: Tensor, count: int) -> Tensor:
    for _ in range(count):
        token = step(token).argmax(-1)
    return token


def _full_attention_step(bench: BenchModel, cache: Any) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def step(token: Tensor) -> Tensor:
        return bench.model(token[:, None], **{CACHE: cache}).logits[:, -1]

    return step
