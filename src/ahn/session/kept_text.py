"""The text of a session with what is kept of it: sinks, window, tokens in slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from ahn.session.answer_text import AnswerText
from ahn.session.held import Held, held
from ahn.session.session import Session
from ahn.session.transcript import UNKNOWN

SINK, WINDOW, SLOT, LEFT = "sink", "window", "slot", "left"  # `left`: has left the window
OMITTED = "omitted"  # a long stretch that has left, whose text is not given
CONTEXT = 24  # tokens given around one in a slot


@dataclass(frozen=True)
class Stretch:
    """Tokens in a row that are kept alike.

    Attributes:
        kind: one of this module's words.
        tokens: how many.
        text: what they say; empty where it is omitted or not known.
        share: of all heads that have slots, how many hold these tokens; 1 for sinks and window.
    """

    kind: str
    tokens: int
    text: str = ""
    share: float = 0.0


def kept_text(session: Session) -> list[Stretch]:
    """The text in stretches, from its first token on.

    What has left the window is given as far as it stands around tokens in slots. So the stretches
    do not grow with the text.

    Raises ValueError where the session has no transcript.
    """
    if session.transcript is None:
        raise ValueError("session: expected one with a transcript, got none")
    exact = held(session.state)
    found: list[Stretch] = []
    for is_shown, begin, end in _spans(exact):
        found += _given(session, exact, begin, end) if is_shown else [Stretch(OMITTED, end - begin)]
    return found


def _spans(exact: Held) -> Iterator[tuple[bool, int, int]]:
    """Whether text is given, and from where to where, over all tokens."""
    first, end = exact.window
    shown = [(0, exact.sinks + CONTEXT), (first - CONTEXT, end)]
    shown += [(x - CONTEXT, x + 1 + CONTEXT) for x in exact.slots]
    place = 0
    for begin, stop in sorted(shown):
        begin, stop = max(begin, place), min(stop, end)
        if begin >= stop:
            continue
        if begin > place:
            yield False, place, begin
        yield True, begin, stop
        place = stop


def _given(session: Session, exact: Held, begin: int, end: int) -> Iterator[Stretch]:
    """The stretches of a span of tokens."""
    assert session.transcript is not None
    text = AnswerText(session.tokenizer)
    ids = session.transcript.ids(begin, end)
    texts = ["" if x == UNKNOWN else text.add(x) for x in ids]
    texts[-1] += text.end()
    kinds = (_kind(exact, place) for place in range(begin, end))
    for (kind, share), group in groupby(zip(kinds, texts), key=lambda pair: pair[0]):
        said = [piece for _, piece in group]
        yield Stretch(kind, len(said), "".join(said), share)


def _kind(exact: Held, place: int) -> tuple[str, float]:
    """How the token at a place is kept."""
    if place < exact.sinks:
        return SINK, 1.0
    if place >= exact.window[0]:
        return WINDOW, 1.0
    if heads := exact.slots.get(place):
        return SLOT, heads / exact.heads
    return LEFT, 0.0
