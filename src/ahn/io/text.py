"""Text of any length as token ids, read and tokenised in chunks."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CHUNK_BYTES = 65536  # read at a time


def text_chunks(file: BinaryIO, name: str, size: int = CHUNK_BYTES) -> Iterator[str]:
    """UTF-8 text in chunks that end after a line where `size` bytes hold a line end.

    Only a line longer than that is cut elsewhere, between two characters.

    Args:
        name: of the file, for the error.
        size: bytes read at a time.

    Raises ValueError naming the file where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""  # the beginning of a line whose end has not been read
    while True:
        block = file.read(size)
        try:
            text = rest + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}"
            ) from error
        cut = text.rfind("\n") + 1 or len(text)
        if not block:
            cut = len(text)
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if not block:
            return


def encode_chunks(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Tensor]:
    """Token ids `[1, n]` of each chunk of a text, without the special tokens after the first one.

    Each chunk is tokenised by itself, so the tokens at its ends can differ from those of the uncut
    text.

    Raises ValueError where there is no text.
    """
    first = True
    for text in texts:
        ids = tokenizer(text, add_special_tokens=first, verbose=False)["input_ids"]
        if text and ids:
            first = False
            yield torch.tensor([ids])
    if first:
        raise ValueError("prompt: expected some text, got none")
