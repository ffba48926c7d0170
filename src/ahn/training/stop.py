"""SIGTERM: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

SIGTERM_CODE = 128 + signal.SIGTERM  # exit status of a process that SIGTERM ended, as in a shell


class StopOnSignal(TrainerCallback):
    """Stops training after the step in which any process received SIGTERM.

    Attributes:
        requested: whether this process received it.
        stopped: whether training was stopped.
    """

    def __init__(self) -> None:
        self.requested = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context SIGTERM sets `requested` and does not end the process."""
        before = signal.signal(signal.SIGTERM, self._request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, on all processes after the same step."""
        if self._requested_anywhere(args):
            self.stopped = control.should_save = control.should_training_stop = True

    def _requested_anywhere(self, args: Any) -> bool:
        if args.world_size == 1:
            return self.requested
        from accelerate.utils import reduce

        return bool(reduce(torch.tensor(float(self.requested), device=args.device), "sum") > 0)
