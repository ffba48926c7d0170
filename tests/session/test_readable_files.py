"""Documents: one digest whatever they come from, kinds by name, and what is none."""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import pytest

from ahn.io.text import CHUNK_BYTES
from ahn.session import Document
from ahn.session.reading import Progress
from ahn.session.turns import Turns

TEXT = "Ärger im Hafen.\n" * 9000
HTML = (
    "<html><head><title>no</title><style>p {}</style></head><body><h1>Call me</h1>"
    "<p>Ishmael &amp; <b>friends</b>.</p><script>let no = 1</script></body></html>"
)


def test_a_text_is_the_same_wherever_it_comes_from(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    sources = (TEXT, file, io.BytesIO(TEXT.encode()), iter([TEXT[:7], TEXT[7:]]))
    assert len(TEXT.encode()) > 2 * CHUNK_BYTES
    for source in sources:
        document = Document(source)
        assert "".join(document) == TEXT
        assert document.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    unread = Document(io.BytesIO(TEXT.encode()))
    assert unread.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert [Document(x).name for x in (TEXT, file)] == ["text", str(file)]


@pytest.mark.skipif(not find_spec("bs4"), reason="needs beautifulsoup4")
def test_a_page_is_what_it_says(tmp_path):
    file = tmp_path / "page.HTML"
    file.write_text(HTML)
    assert "".join(Document(file)).split() == ["Call", "me", "Ishmael", "&", "friends", "."]


@pytest.mark.skipif(not find_spec("pypdf"), reason="needs pypdf")
def test_a_pdf_is_its_pages(tmp_path):
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    file = tmp_path / "two.pdf"
    with PdfPages(file) as pages:
        for text in ("Call me Ishmael", "Loomings"):
            figure = Figure()
            figure.text(0.1, 0.5, text)
            pages.savefig(figure)
    words = "".join(Document(file)).split()
    assert words == ["Call", "me", "Ishmael", "Loomings"]
    (tmp_path / "cut.pdf").write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pdf: expected a whole PDF"):
        "".join(Document(tmp_path / "cut.pdf"))


@pytest.mark.parametrize("package", ["pypdf", "bs4"])
def test_a_missing_reader_says_what_to_install(package, tmp_path, monkeypatch):
    file = tmp_path / ("x.pdf" if package == "pypdf" else "x.htm")
    file.write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ValueError, match=rf"expected the package {package} .*ahn\[documents\]"):
        "".join(Document(file))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected some text, got none"),
        (b" \n\n ", "expected some text, got none"),
        ("Grüße".encode("latin1"), "expected UTF-8 text, got the byte 0xfc"),
        (b"\x7fELF\x02\x01\x00\x00\x00", "expected text, got a binary file"),
    ],
)
def test_what_is_no_text_is_named(data, message, tmp_path):
    file = tmp_path / "given"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"given: {message}"):
        "".join(Document(file))
    with pytest.raises(FileNotFoundError):
        Document(Path(tmp_path, "missing"))


def test_how_much_there_will_be_is_known_from_the_first_tokens_on(tmp_path, tokenizer):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    done, totals = 0, []
    progress = Progress(Document(file), lambda stage, done, total, note="": totals.append(total))
    for ids in progress.ids([], Turns.plain(tokenizer).given(progress.texts(), "")):
        done += ids.shape[1]
        progress.done(done)
    assert len(totals) > 2 and totals[-1] == done
    assert all(abs(total / done - 1) < 0.05 for total in totals), totals
