"""Attention outputs saved by a layer's first run, for the run that computes the layer again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor


class SavedOutputs:
    """The outputs of one layer in one forward, in the order in which the layer computes them.

    An output is released when it is taken. A later run that finds none left, as in a second
    backward pass, computes it again.
    """

    def __init__(self) -> None:
        self._saved: deque[Sequence[Tensor]] = deque()
        self._runs = 0

    def start_run(self) -> None:
        """Tell that the layer is about to run, for the first time or again."""
        self._runs += 1

    def get(self, compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """The next output of the first run, where one is left; else that of `compute`."""
        if self._runs > 1 and self._saved:
            return self._saved.popleft()
        outputs = compute()
        if self._runs == 1:
            # Detached, since what an autograd function returns becomes part of its graph.
            self._saved.append([x.detach() for x in outputs])
        return outputs
