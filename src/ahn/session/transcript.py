"""The tokens that a session read and said, for those who show its text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from torch import Tensor

UNKNOWN = -1  # of a token that was there before the transcript


class Transcript:
    """Token ids by their place in the cache, four bytes each, so it grows with the text.

    A session given one as `transcript` fills it. What it does not know, as of a session that was
    loaded, is `UNKNOWN`.
    """

    def __init__(self) -> None:
        self._ids = array("i")

    def fork(self) -> Transcript:
        """An independent copy."""
        copy = Transcript()
        copy._ids = self._ids[:]
        return copy

    def put(self, place: int, ids: Iterable[int]) -> None:
        """Tokens from a place on; what stood there and behind was taken back."""
        del self._ids[place:]
        self._ids.extend([UNKNOWN] * (place - len(self._ids)))
        self._ids.extend(ids)

    def passed(self, place: int, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Chunks `[1, n]` on their way into the cache, which are put from a place on."""
        for ids in chunks:
            self.put(place, ids[0].tolist())
            place += ids.shape[1]
            yield ids

    def ids(self, begin: int, end: int) -> list[int]:
        """Those from one place up to another."""
        known = self._ids[begin:end].tolist()
        return known + [UNKNOWN] * (end - begin - len(known))
