"""Sessions on disk: `session.json`, and one file for each state in `states`.

A save writes new states under names of their own, then replaces `session.json`, then removes what
that no longer names. So a save that fails or is killed leaves the session that was there.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.generation import load_session, save_session
from ahn.hf.attached_state import attached_state
from ahn.io.checksum import CHECKSUM, expect_sum, file_sum, metadata_of
from ahn.io.files import AnyPath
from ahn.io.lock import only_user
from ahn.io.partial import is_partial
from ahn.io.signed import read_signed, write_signed
from ahn.session.prefix_cache import PrefixCache
from ahn.session.session import Session
from ahn.session.state import State
from ahn.session.turn import Turn
from ahn.session.turns import Turns

FORMAT = "ahn-session-folder-1"
FACTS, STATES, SUFFIX = "session.json", "states", ".safetensors"


class SessionFolder:
    """A folder with one session, which no other process uses within the context.

    Args:
        path: the folder.
        is_new: it may not be there, and is then made.
        name: of the option that names it, for messages.

    Raises ValueError where another process uses it, or it holds something else than a session;
    FileNotFoundError where there is none.
    """

    def __init__(self, path: AnyPath, *, is_new: bool = True, name: str = "session") -> None:
        self.path, self.is_new, self.name = Path(path), is_new, name
        self._stack = ExitStack()

    def __enter__(self) -> SessionFolder:
        if not self.is_new and not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.name}: expected a folder, got the file {self.path}")
        self._stack.enter_context(only_user(self.path, self.name))
        names = {x.name for x in self.path.iterdir() if not is_partial(x.name)}
        others = names - {FACTS, STATES}
        if others and not self.holds_session:
            self._stack.close()
            raise ValueError(
                f"{self.name}: expected a new folder or one with {FACTS}, got {self.path} with "
                f"{min(others)}"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def holds_session(self) -> bool:
        """Whether there is one to load."""
        return (self.path / FACTS).is_file()

    def save(self, session: Session) -> None:
        """As `Session.save`."""
        if session.state.cache is None:
            raise ValueError("session: expected one that has read something, got an empty one")
        states = [*session.checkpoints, session.state]
        files = {x.digest: self._saved(x, session) for x in states if x.cache is not None}
        turns = session.turns
        values = {
            "format": FORMAT,
            "mode": attached_state(session.model).mode.name,
            "turns": {k: v for k, v in vars(turns).items() if k != "tokenizer"},
            "prefill_chunk_size": session.prefill_chunk_size,
            "history": [asdict(turn) for turn in session.history],
            "states": [_facts(state, files) for state in states],
        }
        write_signed(self.path / FACTS, values)
        for file in (self.path / STATES).iterdir():
            if file.name.removesuffix(SUFFIX) not in files:
                file.unlink(missing_ok=True)

    def _saved(self, state: State, session: Session) -> str:
        """Write a state, unless it is there and whole; its file's checksum."""
        path = self.path / STATES / (state.digest + SUFFIX)
        if path.is_file():
            try:
                checksum = metadata_of(path).get(CHECKSUM, "")
                expect_sum(path, checksum, file_sum(path, checksum))
                return checksum
            except ValueError:
                pass  # damaged: written anew
        path.parent.mkdir(exist_ok=True)
        assert state.cache is not None
        return save_session(state.cache, path, tokenizer=session.tokenizer)

    def load(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefixes: PrefixCache | None = None,
        undo_bytes: int = 2**30,
    ) -> Session:
        """As `Session.load`."""
        values = read_signed(self.path / FACTS, FORMAT)
        try:
            self._check_mode(values["mode"], model)
            return self._session(values, model, tokenizer, prefixes, undo_bytes)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path / FACTS}: expected a session, got: {error}") from error

    def _check_mode(self, mode: str, model: PreTrainedModel) -> None:
        own = attached_state(model).mode.name
        if mode != own:
            raise ValueError(
                f"{self.path}: expected a session read in the mode {own}, got one in the mode "
                f"{mode}"
            )

    def _session(
        self,
        values: dict[str, Any],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prefixes: PrefixCache | None,
        undo_bytes: int,
    ) -> Session:
        """The session by what `session.json` says."""
        turns = Turns(tokenizer, **{**values["turns"], "first": tuple(values["turns"]["first"])})
        session = Session.__new__(Session)
        session.begin(model, turns, prefixes, values["prefill_chunk_size"], undo_bytes)
        start = session.state
        *session.checkpoints, session.state = [
            start if facts["file"] is None else self._loaded(facts, model, tokenizer)
            for facts in values["states"]
        ]
        session.history = [Turn(**turn) for turn in values["history"]]
        return session

    def _loaded(
        self, facts: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> State:
        """A state by what `session.json` says of it."""
        path = tuple(facts["path"])
        file = self.path / STATES / (path[-1] + SUFFIX)
        expect_sum(file, facts["file"], metadata_of(file).get(CHECKSUM, ""))
        cache = load_session(file, model, tokenizer=tokenizer)
        pending = tuple(facts["pending"])
        return State(path, cache, facts["tokens"], facts["place"], pending, facts["past"])


def _facts(state: State, files: dict[str, str]) -> dict[str, Any]:
    """What `session.json` says of a state."""
    values = {k: v for k, v in vars(state).items() if k != "cache"}
    return {**values, "file": files.get(state.digest)}
