"""A talk, without the terminal: a line is a question or a command, and is answered in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ahn.io.progress import Report, progress
from ahn.session import Document, Session, SessionFolder
from ahn.session.held import held
from ahn.session.turn import ASK

MIB = 2**20
HELP = {
    "/read FILE": "read a text as your next words",
    "/undo": "take back the last question or text, as if it had never been",
    "/fork": "go on in a copy; /back returns to where it was made",
    "/back": "leave a copy, and forget it",
    "/save [FOLDER]": "keep the talk; left out, the folder of --session",
    "/load FOLDER": "go on with a talk that was kept",
    "/stats": "tokens, bytes, speed, and what is held",
    "/help": "these lines",
    "/quit": "end; so does Ctrl-D",
}


class Talk:
    """One session after another, and what a user does with them.

    Args:
        session: to begin with.
        options: of `Session.ask`.
        folder: the opened folder of `--session`, None without one.

    Attributes:
        is_over: whether the user has left.
        is_reading: whether a text is being read, which is stopped at once and as a whole.
    """

    def __init__(
        self, session: Session, options: dict[str, Any], folder: SessionFolder | None
    ) -> None:
        self.session, self.options, self.folder = session, options, folder
        self.parents: list[Session] = []
        self.is_over = self.is_reading = False
        self.tokens_per_second: float | None = None

    @property
    def prompt(self) -> str:
        """What stands before the next line: the tokens so far and the bytes that hold them."""
        depth = "fork " * len(self.parents)
        return f"{depth}{self.session.tokens:,} tokens, {self.session.nbytes / MIB:.1f} MiB > "

    def answer(self, line: str) -> Iterator[str]:
        """The pieces of what is said to a line.

        Raises ValueError or OSError where it cannot be done; the session is then as before.
        """
        line = line.strip()
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            yield self._commanded(name, rest.strip()) + "\n"
        elif line:
            yield from self._timed(self.session.ask(line, **self.options))
            yield "\n"

    def questions(self) -> list[str]:
        """What was asked so far."""
        return [turn.given for turn in self.session.history if turn.kind == ASK]

    def _timed(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces, and the rate of the tokens after the first."""
        first = None
        for piece in pieces:
            first = time.monotonic() if first is None else first
            yield piece
        count = self.session.history[-1].tokens - 1
        if first is not None and count > 0:
            self.tokens_per_second = count / (time.monotonic() - first)

    def _commanded(self, name: str, rest: str) -> str:
        commands: dict[str, Callable[[str], str]] = {
            word.split()[0]: getattr(self, f"_{word.split()[0][1:]}") for word in HELP
        }
        if name not in commands:
            raise ValueError(f"command: expected one of {' '.join(commands)}, got {name}")
        return commands[name](rest)

    def read(self, document: Document, report: Report) -> str:
        """Read a text as the user's next words; what is said of it."""
        self.is_reading = True
        try:
            count = self.session.read(document, report=report)
        finally:
            self.is_reading = False
        return f"read {count:,} tokens of {document.name}"

    def _read(self, rest: str) -> str:
        if not rest:
            raise ValueError("/read: expected a file, got none")
        document = Document(Path(rest).expanduser(), rest)
        with progress() as report:
            return self.read(document, report)

    def _undo(self, rest: str) -> str:
        turn = self.session.undo()
        return f"took back {turn.kind} {turn.given}"

    def _fork(self, rest: str) -> str:
        self.parents.append(self.session)
        self.session = self.session.fork()
        return "in a copy now; /back returns"

    def _back(self, rest: str) -> str:
        if not self.parents:
            raise ValueError("/back: expected a copy that /fork made, got none")
        self.session = self.parents.pop()
        return f"back at {self.session.tokens:,} tokens"

    def _save(self, rest: str) -> str:
        if self.folder is not None and rest in ("", str(self.folder.path)):
            self.folder.save(self.session)
            return f"saved in {self.folder.path}"
        if not rest:
            raise ValueError("/save: expected a folder, got none")
        self.session.save(Path(rest).expanduser())
        return f"saved in {rest}"

    def _load(self, rest: str) -> str:
        if not rest:
            raise ValueError("/load: expected a folder, got none")
        self.session = Session.load(
            Path(rest).expanduser(), self.session.model, self.session.tokenizer
        )
        return f"went on at {self.session.tokens:,} tokens"

    def _stats(self, rest: str) -> str:
        session, rate = self.session, self.tokens_per_second
        lines = [
            f"tokens          {session.tokens:,}",
            f"bytes           {session.nbytes:,} (for /undo {self._undo_bytes():,} more)",
            f"tokens/s        {'nothing answered yet' if rate is None else f'{rate:.1f}'}",
            *(f"{name:<16}{value}" for name, value in what_is_held(session)),
        ]
        return "\n".join(lines)

    def _undo_bytes(self) -> int:
        return sum(state.nbytes for state in self.session.checkpoints)

    def _help(self, rest: str) -> str:
        return "\n".join(f"{name:<16}{text}" for name, text in HELP.items())

    def _quit(self, rest: str) -> str:
        self.is_over = True
        return "over"


def what_is_held(session: Session) -> Iterator[tuple[str, str]]:
    """What of the text is held exactly."""
    exact = held(session.state)
    begin, end = exact.window
    yield "sinks", f"{exact.sinks:,} tokens"
    yield "window", f"{end - begin:,} tokens, from {begin:,} on"
    if exact.slots:
        ends = f"from {min(exact.slots):,} to {max(exact.slots):,}"
        yield "slots", f"{len(exact.slots):,} tokens, {ends}, in {exact.heads} heads"
