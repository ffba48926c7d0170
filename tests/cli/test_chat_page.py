"""`ahn chat --web`: what the page shows is the session's; in a browser where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest

import ahn
import talks
from ahn.cli.chat.page import Page
from ahn.cli.chat.talk import Talk
from ahn.session import Session
from commands import error
from talks import QUESTION, TEXT, said

SOURCE = Path(ahn.__file__).parents[1]
ANSWER = {"max_new_tokens": 12}
SECONDS = 120  # for the page to appear, and for what is waited for on it


@pytest.fixture
def session():
    return talks.new_session(talks.new_model(), talks.chatting())


@pytest.fixture
def page(session):
    return Page(Talk(session, ANSWER, None))


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book <b>.txt"
    file.write_text(TEXT)
    return file


def unheard(stage, done, total, note=""):
    """A report that nobody sees."""


def test_the_page_shows_what_was_read_and_said(page, book, session):
    other = session.fork()
    other.read(book)
    page.read(book, unheard)
    assert not book.exists(), "the copy is gone"
    expected = said(other)
    *_, last = page.answer(QUESTION)
    assert last == expected + "\n"
    talk, sizes, text = page.shown()
    assert [x["content"] for x in talk][1:] == [QUESTION, expected]
    assert talk[0]["content"].startswith("book <b>.txt: ") and talk[-1]["role"] == "assistant"
    assert f"{session.tokens:,} tokens" in sizes and "full attention" in sizes
    assert all(f'class="{kind}"' in text for kind in ("sink", "window", "slot", "left"))
    list(page.answer("/undo")), list(page.answer("/undo"))
    assert page.shown()[0] == [] and "Nothing was read yet" in page.shown()[2]


def test_text_is_no_markup(page):
    page.session.read("<script>alert('&')</script>")
    assert "<script" not in page.shown()[2] and "&lt;script&gt;" in page.shown()[2]


def test_stopped_is_said_so_far_and_a_text_that_is_stopped_was_never_read(page, book, session):
    pieces = page.answer(QUESTION)
    first = next(pieces)
    page.is_stopped.set()
    assert list(pieces) == [] and session.history[-1].answer == first.rstrip("\n")
    before = session.tokens

    def stopping(stage, done, total, note=""):
        page.is_stopped.set()

    with pytest.raises(ValueError, match="reading: expected to go on, got stopped"):
        page.read(book, stopping)
    assert session.tokens == before
    left = page.answer("And when?")  # of a window that was closed
    next(left)
    assert list(page.answer("Else?")) and len(session.history) == 3


def test_the_page_looks_back_as_the_command_does_in_any_thread(book):
    from concurrent.futures import ThreadPoolExecutor

    model, tokenizer = talks.new_model(), talks.chatting()
    with ahn.memory_off(model):
        alone = talks.new_session(model, tokenizer)
        page = Page(Talk(talks.new_session(model, tokenizer), ANSWER, None))
        alone.read(book)
        expected = said(alone)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(page.read, book, unheard).result()
    pieces, told = page.answer(QUESTION), ""
    for _ in range(100):
        with ThreadPoolExecutor(1) as pool:  # a new thread for each piece
            piece = pool.submit(next, pieces, None).result()
        told = told if piece is None else piece
    assert told == expected + "\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The options that name a base with a chat template and a memory."""
    return ("chat", *talks.saved(tmp_path_factory.mktemp("page")))


def test_what_cannot_be_served_is_one_line(base, monkeypatch):
    assert "--port: expected --web to go with it, got none" in error(*base, "--port", 80)
    assert "--port: expected an integer >= 1" in error(*base, "--web", "--port", 0)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gradio", None)
        said = error(*base, "--web")
        assert "--web: expected the package gradio to be installed (pip install 'ahn[web]')" in said


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(x) for x in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1300,900"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    service = webdriver.ChromeService(programs[1])
    with webdriver.Chrome(options, service) as driver:
        yield driver


@pytest.fixture
def served(base, tmp_path):
    """The address of a page, its process, and the folder of its session."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--prefill-chunk-size", talks.CHUNK, "--max-new-tokens", 12)
    options += ("--web", "--port", port, "--session", tmp_path / "kept")
    command = [sys.executable, "-m", "ahn", *map(str, (*base, *options))]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            # Other packages may have said something before.
            before = list(takewhile(lambda x: f"http://127.0.0.1:{port}" not in x, process.stderr))
            assert process.poll() is None, "".join(before)
            yield port, process, tmp_path / "kept"
        finally:
            process.kill()


def wait(condition):
    """What a condition gives once it gives something; elements may be replaced meanwhile."""
    from selenium.common.exceptions import StaleElementReferenceException

    for _ in range(SECONDS * 20):
        try:
            if found := condition():
                return found
        except StaleElementReferenceException:
            pass
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.slow
def test_a_browser_reads_asks_and_takes_back(browser, served, base, book, session):
    port, process, folder = served
    find = lambda selector: browser.find_elements("css selector", selector)  # noqa: E731
    text = lambda selector: "\n".join(x.text for x in find(selector))  # noqa: E731
    long = book.with_name("long.txt")
    long.write_text(TEXT * 40)
    browser.get(f"http://127.0.0.1:{port}")
    wait(lambda: "Nothing was read yet" in text("#text"))
    find("#document input[type=file]")[0].send_keys(str(long))
    wait(lambda: "reading" in text("#document"))
    session.read(long)
    wait(lambda: f"{session.tokens:,} tokens" in text("#sizes"))
    assert find("#text .sink") and find("#text .window") and find("#text .slot")
    assert "tokens that have left the window" in text("#text .omitted")
    find("#line textarea")[0].send_keys(QUESTION)
    find("#ask")[0].click()
    expected = said(session)
    wait(lambda: f"{session.tokens:,} tokens" in text("#sizes"))
    assert expected.split()[0] in text("#chat") and QUESTION in text("#chat")
    find("#line textarea")[0].send_keys("why " * 40)
    find("#ask")[0].click()
    wait(lambda: "question: expected at most 64 tokens" in text("body"))
    session.undo()
    find("#undo")[0].click()
    wait(lambda: f"{session.tokens:,} tokens" in text("#sizes") and QUESTION not in text("#chat"))
    assert "--port: expected a free one" in error(*base, "--web", "--port", port)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    kept = Session.load(folder, session.model, session.tokenizer)
    assert kept.tokens == session.tokens
