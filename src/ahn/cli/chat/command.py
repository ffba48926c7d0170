"""`ahn chat`: its options, and the folder that it keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ahn.cli import options
from ahn.cli.output import examples

if TYPE_CHECKING:
    from ahn.cli.chat.talk import Talk

EXAMPLES = examples(
    "ahn chat --model smollm2 --window 512",
    "ahn chat --model BASE --memory MEMORY --file book.txt --session talk",
    "ahn chat --model BASE --memory MEMORY --web",
)
Web = Annotated[
    bool,
    Option("--web", help="Talk on a page that shows what is kept of the text, on this machine."),
]
Port = Annotated[
    int | None, options.at_least(1, "Of the page; left out, 7860. It listens on 127.0.0.1.")
]


def chat(
    model: options.Model,
    file: options.Files = None,
    system: options.System = None,
    plain: options.Plain = False,
    session: options.SessionFolderOption = None,
    web: Web = False,
    port: Port = None,
    memory: options.Memory = None,
    window: options.Window = None,
    num_sinks: options.NumSinks = None,
    prefill_chunk_size: options.PrefillChunkSize = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    liger: options.Liger = False,
) -> None:
    """Talk with a model about texts of any length; /help lists what can be done meanwhile.

    Ctrl-C stops an answer, and the talk goes on. With --session the folder's talk goes on, and is
    kept when you leave. --web serves a page instead, which Ctrl-C ends.
    """
    import torch

    from ahn.cli.answer import ModelChoice, load
    from ahn.cli.ask import documents_of
    from ahn.cli.chat.talk import Talk
    from ahn.session.sampling import Sampling

    run = _front(web, port)
    chosen: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    chosen |= {"top_k": top_k, "top_p": top_p}
    Sampling(**chosen)
    documents = documents_of(None, file or [])
    with ExitStack() as stack:
        folder = stack.enter_context(_opened(session)) if session is not None else None
        loaded = load(ModelChoice(model, memory, window, num_sinks, dtype, device, liger))
        stack.enter_context(loaded.context)
        if seed is not None:
            torch.manual_seed(seed)
        wanted = {"system": system, "plain": plain, "prefill_chunk_size": prefill_chunk_size}
        talk = Talk(_begun(loaded, documents, folder, wanted, web), chosen, folder)
        run(talk)
        if folder is not None and talk.session.tokens:
            folder.save(talk.session)


def _front(web: bool, port: int | None) -> Callable[[Talk], None]:
    """The function that runs a talk: in the terminal, or as a page.

    Raises ValueError where the page cannot be served.
    """
    if not web:
        if port is not None:
            raise ValueError("--port: expected --web to go with it, got none")
        from ahn.cli.chat.terminal import run

        return run
    from ahn.cli.chat import web as page

    page.check(port or page.PORT)
    return partial(page.run, port=port or page.PORT)


def _opened(session: Any) -> Any:
    from ahn.session import SessionFolder

    return SessionFolder(session, name="--session")


def _begun(
    loaded: Any, documents: list[Any], folder: Any, wanted: dict[str, Any], is_shown: bool
) -> Any:
    """The session of the folder, or a new one, that has read the documents."""
    from ahn.cli.ask import check_bounded, check_same, read_all
    from ahn.session import Session
    from ahn.session.transcript import Transcript

    check_bounded(loaded)
    if folder is not None and folder.holds_session:
        session = folder.load(loaded.model, loaded.tokenizer)
        check_same(session, documents, wanted["system"], wanted["plain"])
        return session
    session = Session(loaded.model, loaded.tokenizer, **wanted)
    if is_shown:
        session.transcript = Transcript()
    read_all(session, documents)
    return session
