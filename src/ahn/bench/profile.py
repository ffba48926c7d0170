"""Time per GPU kernel, summed by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ahn.bench.machine import synchronize

LONGEST_NAME = 90


def kernel_times(work: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """One row a kernel of `work`, the slowest first: its name, calls and milliseconds.

    Raises ValueError where the device is not a GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"profile: expected a CUDA device, got {device}")
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA]) as profiler:
        work()
        synchronize(device)
    events = [event for event in profiler.key_averages() if event.self_device_time_total]
    return [
        {
            "kernel": event.key[:LONGEST_NAME],
            "calls": event.count,
            "ms": event.self_device_time_total / 1e3,
        }
        for event in sorted(events, key=lambda event: -event.self_device_time_total)
    ]
