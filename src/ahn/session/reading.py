"""Tokens into a cache, chunk by chunk; chunks whose states are kept are not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ahn.generation.prefilling import fill, split
from ahn.io.progress import Report
from ahn.io.text import NEAR, TokenisedBytes
from ahn.layer.cache import AHNCache
from ahn.session.documents import Document
from ahn.session.model_lock import lock_of
from ahn.session.prefix_cache import PrefixCache
from ahn.session.state import State, chained

Done = Callable[[int], None]  # told how many tokens have been read


class Reading:
    """One text on its way into a state.

    Chunks wait while states are kept that may save computing them. So the tokens of a text that
    begins as one before are held, eight bytes each, but those of a new text are not.

    Args:
        state: to go on from; its cache is written in place.
        done: told after every chunk how many tokens of this text have been read.
    """

    def __init__(
        self, model: PreTrainedModel, state: State, prefixes: PrefixCache | None, done: Done
    ) -> None:
        self.model, self.state, self.prefixes, self.done = model, state, prefixes, done
        self.read = 0
        self.waiting: list[tuple[Tensor, str]] = []  # chunks, and the digest after each

    def run(self, ids: Iterable[Tensor], chunk_size: int) -> State:
        """Read token ids `[1, n]` in chunks of so many tokens; the last chunk holds the rest."""
        digest = self.state.digest
        for chunk in split(ids, chunk_size):
            digest = chained(digest, chunk[0].tolist())
            self.waiting.append((chunk, digest))
            if self.prefixes is None or not self.prefixes.leads_on(digest):
                self._compute()
            self.done(self.read + sum(x.shape[1] for x, _ in self.waiting))
        self._compute()
        return self.state

    def _compute(self) -> None:
        """Leave nothing waiting: skip what a kept state stands for, compute the rest."""
        for kept in range(len(self.waiting), 0, -1):
            digest = self.waiting[kept - 1][1]
            cache = None if self.prefixes is None else self.prefixes.get(digest, self.model)
            if cache is not None:
                self._advance(cache, self.waiting[:kept])
                self.waiting = self.waiting[kept:]
                break
        for chunk, digest in self.waiting:
            cache = self.state.cache
            cache = AHNCache(self.model.config) if cache is None else cache
            with lock_of(self.model):
                fill(self.model, chunk, cache)
            self._advance(cache, [(chunk, digest)])
            if self.prefixes is not None:
                self.prefixes.put(self.state.path, cache)
        self.waiting = []

    def _advance(self, cache: AHNCache, chunks: list[tuple[Tensor, str]]) -> None:
        count = sum(chunk.shape[1] for chunk, _ in chunks)
        path = (*self.state.path, *(digest for _, digest in chunks))
        self.state = replace(
            self.state, cache=cache, tokens=self.state.tokens + count, pending=(), path=path
        )
        self.read += count


class Progress:
    """How far a document is read, and how much of it there will be.

    Attributes:
        count: tokens so far, with what a template puts before them.
        last: the document's last characters so far.
    """

    def __init__(self, document: Document, report: Report | None) -> None:
        self.document, self.report = document, report
        self.count, self.last = 0, ""
        self._tokenised, self._tokens = TokenisedBytes(), 0

    def texts(self) -> Iterator[str]:
        """The document's text."""
        for text in self._tokenised.passed(self.document):
            self.last = (self.last + text)[-NEAR:]
            yield text

    def ids(self, before: list[int], given: Iterable[Tensor]) -> Iterator[Tensor]:
        """Token ids `[1, n]` before a document, then its own."""
        if before:
            yield torch.tensor([before])
        for ids in given:
            self._tokens += ids.shape[1]
            yield ids

    def done(self, count: int) -> None:
        """So many tokens have been read."""
        self.count = count
        if self.report is not None:
            self.report("reading", count, self._total())

    def _total(self) -> int | None:
        """Of a document whose end has not been tokenised by the share of its bytes that has."""
        size = self.document.size
        if size is None or not self._tokenised.count:
            return None
        return max(self.count, round(self._tokens * size / self._tokenised.count))
