"""A text and a talk about it: read once, ask often, go on next week."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.io.files import AnyPath
from ahn.io.progress import Report
from ahn.runtime.prefill_chunk import default_prefill_chunk_size
from ahn.session.documents import Document, Source
from ahn.session.prefix_cache import PrefixCache
from ahn.session.reading import Progress, Reading
from ahn.session.state import State, beginning
from ahn.session.transcript import Transcript
from ahn.session.turn import READ, Turn
from ahn.session.turns import OPEN, Turns


class Session:
    """What a model has read and said, in memory that does not grow with it.

    Args:
        model: one with a memory; within `ahn.memory_off(model)` sinks and window alone.
        tokenizer: the model's.
        system: the system prompt; None: what the chat template has of its own.
        plain: no chat template: what is asked continues the text.
        prefixes: states that other sessions left and find, see `PrefixCache`.
        prefill_chunk_size: tokens read at a time; None chooses by the free memory.
        undo_bytes: of the states that `undo` goes back to; the oldest are dropped first.

    Attributes:
        state: where it is; replaced, never changed, but for its cache.
        history: what was read and said, a `Turn` each.
        transcript: its tokens, which grow with the text; None, unless it is given one.

    Raises:
        ValueError: the model looks back with full attention, or the chat template cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        plain: bool = False,
        prefixes: PrefixCache | None = None,
        prefill_chunk_size: int | None = None,
        undo_bytes: int = 2**30,
    ) -> None:
        if plain and system is not None:
            raise ValueError("system: expected a chat template to go with it, got plain")
        turns = Turns.plain(tokenizer) if plain else Turns.of(tokenizer, system)
        if prefill_chunk_size is None:
            prefill_chunk_size = default_prefill_chunk_size(model, 1)
        self.begin(model, turns, prefixes, prefill_chunk_size, undo_bytes)

    def begin(
        self,
        model: PreTrainedModel,
        turns: Turns,
        prefixes: PrefixCache | None,
        prefill_chunk_size: int,
        undo_bytes: int,
    ) -> None:
        """Be a session in which nothing was read or said."""
        self.model, self.tokenizer, self.turns = model, turns.tokenizer, turns
        self.prefixes, self.undo_bytes = prefixes, undo_bytes
        self.prefill_chunk_size = prefill_chunk_size
        self.state = beginning(model)
        self.history: list[Turn] = []
        self.checkpoints: list[State] = []  # before the last turns, the last one last
        self.transcript: Transcript | None = None
        self._is_busy = False

    @property
    def tokens(self) -> int:
        """Tokens read and said so far, with those of the chat template."""
        return self.state.tokens + len(self.state.pending)

    @property
    def nbytes(self) -> int:
        """Bytes of the state, without those that `undo` goes back to."""
        return self.state.nbytes

    def read(self, source: Source, *, report: Report | None = None) -> int:
        """Read a text, as the user's words; the number of its tokens.

        Args:
            source: a string is the text itself; a `Path`, a binary file, an iterable of strings or
                a `Document` is read.
            report: told how far it is, see `ahn.io.progress`.

        Raises:
            ValueError: there is no text, or it is not UTF-8; OSError: there is no such file. The
                session is then as before.
        """
        document = source if isinstance(source, Document) else Document(source)
        with self._only_turn():
            before = self.state.fork()
            try:
                progress = Progress(document, report)
                ids, past = self.turns.before(self.state.place, self.state.past)
                ids = [*self.state.pending, *ids]
                given = self.turns.given(progress.texts(), past)
                tokens = progress.ids(ids, given)
                if self.transcript is not None:
                    tokens = self.transcript.passed(before.tokens, tokens)
                reading = Reading(self.model, self.state, self.prefixes, progress.done)
                state = reading.run(tokens, self.prefill_chunk_size)
            except BaseException:
                self.state = before
                raise
            turn = Turn(READ, document.name, document.sha256, progress.count)
            self.end_turn(before, state.at(OPEN, progress.last), turn)
        return progress.count

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """Ask, and yield the answer piece by piece; both belong to the session from then on.

        Nothing is computed before the first piece is asked for. Where the iterator is closed
        before its end, the answer ends there.

        Args:
            options: `max_new_tokens` (512), `temperature` (0: the likeliest token), `top_k`,
                `top_p`, `generator`, as of `ahn.generation.stream`.

        Raises:
            ValueError: the question is empty or longer than the window, or an option is out of
                range; whatever is raised, the session is then as before.
        """
        from ahn.session.together import ask_together

        return (piece for _, piece in ask_together([self], [question], **options))

    async def aread(self, source: Source, *, report: Report | None = None) -> int:
        """As `read`, in a thread."""
        return await asyncio.to_thread(self.read, source, report=report)

    async def aask(self, question: str, **options: Any) -> AsyncIterator[str]:
        """As `ask`, each piece in a thread; the event loop is free meanwhile."""
        pieces = self.ask(question, **options)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        finally:
            del pieces  # where it is left early, the answer ends here

    def fork(self) -> Session:
        """An independent copy; what it reads and says leaves this one untouched."""
        copy = Session.__new__(Session)
        copy.__dict__.update(self.__dict__)
        copy.state, copy.history = self.state.fork(), list(self.history)
        copy.checkpoints, copy._is_busy = list(self.checkpoints), False
        copy.transcript = self.transcript and self.transcript.fork()
        return copy

    def undo(self) -> Turn:
        """Take back the last turn, as if it had never been; the turn.

        Raises ValueError where there is none, or its state was dropped (`undo_bytes`).
        """
        with self._only_turn():
            if not self.checkpoints:
                raise ValueError(
                    f"undo: expected a turn whose state is kept, got none of {len(self.history)}"
                )
            # A copy: forks share what they can go back to.
            self.state = self.checkpoints.pop().fork()
            return self.history.pop()

    def save(self, folder: AnyPath) -> None:
        """Write the session into a folder, made where it is not there; one saved there goes.

        Raises:
            ValueError: nothing was read, another process uses the folder, or it holds something
                else; OSError naming a file that cannot be written. What was there is then kept.
        """
        from ahn.session.folder import SessionFolder

        with SessionFolder(folder) as opened:
            opened.save(self)

    @classmethod
    def load(
        cls,
        folder: AnyPath,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        **options: Any,
    ) -> Session:
        """The session that was saved, to go on as if it had never stopped.

        Args:
            options: `prefixes` and `undo_bytes` of a new session.

        Raises:
            ValueError: there is none, a file is damaged, another process uses the folder, or it is
                one of another model, memory, tokenizer, chat template or version; which, by name.
        """
        from ahn.session.folder import SessionFolder

        with SessionFolder(folder, is_new=False) as opened:
            return opened.load(model, tokenizer, **options)

    def claim(self) -> None:
        """One thing at a time. Raises ValueError where an answer is under way."""
        if self._is_busy:
            raise ValueError("session: expected the last answer to be over or closed, got one open")
        self._is_busy = True

    def release(self) -> None:
        """The next may begin."""
        self._is_busy = False

    def end_turn(self, before: State, state: State, turn: Turn) -> None:
        """Go on from a state, and keep the one before as far as `undo_bytes` goes."""
        self.state = state
        self.history.append(turn)
        self.checkpoints.append(before)
        while sum(x.nbytes for x in self.checkpoints) > self.undo_bytes:
            self.checkpoints.pop(0)

    @contextmanager
    def _only_turn(self) -> Iterator[None]:
        self.claim()
        try:
            yield
        finally:
            self.release()
