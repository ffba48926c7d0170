"""What was read or said, one step of a session."""

from __future__ import annotations

from dataclasses import dataclass

READ, ASK = "read", "ask"


@dataclass(frozen=True)
class Turn:
    """One step, which `Session.undo` takes back as a whole.

    Attributes:
        kind: `read` or `ask`.
        given: the document's name, or the question.
        answer: to the question; of a document its SHA-256.
        tokens: of the document, or of the answer.
    """

    kind: str
    given: str
    answer: str
    tokens: int
