"""Where a session is: all that is needed to go on, and a digest of how it came there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ahn.hf.attached_state import attached_state
from ahn.hf.fingerprint import fingerprint_of
from ahn.io.text import NEAR
from ahn.layer.cache import AHNCache
from ahn.session.turns import NOTHING


@dataclass(frozen=True)
class State:
    """Attributes:
    cache: of what was read; None: nothing.
    tokens: that the cache has been given.
    place: of the talk: `nothing` was said, the user's turn is `open`, or it was `answered`.
    pending: ids of tokens that were said, which the cache has not been given yet.
    past: the last characters, after which what comes is tokenised.
    path: digests of the model and of all that was read so far, after each chunk and each answer.
    """

    path: tuple[str, ...]
    cache: AHNCache | None = None
    tokens: int = 0
    place: str = NOTHING
    pending: tuple[int, ...] = ()
    past: str = ""

    @property
    def digest(self) -> str:
        """Two states of the same digest were computed alike: the same tokens in the same chunks."""
        return self.path[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return 0 if self.cache is None else self.cache.nbytes

    def fork(self) -> State:
        """The same with a cache of its own."""
        return self if self.cache is None else replace(self, cache=self.cache.fork())

    def at(self, place: str, past: str) -> State:
        """The same at another place of the talk."""
        return replace(self, place=place, past=past[-NEAR:])


def beginning(model: object) -> State:
    """The state in which nothing has been read by this model, in its mode of now.

    Raises ValueError where that is full attention, whose cache grows.
    """
    state = attached_state(model)
    if not state.mode.is_bounded:
        raise ValueError("session: expected a model with a memory or a window, got full attention")
    own = fingerprint_of(model.get_decoder(), state)  # type: ignore[attr-defined]
    facts = (own.base, own.memory, sorted(own.config.items()), state.config, state.mode.name)
    return State((hashlib.sha256(repr(facts).encode()).hexdigest(),))


def chained(digest: str, ids: Iterable[int], kind: str = "read") -> str:
    """The digest after further tokens: what came before, how and in which chunks counts too."""
    text = f"{digest} {kind} {' '.join(map(str, ids))}"
    return hashlib.sha256(text.encode()).hexdigest()
