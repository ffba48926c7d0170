"""`ahn ask`: read texts once and answer questions about them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ahn.cli import options
from ahn.cli.output import examples

if TYPE_CHECKING:
    from ahn.cli.answer import Loaded
    from ahn.session import Document, Session

FiguresAlone = Annotated[
    bool, Option("--json", help="Print one line of JSON alone: answers, times, bytes.")
]
EXAMPLES = examples(
    "ahn ask --model smollm2 --window 512 --file book.txt --question 'Who is the captain?'",
    "ahn ask --model BASE --memory MEMORY --file book.pdf --session book --question 'Who is Ahab?'",
    "ahn ask --model BASE --memory MEMORY --session book --question 'Who is Ishmael?' --json",
    "cat notes.txt | ahn ask --model BASE --memory MEMORY --question 'What is missing?' -",
)


def ask(
    model: options.Model,
    source: options.StandardInput = None,
    file: options.Files = None,
    question: options.Questions = None,
    system: options.System = None,
    plain: options.Plain = False,
    session: options.SessionFolderOption = None,
    memory: options.Memory = None,
    window: options.Window = None,
    num_sinks: options.NumSinks = None,
    prefill_chunk_size: options.PrefillChunkSize = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    liger: options.Liger = False,
    as_json: FiguresAlone = False,
) -> None:
    """Read texts once and answer each question about them, in memory that does not grow.

    With --session the folder keeps what was read: the next call starts at once, and needs the files
    no more. If they are given all the same, they must be the ones that were read.
    """
    import torch

    from ahn.cli.answer import ModelChoice, load
    from ahn.session.sampling import Sampling

    if not question:
        raise ValueError("--question: expected at least one, got none")
    Sampling(max_new_tokens, temperature, top_k, top_p)
    documents = documents_of(source, file or [])
    if not documents and session is None:
        raise ValueError("--file: expected a text to read, - or --session, got none")
    loaded = load(ModelChoice(model, memory, window, num_sinks, dtype, device, liger))
    wanted = {"system": system, "plain": plain, "prefill_chunk_size": prefill_chunk_size}
    with loaded.context:
        began = time.monotonic()
        read = open_session(loaded, documents, session, **wanted)
        facts: dict[str, Any] = {"model": model, "memory": memory, "tokens": read.tokens}
        facts |= {"nbytes": read.nbytes, "read_seconds": time.monotonic() - began, "answers": []}
        for text in question:
            if seed is not None:
                torch.manual_seed(seed)
            chosen = {"max_new_tokens": max_new_tokens, "temperature": temperature}
            pieces = read.fork().ask(text, **chosen, top_k=top_k, top_p=top_p)
            facts["answers"].append(_told(text, pieces, as_json, is_only=len(question) == 1))
    if as_json:
        print(json.dumps(facts))


def open_session(
    loaded: Loaded, documents: list[Document], folder: Path | None, **wanted: Any
) -> Session:
    """A session that has read these documents: the one kept in a folder, or a new one.

    Args:
        wanted: of a new session, see `ahn.Session`.

    Raises ValueError where the folder's session has read others or has another prompt.
    """
    from ahn.session import Session, SessionFolder

    check_bounded(loaded)
    if folder is None:
        session = Session(loaded.model, loaded.tokenizer, **wanted)
        read_all(session, documents)
        return session
    with SessionFolder(folder, name="--session") as opened:
        if opened.holds_session:
            session = opened.load(loaded.model, loaded.tokenizer)
            check_same(session, documents, wanted["system"], wanted["plain"])
            return session
        if not documents:
            raise ValueError(f"--session: expected a folder with a session, got {folder} without")
        session = Session(loaded.model, loaded.tokenizer, **wanted)
        read_all(session, documents)
        opened.save(session)
        return session


def check_bounded(loaded: Loaded) -> None:
    """Raise ValueError in the words of the options where the model's cache would grow."""
    from ahn.hf.attached_state import attached_state
    from ahn.modeling.attached import AHNModelMixin

    is_attached = isinstance(loaded.model, AHNModelMixin)
    if not is_attached or not attached_state(loaded.model).mode.is_bounded:
        raise ValueError("--memory: expected a memory, or --window for a window alone, got neither")


def check_same(
    session: Session, documents: list[Document], system: str | None, plain: bool
) -> None:
    """Raise ValueError where a session has read others than these, if any are given."""
    from ahn.session.turn import READ
    from ahn.session.turns import Turns

    read = [turn for turn in session.history if turn.kind == READ]
    if documents and [x.sha256 for x in documents] != [turn.answer for turn in read]:
        names = ", ".join(turn.given for turn in read)
        raise ValueError(f"--session: expected the texts that were read ({names}), got others")
    is_plain = not session.turns.answering
    if plain and not is_plain:
        raise ValueError("--plain: expected a session without a chat template, got one with")
    if system is not None and session.turns != Turns.of(session.tokenizer, system):
        raise ValueError("--system: expected the system prompt of the session, got another")


def documents_of(source: str | None, files: list[Path]) -> list[Document]:
    """The texts to read, files that are there."""
    from ahn.session import Document

    if source not in (None, "-"):
        raise ValueError(f"command line: expected - for standard input, got {source!r}")
    documents = [Document(path) for path in files]
    if source is not None:
        documents.append(Document(sys.stdin.buffer, "standard input"))
    return documents


def read_all(session: Session, documents: list[Document]) -> None:
    from ahn.io.progress import progress

    for document in documents:
        with progress() as report:
            session.read(document, report=report)


def _told(question: str, pieces: Iterator[str], as_json: bool, is_only: bool) -> dict[str, Any]:
    """Print an answer as it comes, unless JSON is wanted; what was said and how fast."""
    began, first, said = time.monotonic(), None, []
    if not as_json and not is_only:
        print(f"> {question}")
    for piece in pieces:
        first = time.monotonic() - began if first is None else first
        said.append(piece)
        if not as_json:
            print(piece, end="", flush=True)
    if not as_json:
        print()
    return {
        "question": question,
        "answer": "".join(said),
        "first_text_seconds": first,
        "seconds": time.monotonic() - began,
    }
