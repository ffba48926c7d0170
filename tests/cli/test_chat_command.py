"""`ahn chat`: the talk is the session's, commands do what they say, Ctrl-C stops an answer."""

from __future__ import annotations

import os
import signal
import sys

import pytest

import talks
from ahn.cli.chat import terminal
from ahn.cli.chat.talk import HELP, Talk
from ahn.cli.chat.terminal import run
from ahn.session import Session, SessionFolder
from commands import call, error
from talks import QUESTION, TEXT, said

ANSWER = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The options that name a base with a chat template and a memory."""
    return ("chat", *talks.saved(tmp_path_factory.mktemp("chatting")))


@pytest.fixture
def session():
    return talks.new_session(talks.new_model(), talks.chatting())


@pytest.fixture
def talk(session):
    return Talk(session, ANSWER, None)


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(TEXT)
    return file


def told(talk, line):
    return "".join(talk.answer(line))


def test_lines_are_answered_and_commands_carried_out(talk, session, book, tmp_path):
    other = session.fork()
    other.read(book)
    assert f"of {book}" in told(talk, f"/read {book}")
    assert talk.prompt == f"{other.tokens:,} tokens, {other.nbytes / 2**20:.1f} MiB > "
    assert told(talk, QUESTION) == said(other.fork()) + "\n"
    assert "took back ask " + QUESTION in told(talk, "/undo")
    told(talk, "/fork")
    assert talk.prompt.startswith("fork ")
    told(talk, "And when?")
    told(talk, "/back")
    assert told(talk, QUESTION) == said(other) + "\n" and talk.questions() == [QUESTION]
    told(talk, f"/save {tmp_path / 'kept'}")
    expected = said(talk.session.fork(), "Else?")
    told(talk, "Something else?")
    told(talk, f"/load {tmp_path / 'kept'}")
    assert told(talk, "Else?") == expected + "\n"
    assert told(talk, "  ") == ""


def test_stats_say_what_is_held(talk, book):
    assert "nothing answered yet" in told(talk, "/stats")
    told(talk, f"/read {book}")
    told(talk, QUESTION)
    lines = told(talk, "/stats")
    assert f"tokens          {talk.session.tokens:,}\n" in lines
    assert f"{talk.session.nbytes:,} (for /undo" in lines and "nothing answered" not in lines
    assert "window          64 tokens, from" in lines and "sinks           4 tokens" in lines
    assert "slots           " in lines
    assert all(name.split()[0] in told(talk, "/help") for name in HELP)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/wrong", "command: expected one of /read /undo"),
        ("/read", "/read: expected a file"),
        ("/read missing", "missing"),
        ("/undo", "undo: expected a turn"),
        ("/back", "/back: expected a copy"),
        ("/save", "/save: expected a folder"),
        ("/save x", "expected one that has read something"),
        ("/load", "/load: expected a folder"),
        ("/load missing", "missing"),
        ("why " * 40, "question: expected at most 64 tokens"),
    ],
)
def test_what_cannot_be_done_leaves_the_talk(talk, line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        told(talk, line)
    assert talk.session.tokens == 0 and told(talk, QUESTION)


def test_a_pipe_talks_and_its_talk_is_kept(base, book, tmp_path, session):
    lines = f"{QUESTION}\n/nonsense\nAnd when?\n/quit\nnever asked\n"
    options = ("--max-new-tokens", 12, "--session", tmp_path / "kept")
    result = call(*base, *options, "--file", book, "--prefill-chunk-size", talks.CHUNK, input=lines)
    session.read(book)
    expected = f"{said(session)}\n{said(session, 'And when?')}\nover\n"
    assert result.exit_code == 0 and result.stdout == expected, result.output
    assert result.stderr.startswith("error: command: expected one of /read")
    again = call(*base, *options, input="More?\n")
    assert again.stdout == said(session, "More?") + "\n"
    kept = Session.load(tmp_path / "kept", session.model, session.tokenizer)
    assert kept.history == session.history
    with SessionFolder(tmp_path / "kept"):
        assert "no other run is using" in error(*base, *options, input="x")
    assert "--memory: expected a memory" in error(*base[:3], input="x")


def test_ctrl_c_stops_an_answer_and_keeps_the_talk(talk, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGINT)
    whole = "".join(talk.session.fork().ask(QUESTION, max_new_tokens=40))
    talk.options = {"max_new_tokens": 40}
    take, count = talk.answer, []

    def interrupted(line):
        for piece in take(line):
            yield piece
            count.append(piece)
            if len(count) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(talk, "answer", interrupted)
    monkeypatch.setattr("sys.stdin", Lines([QUESTION + "\n"]))
    run(talk)
    out = capsys.readouterr().out
    begun = talk.session.history[-1].answer
    assert whole.startswith(begun) and 0 < len(begun) < len(whole) and begun in out
    monkeypatch.undo()
    assert told(talk, "And then?")
    assert signal.getsignal(signal.SIGINT) is handler


class Lines(list):
    """Lines of a pipe."""

    def isatty(self):
        return False


def test_a_terminal_has_a_prompt_a_history_and_an_end(talk, monkeypatch, capsys):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    told(talk, QUESTION)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    history = terminal.prompt_session(talk).history
    assert list(history.load_history_strings()) == [QUESTION]
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("half a line\x03And when?\r\x04")  # Ctrl-C, enter, Ctrl-D
        run(talk)
    assert talk.questions() == [QUESTION, "And when?"]


def test_a_terminal_without_its_package_says_what_to_install(talk, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    with pytest.raises(ValueError, match=r"prompt_toolkit .*ahn\[chat\]"):
        run(talk)
