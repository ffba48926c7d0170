"""`ahn ask`: its answers are the session's, each question is asked first, a text is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ahn
import talks
from ahn.session import Session, SessionFolder
from commands import call, error
from talks import QUESTION, TEXT, said

SOURCE = Path(ahn.__file__).parents[1]
OPTIONS = ("--max-new-tokens", 12, "--prefill-chunk-size", talks.CHUNK)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base with a chat template and a memory, and the options that name them."""
    return ("ask", *talks.saved(tmp_path_factory.mktemp("chatting")), *OPTIONS)


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def session():
    session = talks.new_session(talks.new_model(), talks.chatting())
    session.read(TEXT)
    return session


def answered(*arguments, **options):
    result = call(*arguments, **options)
    assert result.exit_code == 0 and not result.stderr, (result.stderr, result.exception)
    return result.stdout


@pytest.mark.slow
def test_answers_are_the_sessions_and_each_is_asked_first(base, book, session):
    one = answered(*base, "--file", book, "--question", QUESTION)
    assert one == said(session.fork()) + "\n"
    assert answered(*base, "-", "--question", QUESTION, input=TEXT) == one
    other = said(session.fork(), "And when?")
    both = answered(*base, "--file", book, "--question", QUESTION, "--question", "And when?")
    assert both == f"> {QUESTION}\n{one}> And when?\n{other}\n"
    session.read(TEXT[::-1])
    more = answered(*base, "-", "--file", book, "--question", QUESTION, input=TEXT[::-1])
    assert more == said(session) + "\n"


def test_figures_are_one_line_of_json(base, book, session):
    line = answered(*base, "--file", book, "--question", QUESTION, "--json")
    facts = json.loads(line)
    assert line.count("\n") == 1 and facts["tokens"] == session.tokens
    assert facts["nbytes"] == session.nbytes and facts["read_seconds"] > 0
    (answer,) = facts["answers"]
    assert answer["answer"] == said(session) and answer["question"] == QUESTION
    assert 0 < answer["first_text_seconds"] <= answer["seconds"]


def test_a_session_is_read_once(base, book, tmp_path, monkeypatch):
    folder = ("--session", tmp_path / "kept")
    first = answered(*base, *folder, "--file", book, "--question", QUESTION)
    monkeypatch.setattr(Session, "read", None)
    assert answered(*base, *folder, "--question", QUESTION) == first
    assert answered(*base, *folder, "--file", book, "--question", QUESTION) == first
    book.write_text(TEXT + "x")
    message = error(*base, *folder, "--file", book, "--question", QUESTION)
    assert f"--session: expected the texts that were read ({book}), got others" in message
    assert "--system: expected" in error(*base, *folder, "--question", "x", "--system", "Be short.")
    assert "--plain: expected" in error(*base, *folder, "--question", "x", "--plain")
    window = ("--memory", "none", "--window", talks.WINDOW)
    message = error(*base[:3], *window, *folder, "--question", "x")
    assert "expected a session" in message


def test_the_window_alone_and_plain_texts(base, book, tmp_path):
    window = (*base[:3], *OPTIONS, "--window", talks.WINDOW, "--num-sinks", 4)
    kept = ("--session", tmp_path / "kept", "--question", QUESTION)
    alone = answered(*window, "--file", book, *kept)
    torch.manual_seed(1)  # another process's random numbers, of which none is used
    assert answered(*window, *kept) == alone
    plain = answered(*base, "--plain", "--file", book, "--question", QUESTION)
    model = talks.new_model()
    with ahn.memory_off(model):
        session = talks.new_session(model, talks.chatting())
        session.read(TEXT)
        assert alone == said(session) + "\n"
    session = talks.new_session(model, talks.chatting(), plain=True)
    session.read(TEXT)
    assert plain == said(session) + "\n" != alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--question: expected at least one, got none"),
        (["--question", "x"], "--file: expected a text to read, - or --session, got none"),
        (["--question", "x", "--session", "new"], "expected a folder with a session, got new with"),
        (["--question", "x", "--file", "missing"], "missing: expected a file that can be used"),
        (["--question", "x", "--file", "empty"], "empty: expected some text, got none"),
        (["--question", "x", "--file", "binary"], "binary: expected text, got a binary file"),
        (["--question", "x", "--file", "latin1"], "latin1: expected UTF-8 text, got the byte 0xfc"),
        (["--question", "", "--file", "text"], "question: expected some text, got none"),
        (["--question", "why " * 40, "--file", "text"], "question: expected at most 64 tokens"),
        (["--question", "x", "--file", "text", "--memory", "none"], "--memory: expected a memory"),
        (["--question", "x", "--file", "text", "--top-p", "0"], "--top-p: expected a number"),
        (["--question", "x", "--file", "text", "--session", "text"], "got the file text"),
        (["--question", "x", "--file", "text", "--session", "."], "--session: expected a new fold"),
        (["x", "--question", "x"], "command line: expected - for standard input, got 'x'"),
    ],
)
def test_what_cannot_be_answered_is_one_line(base, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "empty": b"", "binary": b"\0\1\2", "latin1": "Grüße".encode("latin1"), "text": b"A text.",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    assert message in error(*base, *arguments)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_without_a_template_is_one_line(book):
    arguments = ("--model", "embedded", "--file", book, "--question", "x")
    assert "chat template: expected a tokenizer that has one" in error("ask", *arguments)


def test_a_folder_in_use_is_one_line(base, book, tmp_path):
    folder = ("--session", tmp_path / "kept", "--question", QUESTION)
    first = answered(*base, *folder, "--file", book)
    with SessionFolder(tmp_path / "kept"):
        said = error(*base, *folder)
        assert "--session: expected a folder that no other run is using" in said
    assert answered(*base, *folder) == first


@pytest.mark.slow
def test_of_two_processes_on_one_folder_one_reads_and_the_other_is_told_or_comes_after(
    base, book, tmp_path
):
    options = ("--session", tmp_path / "kept", "--file", book, "--question", QUESTION)
    command = [sys.executable, "-m", "ahn", *map(str, (*base, *options))]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    ended = [(*process.communicate(), process.returncode) for process in both]
    expected = answered(*base, *options)
    codes = sorted(code for *_, code in ended)
    assert codes in ([0, 0], [0, 2]), ended
    for out, wrong, code in ended:
        if code:
            assert "expected a folder that no other run is using" in wrong and not out
        else:
            assert out == expected
