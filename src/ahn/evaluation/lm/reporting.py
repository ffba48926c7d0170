"""How far an evaluation is, and what its batches cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ahn.io.progress import Report, progress


class Shown:
    """Progress of what is being scored or answered."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.done = self.total = 0

    @contextmanager
    def of(self, total: int, *, quiet: bool, unit: str = "tokens") -> Iterator[None]:
        """Count up to a total within this block, and show it unless quiet."""
        self.done, self.total = 0, total
        if quiet:
            yield
            return
        with progress(unit) as self.report:
            yield
        self.report = None

    def add(self, stage: str, count: int, note: str = "") -> None:
        """Count what is about to be done after what is done."""
        if self.report is not None:
            self.report(stage, self.done, self.total, note)
        self.done += count


def batch_cost(
    shape: tuple[int, ...], seconds: float, device: torch.device, **facts: Any
) -> dict[str, Any]:
    """What a batch of so many rows and tokens took."""
    rows, tokens = shape
    cost = {"rows": rows, "tokens": tokens, "seconds": round(seconds, 4), **facts}
    if device.type == "cuda":
        cost["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return cost
