"""The machine: hardware and versions, peak rates, and the clock and the memory meter."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

LIBRARIES = ("triton", "fla-core", "liger-kernel")  # their versions, where installed
COPY_BYTES = 2**31
MATRIX_SIZE = 8192


def environment(command: str) -> dict[str, Any]:
    """Hardware, versions and command of a run."""
    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "hardware": torch.cuda.get_device_name() if cuda else _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: installed for name in LIBRARIES if (installed := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """TB/s of a copy (bytes read and written) and bfloat16 matmul TFLOP/s; on a CPU nothing."""
    if device.type != "cuda":
        return {}
    halves = torch.empty(2, COPY_BYTES, dtype=torch.uint8, device=device)
    copy = median_seconds(lambda: halves[0].copy_(halves[1]), device)
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, dtype=torch.bfloat16, device=device)
    product = median_seconds(lambda: matrix @ matrix, device)
    return {
        "copy_tb_per_s": 2 * COPY_BYTES / copy / 1e12,
        "matmul_tflop_per_s": 2 * MATRIX_SIZE**3 / product / 1e12,
    }


def median_seconds(
    work: Callable[[], Any], device: torch.device, repeats: int = 5, warm_up: int = 1
) -> float:
    """Median over `repeats` runs, after `warm_up` runs."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that gets the peak of allocated bytes at the end; on a CPU it stays empty."""
    peak: list[int] = []
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    peak.append(torch.cuda.max_memory_allocated(device))
