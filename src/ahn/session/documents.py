"""What a session can read: text, files of several kinds, streams; each with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ahn.io.checksum import file_sum
from ahn.io.text import text_chunks

INSTALL = "pip install 'ahn[documents]'"
PARSER = "html.parser"  # of the standard library: Beautiful Soup then needs no other package
NO_TEXT = ("script", "style", "template", "noscript", "head")  # elements that hold none
Source = Any  # str: the text itself; Path: a file; binary file; iterable of str


class Document:
    """A text that is read once, from front to back.

    Args:
        source: the text as a string, a `Path`, a file opened in binary mode, or an iterable of
            strings. A file's kind goes by its name: `.pdf`, `.html`, `.htm`; any other is UTF-8.
        name: what errors and the session call it; left out, the file's own.

    Attributes:
        size: bytes of the text, where they are known beforehand.

    Raises OSError where there is no such file.
    """

    def __init__(self, source: Source, name: str | None = None) -> None:
        self._source, self._digest = source, hashlib.sha256()
        self._whole = False
        self.size: int | None = None
        if isinstance(source, Path):
            name = name or str(source)
            with source.open("rb"):  # whose error names the file
                pass
            if source.suffix.lower() not in READERS:
                self.size = source.stat().st_size
        elif isinstance(source, str):
            self.size = len(source.encode())
        self.name = name or getattr(source, "name", None) or "text"

    def __iter__(self) -> Iterator[str]:
        """The text in chunks.

        Raises ValueError naming the document where it has no text or cannot be read.
        """
        is_empty = True
        for text in self._texts():
            if "\0" in text:
                raise ValueError(f"{self.name}: expected text, got a binary file")
            if not isinstance(self._source, Path):
                self._digest.update(text.encode())
            is_empty = is_empty and not text.strip()
            yield text
        if is_empty:
            raise ValueError(f"{self.name}: expected some text, got none")
        self._whole = True

    @property
    def sha256(self) -> str:
        """Of a file's bytes, else of the text in UTF-8; of the latter what was not read is read."""
        if isinstance(self._source, Path):
            return file_sum(self._source)
        if not self._whole:
            for _ in self:
                pass
        return self._digest.hexdigest()

    def _texts(self) -> Iterable[str]:
        source = self._source
        if isinstance(source, str):
            return [source]
        if isinstance(source, Path):
            return _texts_of_file(source, self.name)
        if hasattr(source, "read"):
            return text_chunks(source, self.name)
        return source


def _texts_of_file(path: Path, name: str) -> Iterator[str]:
    with path.open("rb") as file:
        yield from READERS.get(path.suffix.lower(), text_chunks)(file, name)


def _pdf(file: BinaryIO, name: str) -> Iterator[str]:
    """A PDF's text, page by page."""
    pypdf = _needed("pypdf", name)
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError(f"{name}: expected a PDF without a password, got one with")
        for page in reader.pages:
            yield page.extract_text() + "\n"
    except pypdf.errors.PyPdfError as error:
        raise ValueError(f"{name}: expected a whole PDF, got: {error}") from error


def _html(file: BinaryIO, name: str) -> Iterator[str]:
    """What a page says: its text without scripts and styles, a line for each block."""
    soup = _needed("bs4", name).BeautifulSoup(file.read(), PARSER)
    for element in soup(NO_TEXT):
        element.decompose()
    lines = (line.strip() for line in soup.get_text("\n").splitlines())
    yield "\n".join(line for line in lines if line)


def _needed(package: str, name: str) -> Any:
    """An optional package; ValueError that says what to install where it is missing."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{name}: expected the package {package} to be installed ({INSTALL}), got none"
        ) from error


READERS: dict[str, Callable[[BinaryIO, str], Iterator[str]]] = {
    ".pdf": _pdf,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
}
