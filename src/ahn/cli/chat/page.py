"""`ahn chat --web`: the talk as a page of Gradio, with what is kept of the text marked in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ahn.cli.chat.page_html import bytes_html, text_html
from ahn.cli.chat.talk import Talk
from ahn.hf.attached_state import attached_state
from ahn.io.progress import Report
from ahn.session import Document, Session
from ahn.session.transcript import Transcript
from ahn.session.turn import ASK


class Page:
    """One talk as a page reads documents into it, asks it and shows it.

    Attributes:
        is_stopped: set while what is under way shall end.
        is_working: held while the model reads or answers.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self._pieces: Any = talk.answer("")
        self.is_stopped, self.is_working = threading.Event(), threading.Lock()
        # Modes belong to threads, and Gradio answers in threads of its own.
        self.mode = attached_state(talk.session.model).mode

    @property
    def session(self) -> Session:
        """The talk's, which changes with it; one that was loaded has no transcript yet."""
        session = self.talk.session
        if session.transcript is None:
            session.transcript = Transcript()
        return session

    def in_mode(self) -> AbstractContextManager[None]:
        """Within the context the model looks back as where the page was made."""
        return attached_state(self.talk.session.model).in_mode(self.mode)

    def shown(self) -> tuple[list[dict[str, str]], str, str]:
        """The talk as messages; bytes; the text with what is kept."""
        return self.messages(), bytes_html(self.session), text_html(self.session)

    def messages(self, *more: dict[str, str]) -> list[dict[str, str]]:
        """The session's turns as Gradio's chat messages, followed by `more`."""
        found = []
        for turn in self.talk.session.history:
            if turn.kind == ASK:
                found += [user(turn.given), assistant(turn.answer)]
            else:
                found.append(user(f"{turn.given}: {turn.tokens:,} tokens read"))
        return [*found, *more]

    def read(self, path: Path, report: Report) -> None:
        """Read a document that was dropped in, and remove the copy of it that Gradio made.

        Raises ValueError or OSError where it cannot be read or is stopped; the session is then as
        before.
        """
        self.end_answer()
        try:
            with self.is_working, self.in_mode():
                self.talk.read(Document(path, path.name), self._stoppable(report))
        finally:
            path.unlink(missing_ok=True)

    def answer(self, line: str) -> Iterator[str]:
        """The answer to a line of the user, whole at each step as far as the model has come.

        Raises what `Talk.answer` raises.
        """
        self.end_answer()
        self._pieces, said = self.talk.answer(line), ""
        while not self.is_stopped.is_set():
            with self.is_working, self.in_mode():  # each step may be in another thread
                piece = next(self._pieces, None)
            if piece is None:
                break
            said += piece
            yield said
        self.end_answer()

    def end_answer(self) -> None:
        """End an answer where it is, such as one whose window was closed."""
        with self.is_working:
            self._pieces.close()
        self.is_stopped.clear()

    def _stoppable(self, report: Report) -> Report:
        """A report that ends the reading where that is asked for."""

        def stoppable(stage: str, done: int, total: int | None, note: str = "") -> None:
            if self.is_stopped.is_set():
                raise ValueError("reading: expected to go on, got stopped")
            report(stage, done, total, note)

        return stoppable


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
