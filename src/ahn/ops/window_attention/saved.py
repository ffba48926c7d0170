"""Attention that a layer's first run leaves to the run that computes the layer again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor


class SavedOutputs:
    """Of one layer and one forward, in the order in which the layer asks for them.

    A run that finds none left, as a second backward pass does, computes them like the first.
    """

    def __init__(self) -> None:
        self._held: deque[Sequence[Tensor]] = deque()
        self._runs = 0

    def start_run(self) -> None:
        """The layer is about to be run, for the first time or again."""
        self._runs += 1

    def get(self, compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What the first run computed here; not held any longer once it has been given."""
        if self._runs > 1 and self._held:
            return self._held.popleft()
        found = compute()
        if self._runs == 1:
            # Detached: what a graph's function returns becomes part of that graph.
            self._held.append([x.detach() for x in found])
        return found
