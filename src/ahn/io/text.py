"""Text of any length as token ids: read in pieces, tokenised in pieces, never whole."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PIECE = 65536  # bytes read at a time


def read_pieces(file: BinaryIO, name: str, size: int = PIECE) -> Iterator[str]:
    """UTF-8 text in pieces that end after a line where `size` bytes hold a line end.

    Only a line longer than that is cut elsewhere, between two characters.

    Raises ValueError naming the file where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    held = ""
    while True:
        block = file.read(size)
        try:
            held += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}"
            ) from error
        cut = held.rfind("\n") + 1 or len(held)
        if not block:
            cut = len(held)
        if cut:
            yield held[:cut]
        held = held[cut:]
        if not block:
            return


def encode_pieces(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Tensor]:
    """Token ids `[1, n]` of each piece; special tokens, where the tokenizer adds any, only once.

    A piece is tokenised by itself, so the tokens at its ends can differ from those of the whole.

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
