"""Prefill: time, peak memory and share of the matmul rate, by window, length and method."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from ahn.bench.machine import peak_memory, synchronize
from ahn.bench.models import BenchModel, with_window
from ahn.bench.profile import kernel_times
from ahn.cost import prefill_flops
from ahn.evaluation import cache_bytes
from ahn.generation import prefill
from ahn.hf.cache_argument import CACHE
from ahn.io.progress import Report, counted
from ahn.layer.cache import AHNCache
from ahn.runtime.prefill_chunk import default_prefill_chunk_size

FULL_ATTENTION_KERNELS = [  # the fastest on a GPU first
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def bench_prefill(
    bench: BenchModel,
    lengths: list[int],
    methods: list[str],
    *,
    windows: list[int],
    prefill_chunk_sizes: list[int] | None = None,
    repeats: int = 3,
    ceilings: dict[str, float] | None = None,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """One row a window, method, chunk size and length: seconds, tokens/s, memory, TFLOP/s.

    Each method runs in its fastest way, named `how`: full attention in one forward, as `generate`
    does, on a GPU by cuDNN's kernel where that can run; the others in chunks.

    Args:
        prefill_chunk_sizes: None takes the default, which depends on the free memory.
        report: told with how many settings all lengths are measured.
    """
    rows = []
    settings = _settings(methods, windows, prefill_chunk_sizes)
    for window, method, size in counted(settings, "prompts", report):
        bench = with_window(bench, window)
        with bench.method(method):
            _prefill(bench, method, _prompt(bench, min(lengths)), size)  # compiles the kernels
            rows += [_row(bench, n, method, size, repeats, ceilings or {}) for n in lengths]
    return rows


def profile_prefill(
    bench: BenchModel,
    methods: list[str],
    *,
    windows: list[int],
    prefill_chunk_sizes: list[int] | None = None,
) -> list[dict[str, Any]]:
    """One row a kernel of one chunk after a full window: its calls and milliseconds."""
    rows = []
    for window, method, size in _settings(methods, windows, prefill_chunk_sizes):
        if method != "full":
            bench = with_window(bench, window)
            rows += _profile(bench, method, size)
    return rows


def _profile(bench: BenchModel, method: str, size: int | None) -> list[dict[str, Any]]:
    size = size or default_prefill_chunk_size(bench.model, 1)
    ids = _prompt(bench, size)
    with bench.method(method):
        _, cache = prefill(bench.model, _prompt(bench, bench.settings.budget + size))
        kernels = kernel_times(
            lambda: prefill(bench.model, ids, cache, prefill_chunk_size=size), bench.device
        )
    place = {"method": method, "window": bench.settings.window, "chunk": size}
    return [{**place, **kernel} for kernel in kernels]


def _settings(
    methods: list[str], windows: list[int], sizes: list[int] | None
) -> list[tuple[int, str, int | None]]:
    """Each window with each method and each chunk size; full attention once."""
    settings: list[tuple[int, str, int | None]] = []
    for number, window in enumerate(windows):
        for method in methods:
            if method != "full":
                settings += [(window, method, size) for size in sizes or (None,)]
            elif not number:
                settings.append((window, method, None))
    return settings


def _prompt(bench: BenchModel, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(bench.shape.vocabulary, (1, length), generator=generator)
    return ids.to(bench.device)


def _row(
    bench: BenchModel,
    length: int,
    method: str,
    size: int | None,
    repeats: int,
    ceilings: dict[str, float],
) -> dict[str, Any]:
    ids = _prompt(bench, length)
    row: dict[str, Any] = {"method": method, "tokens": length, "how": "chunks"}
    if method == "full":
        row["how"] = "one forward" + (", cuDNN first" if bench.device.type == "cuda" else "")
    else:
        size = size or default_prefill_chunk_size(bench.model, 1)
        row |= {"window": bench.settings.window, "chunk": size}
    before = torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0
    try:
        with peak_memory(bench.device) as peak:
            runs = [_prefill(bench, method, ids, size) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    median, cached = sorted(seconds for seconds, _ in runs)[repeats // 2], runs[0][1]
    tera = prefill_flops(bench.shape, length, bench.cost_settings(method)) / 1e12
    row |= {"seconds": median, "tokens_per_s": length / median, "held_gib": cached / 2**30}
    if peak:
        row["peak_over_weights_gib"] = (peak[0] - before) / 2**30
    row["tflop_per_s"] = tera / median
    if "matmul_tflop_per_s" in ceilings:
        row["share_of_matmul"] = tera / median / ceilings["matmul_tflop_per_s"]
    return row


def _prefill(bench: BenchModel, method: str, ids: Tensor, size: int | None) -> tuple[float, int]:
    """Seconds for one prompt, and the bytes of its cache."""
    gc.collect()
    cache: Any = DynamicCache() if method == "full" else AHNCache(bench.model.config)
    synchronize(bench.device)
    start = time.perf_counter()
    if method == "full":
        with torch.no_grad(), sdpa_kernel(FULL_ATTENTION_KERNELS, set_priority=True):
            bench.model(ids, **{CACHE: cache}, logits_to_keep=1)
    else:
        prefill(bench.model, ids, cache, prefill_chunk_size=size)
    synchronize(bench.device)
    return time.perf_counter() - start, cache_bytes(cache)
