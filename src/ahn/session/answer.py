"""One answer under way: its question's tokens, what has been said, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ahn.generation.streaming import end_tokens
from ahn.hf.attached_state import attached_state
from ahn.io.text import NEAR
from ahn.layer.cache import AHNCache
from ahn.session.answer_text import AnswerText
from ahn.session.state import State, chained
from ahn.session.turn import ASK, Turn
from ahn.session.turns import ANSWERED

if TYPE_CHECKING:
    from ahn.session.session import Session


class Answer:
    """What a session says to a question, from the state it is in.

    Args:
        before: a copy of that state.

    Attributes:
        ids: `[1, n]`, of the question and what stands around it.
        ends: ids of the tokens that end the answer.
        said: the answer so far.
        has_ended: by a token that ends answers, or by the longest length.

    Raises ValueError where the question is longer than the window.
    """

    def __init__(self, session: Session, question: str, before: State) -> None:
        self.session, self.question, self.before = session, question, before
        ids, past = tokens_of_question(session, question)
        self.ids, self.past = torch.tensor([ids]), past
        self.said = AnswerText(session.tokenizer)
        self.ends = {*end_tokens(session.model).tolist(), *session.turns.ends()}
        self.has_ended = False
        self.pending: tuple[int, ...] = ()  # given out, but not read into the cache

    def take(self, token: int, longest: int) -> str:
        """The text that a further token adds; an end token is not part of the answer."""
        if token in self.ends:
            self.has_ended, self.pending = True, ()
            return self.said.end()
        self.pending = (token,)
        piece = self.said.add(token)
        self.has_ended = len(self.said.ids) >= longest
        return piece + self.said.end() if self.has_ended else piece

    def finish(self, cache: AHNCache) -> None:
        """The session goes on from here."""
        self.said.end()
        before, ids = self.before, [*self.ids[0].tolist(), *self.said.ids]
        if self.session.transcript is not None:
            self.session.transcript.put(before.tokens, ids)
        kind = f"{ASK} {len(self.pending)}"
        state = State(
            path=(*before.path, chained(before.digest, ids, kind)),
            cache=cache,
            tokens=before.tokens + len(ids) - len(self.pending),
            place=ANSWERED,
            pending=self.pending,
            past=(self.past + self.said.text)[-NEAR:],
        )
        turn = Turn(ASK, self.question, self.said.text, len(self.said.ids))
        self.session.end_turn(before, state, turn)


def tokens_of_question(session: Session, question: str) -> tuple[list[int], str]:
    """Token ids of a question with what stands around it, and the text before the answer.

    Raises ValueError where the question, with what stands around it, is longer than the window: the
    model would not see its beginning.
    """
    turns, state = session.turns, session.state
    ids, past = turns.before(state.place, state.past)
    given = torch.cat([*turns.given([question], past)], 1)[0].tolist()
    past += question
    after = turns.after(past)
    window, length = attached_state(session.model).config.window, len(given) + len(after)
    if length > window:
        raise ValueError(f"question: expected at most {window} tokens, got {length}")
    return [*state.pending, *ids, *given, *after], past + turns.answering
