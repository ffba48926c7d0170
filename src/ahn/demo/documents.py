"""The demo's documents: those it evaluates on, and separate ones for its fresh memory."""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ahn.embedded import corpus
from ahn.evaluation import encode_bytes
from ahn.generation.prefilling import split
from ahn.io.text import text_chunks

HELD_OUT_DOCUMENTS = 3  # at least so many of the standard library's, for variety
CHARACTERS_PER_TOKEN = 8  # more than any source text has on average
SAME_BYTES = 4096  # texts that begin with the same ones are taken for the same text


@dataclass(frozen=True)
class Document:
    """A text that begins with the end-of-text token, as every text the base was trained on."""

    name: str
    ids: Tensor  # [1, T]
    lengths: Tensor  # [T], bytes of each token, 0 of the first

    def first(self, tokens: int) -> Document:
        """The same, at most `tokens` long."""
        return replace(self, ids=self.ids[:, :tokens], lengths=self.lengths[:tokens])

    def __len__(self) -> int:
        return self.ids.shape[1]


def evaluation_documents(
    path: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    tokens: int,
    budget: int,
) -> list[Document]:
    """Documents of at most `context` and together at most `tokens` tokens, each beyond the budget.

    They are the held-out modules of the standard library, or one UTF-8 file cut into documents.

    Raises:
        ValueError: the file is not UTF-8 or too short, or `tokens` is.
        OSError: the file cannot be read.
    """
    if tokens <= budget:
        raise ValueError(f"tokens: expected more than the budget of {budget}, got {tokens}")
    if path is not None:
        with path.open("rb") as file:
            texts = text_chunks(file, str(path))
            documents = _take([_cut(path.name, texts, tokenizer, context)], tokens, budget)
        if not documents:
            raise ValueError(f"{path}: expected a text of more than {budget} tokens, got less")
        return documents
    length = min(context, max(budget + 1, tokens // HELD_OUT_DOCUMENTS))
    sources = [
        _cut(name, _text_chunks(text), tokenizer, length)
        for name, text in corpus.held_out_documents()
    ]
    return _take(sources, tokens, budget)


def training_batches(
    tokenizer: PreTrainedTokenizerBase, length: int, seed: int, *, evaluated: Path | None
) -> Iterator[Tensor]:
    """Rows `[1, length]` of the standard library's training documents, in random order, endless.

    Of each document a random stretch of about two rows is taken. A document that begins as the
    `evaluated` file does is left out.

    Raises ValueError where the interpreter has no such documents.
    """
    documents = corpus.training_documents()
    if evaluated is not None:
        with evaluated.open("rb") as file:
            beginning = file.read(SAME_BYTES)
        documents = [d for d in documents if d[1].encode()[:SAME_BYTES] != beginning]
    if not documents:
        raise ValueError("training text: expected the standard library's source, got none")
    return split(_stretches(documents, tokenizer, length, random.Random(seed)), length)


def _stretches(
    documents: list[corpus.Document],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    chance: random.Random,
) -> Iterator[Tensor]:
    size = CHARACTERS_PER_TOKEN * length
    while True:
        for _, text in chance.sample(documents, len(documents)):
            start = chance.randrange(max(1, len(text) - size))
            ids, _ = encode_bytes(tokenizer, text[start : start + size])
            yield torch.cat([torch.tensor([tokenizer.eos_token_id]), ids])[None]


def _text_chunks(text: str) -> Iterator[str]:
    return text_chunks(io.BytesIO(text.encode()), "text")


def _cut(
    name: str, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Document]:
    """Documents of `length` tokens and the shorter rest; text is taken as they need it."""
    start, none = torch.tensor([tokenizer.eos_token_id]), torch.tensor([0])
    ids = lengths = torch.empty(0, dtype=torch.long)
    size = length - 1
    for text in texts:
        new_ids, new_lengths = encode_bytes(tokenizer, text)
        ids, lengths = torch.cat([ids, new_ids]), torch.cat([lengths, new_lengths])
        while len(ids) >= size:
            document = torch.cat([start, ids[:size]])[None], torch.cat([none, lengths[:size]])
            yield Document(name, *document)
            ids, lengths = ids[size:], lengths[size:]
    yield Document(name, torch.cat([start, ids])[None], torch.cat([none, lengths]))


def _take(sources: list[Iterator[Document]], tokens: int, budget: int) -> list[Document]:
    """Documents beyond the budget, from all sources in turn, until there are `tokens`."""
    taken: list[Document] = []
    waiting = deque(sources)
    while waiting and tokens > budget:
        source = waiting.popleft()
        document = next(source, None)
        if document is None:
            continue
        waiting.append(source)
        document = document.first(tokens)
        if len(document) > budget:
            taken.append(document)
            tokens -= len(document)
    return taken
