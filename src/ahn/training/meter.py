"""What a run logs about its steps: mean losses, speed, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ahn.training.batch import TokenCounts
from ahn.training.losses import LossOutput

GIB = 2**30
LOG_NAMES = {"ce": "memory_ce"}  # of losses that are logged under another name than their own
Reduce = Callable[[Tensor], Tensor]


class Meter:
    """Adds up losses and tokens of batches; `flush` returns the means over all processes.

    Args:
        kinds: what each loss is averaged over, by name; see `averaged_over`.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)
        self._sums: Tensor | None = None
        self._started = time.perf_counter()

    def add(self, output: LossOutput, counts: TokenCounts, tokens: int) -> None:
        """Add a batch of this process.

        Args:
            counts: of the batch's tokens that have a loss.
            tokens: all tokens of the batch, for the speed.
        """
        losses = torch.stack([output.sums[name] for name in self.kinds]).detach()
        sums = torch.cat([losses, losses.new_tensor([*counts, tokens])]).double()
        self._sums = sums if self._sums is None else self._sums + sums

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time within the context (evaluating, saving) from the speed."""
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - paused

    def flush(self, reduce: Reduce) -> dict[str, float]:
        """Means since the last flush, empty without a batch; the sums start again at 0.

        Args:
            reduce: sums a tensor over all processes.
        """
        if self._sums is None:
            return {}
        *sums, labelled, targets, tokens = reduce(self._sums).tolist()
        counts = TokenCounts(labelled, targets)
        log = {
            LOG_NAMES.get(name, name): value / counts.of(kind)
            for (name, kind), value in zip(self.kinds.items(), sums)
        }
        log["counted_tokens"] = labelled
        log["tokens_per_second"] = tokens / (time.perf_counter() - self._started)
        if torch.cuda.is_available():
            log["peak_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
        self._sums, self._started = None, time.perf_counter()
        return log
