"""Text of any length as token ids, read and tokenised in chunks."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]
CHUNK_BYTES = 65536  # read at a time
UTF8 = "utf-8-sig"  # UTF-8 with or without a byte order mark, which is no text
NEAR = 64  # characters on either side of a place that decide which tokens meet there
TRIED = 512  # characters in which a place to cut is looked for
LONGEST = 8192  # characters that are held until there is such a place
# Where a text is cut, best first: before a word that follows a line end, a word, any character.
_PLACES = (re.compile(r"(?<=\n)(?=\S)"), re.compile(r"(?<=\S)(?=\s\S)"), re.compile(r"(?=.)", re.S))


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 file's text, without a byte order mark.

    Raises ValueError naming the file where it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding=UTF8)
    except UnicodeDecodeError as error:
        raise not_utf8(str(path), error) from error


def not_utf8(name: str, error: UnicodeDecodeError) -> ValueError:
    """The error of a text that is not UTF-8, by the name of its file."""
    return ValueError(
        f"{name}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}"
    )


def json_lines(text: str) -> list[str]:
    """The lines of a JSONL text that are not blank.

    A line feed alone ends a line: other separators, such as U+2028, may stand within JSON.
    """
    return [line for line in text.split("\n") if line.strip()]


def text_chunks(file: BinaryIO, name: str, size: int = CHUNK_BYTES) -> Iterator[str]:
    """UTF-8 text in chunks that end after a line where `size` bytes hold a line end.

    Only a line longer than that is cut elsewhere, between two characters. A byte order mark is left
    out.

    Args:
        name: of the file, for the error.
        size: bytes read at a time.

    Raises ValueError naming the file where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder(UTF8)()
    rest = ""  # the beginning of a line whose end has not been read
    while True:
        block = file.read(size)
        try:
            text = rest + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(name, error) from error
        cut = text.rfind("\n") + 1 or len(text)
        if not block:
            cut = len(text)
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if not block:
            return


def encode_chunks(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Tensor]:
    """Token ids `[1, n]` of a text that is given in chunks: those of the uncut text.

    Chunks are cut as by `encode_further`. Raises ValueError where there is no text.
    """
    import torch

    before, after = special_tokens(tokenizer)
    begun = False
    for ids in encode_further(tokenizer, texts):
        yield ids if begun else torch.cat([torch.tensor([before], dtype=ids.dtype), ids], 1)
        begun = True
    if not begun:
        raise ValueError("prompt: expected some text, got none")
    if after:
        yield torch.tensor([after])


def encode_further(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], past: str = "", **options: Any
) -> Iterator[Tensor]:
    """Token ids `[1, n]` of a text that is given in chunks and goes on after `past`.

    Chunks are cut anew where no token spans the cut, and what is tokenised is tokenised after its
    last characters, so that nothing is put before it as before a text. Only where thousands of
    characters have no blank can the tokens at a cut differ from those of the uncut text.

    Args:
        options: of the tokenizer's call, such as `split_special_tokens`.
    """
    import torch

    encode = _encoder(tokenizer, options)
    past, ahead = past[-NEAR:], ""
    for text, is_last in _with_last(texts):
        ahead += text
        cut = len(ahead) if is_last else _cut(encode, past, ahead)
        ids = _encode_after(encode, ahead[:cut], past) if cut else []
        past, ahead = (past + ahead[:cut])[-NEAR:], ahead[cut:]
        if ids:
            yield torch.tensor([ids])


class TokenisedBytes:
    """Counts the bytes of texts whose tokens `encode_further` has given: it is one text ahead.

    Attributes:
        count: bytes in UTF-8.
    """

    def __init__(self) -> None:
        self.count = 0

    def passed(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts on their way."""
        ahead = 0
        for text in texts:
            self.count += ahead
            ahead = len(text.encode())
            yield text
        self.count += ahead


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str, past: str) -> list[int]:
    """Token ids of a text that goes on after `past`, without special tokens.

    Tokenizers that mark the beginnings of words put a blank before a text; a text that goes on gets
    none. Where the two texts' tokens would merge, this one is tokenised by itself.
    """
    return _encode_after(_encoder(tokenizer, {}), text, past)


def _encode_after(encode: Encode, text: str, past: str) -> list[int]:
    if past:
        known, both = encode(past), encode(past + text)
        if both[: len(known)] == known:
            return both[len(known) :]
    return encode(text)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids of the tokens that a tokenizer puts before and after a text by itself."""
    plain = _encoder(tokenizer, {})("a")
    whole = tokenizer("a", verbose=False)["input_ids"]
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first], whole[first + len(plain) :]
    return [], []


def _encoder(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Encode:
    """Token ids of a text by itself."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]

    return encode


def _cut(encode: Encode, past: str, ahead: str) -> int:
    """Where to cut a text that goes on: the last place that no token spans, 0 where there is none.

    In a text without blanks it is any character, of a long one at last wherever it is.
    """
    end = len(ahead) - NEAR
    for kind in _PLACES if len(ahead) > LONGEST else _PLACES[:-1]:
        found = (match.start() for match in kind.finditer(ahead, max(1, end - TRIED)))
        places = [place for place in found if place <= end]
        for place in reversed(places):
            left = (past + ahead[:place])[-NEAR:]
            known = encode(left)
            both = encode(left + ahead[place : place + NEAR])
            if both[: len(known)] == known:
                return place
    return end if len(ahead) > LONGEST else 0


def _with_last(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each text, and whether it is the last."""
    iterator = iter(texts)
    held = next(iterator, "")
    for text in iterator:
        yield held, False
        held = text
    yield held, True
