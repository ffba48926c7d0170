"""Tokens per second of growing batches, up to what fits into the memory of the GPU."""

from __future__ import annotations

from typing import Any

import torch

from ahn.bench.decode import bench_decode
from ahn.bench.models import BenchModel
from ahn.cost import cache_bytes
from ahn.io.progress import Report, counted
from ahn.memory import Slots

SPARE = 0.06  # share of the GPU's memory, for activations and logits


def bench_batch(
    bench: BenchModel,
    tokens: int,
    methods: list[str],
    *,
    sizes: list[int] | None = None,
    step: str = "auto",
    new_tokens: int = 32,
    ceilings: dict[str, float] | None = None,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """Rows of `bench_decode`, one a method and batch size, with the cache's bytes per sequence.

    Args:
        sizes: batch sizes; None takes powers of two, then the largest that fits. These are
            computed in advance, from the bytes of a cache.
        report: told how many sizes of a method are measured.
    """
    rows = []
    for method in methods:
        settings = bench.cost_settings(method)
        has_cell = method == "ahn" and bench.settings.memory is not None
        memory, itemsize = bench.memory if has_cell else None, bench.model.dtype.itemsize
        slots = Slots if method == "ahn" else None
        per_row = cache_bytes(bench.shape, tokens, settings, memory, itemsize, slots)
        options: dict[str, Any] = {"steps": [step], "new_tokens": new_tokens, "ceilings": ceilings}
        for size in counted(sizes or _sizes(bench, per_row), f"{method} in batches", report):
            measured = bench_decode(bench, tokens, [method], batch=size, **options)
            rows += [{**row, "cache_bytes_per_row": per_row} for row in measured]
    return rows


def _sizes(bench: BenchModel, per_row: int) -> list[int]:
    if bench.device.type != "cuda":
        return [1, 2, 4]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(bench.device)
    largest = max(1, int((free - SPARE * total) // per_row))
    powers = [1 << n for n in range(largest.bit_length())]
    return sorted({*powers, largest})
