"""Lines from a terminal or a pipe, answers to it; Ctrl-C stops an answer and keeps the talk."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ahn.cli.chat.talk import HELP, Talk

INSTALL = "pip install 'ahn[chat]'"


def run(talk: Talk) -> None:
    """Answer line after line until the user leaves."""
    for line in _lines(talk):
        _answered(talk, line)
        if talk.is_over:
            return


def _answered(talk: Talk, line: str) -> None:
    """Print an answer; what cannot be done is one line."""
    try:
        with _stopping(talk) as is_stopped:
            pieces = talk.answer(line)
            for piece in pieces:
                print(piece, end="", flush=True)
                if is_stopped():
                    pieces.close()  # type: ignore[attr-defined]
                    print()
                    break
    except KeyboardInterrupt:  # while a text was read
        print("stopped", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


@contextmanager
def _stopping(talk: Talk) -> Iterator[Callable[[], bool]]:
    """Within the context the first Ctrl-C asks for an answer's end, and a second one demands it.

    An answer ends between two tokens, so that the session holds it as far as it goes. A text that
    is being read is given up at once.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if talk.is_reading or asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(talk: Talk) -> Iterator[str]:
    """What a user types, or what is piped in."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    prompt = prompt_session(talk)
    while True:
        try:
            yield prompt.prompt(lambda: talk.prompt)
        except KeyboardInterrupt:
            continue  # leaves the line
        except EOFError:
            return


def prompt_session(talk: Talk) -> Any:
    """The editor of lines, with what was asked so far as its history."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
    except ImportError as error:
        raise ValueError(
            f"chat: expected the package prompt_toolkit to be installed ({INSTALL}), got none"
        ) from error
    history = InMemoryHistory(talk.questions())
    words = WordCompleter([word.split()[0] for word in HELP], sentence=True)
    return PromptSession(history=history, completer=words, complete_while_typing=False)
