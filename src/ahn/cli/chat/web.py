"""The page of a talk in Gradio, served on this machine alone."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ahn.cli.chat.page import Page, assistant, user
from ahn.cli.chat.page_html import CSS
from ahn.cli.chat.talk import Talk

HOST, PORT = "127.0.0.1", 7860
INSTALL = "pip install 'ahn[web]'"
ONE = {"concurrency_limit": 1, "concurrency_id": "talk"}  # one thing at a time, of all windows
PAUSE = 0.2  # seconds between two looks whether the talk is over


def check(port: int) -> None:
    """Raise ValueError where there is no Gradio or the port is taken, before a model is loaded."""
    _gradio()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port: expected a free one of {HOST}, got {port}") from error


def run(talk: Talk, port: int) -> None:
    """Serve the page until Ctrl-C or /quit."""
    page = Page(talk)
    blocks = blocks_of(page)
    _, url, _ = blocks.launch(
        server_name=HOST, server_port=port, prevent_thread_lock=True, quiet=True, share=False,
        ssr_mode=False, css=CSS, theme=_gradio().themes.Base(), footer_links=[],
    )  # fmt: skip
    print(f"The page is at {url} (Ctrl-C ends it).", file=sys.stderr, flush=True)
    try:
        while not talk.is_over:
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        pass
    finally:
        page.is_stopped.set()
        blocks.close(verbose=False)
        page.end_answer()


def blocks_of(page: Page) -> Any:
    """The parts of the page, and what they do."""
    gr = _gradio()
    with gr.Blocks(title="ahn chat", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row():
            with gr.Column(scale=2):
                document = gr.File(label="A text, PDF or HTML", height=120, elem_id="document")
                chat = gr.Chatbot(
                    label="Talk", height="52vh", elem_id="chat", render_markdown=False, buttons=[]
                )
                line = gr.Textbox(
                    show_label=False,
                    placeholder="A question, or /help",
                    max_lines=6,
                    elem_id="line",
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
                    undo = gr.Button("Undo", elem_id="undo")
            with gr.Column(scale=3):
                sizes, text = gr.HTML(elem_id="sizes"), gr.HTML(elem_id="text")
        shown = [chat, sizes, text]
        blocks.load(page.shown, None, shown)
        document.upload(
            _reading(page), document, [document, *shown], show_progress_on=document, **ONE
        )
        for asked in (line.submit, ask.click):
            asked(_answering(page), line, [line, *shown], show_progress="hidden", **ONE)
        undo.click(_undoing(page), None, shown, **ONE)
        stop.click(page.is_stopped.set, queue=False)
    return blocks


def _reading(page: Page) -> Any:
    gr = _gradio()

    def read(path: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008  Gradio finds it there
        def report(stage: str, done: int, total: int | None, note: str = "") -> None:
            progress((done, total), desc=stage, unit="tokens")

        with _told():
            page.read(Path(path), report)
        return None, *page.shown()

    return read


def _answering(page: Page) -> Any:
    gr = _gradio()

    def answer(line: str) -> Iterator[Any]:
        with _told():
            for said in page.answer(line):
                yield "", page.messages(user(line), assistant(said)), gr.skip(), gr.skip()
        yield "", *page.shown()

    return answer


def _undoing(page: Page) -> Any:
    def undo() -> Any:
        with _told():
            for _ in page.answer("/undo"):
                pass
        return page.shown()

    return undo


@contextmanager
def _told() -> Iterator[None]:
    """Show a ValueError or OSError that the context raises as a warning on the page."""
    try:
        yield
    except (ValueError, OSError) as error:
        _gradio().Warning(" ".join(str(error).split()))


def _gradio() -> Any:
    """The package, which is imported when it is used; ValueError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            f"--web: expected the package gradio to be installed ({INSTALL}), got none"
        ) from error
    return gradio
