"""How well long texts are predicted, by position: nats per token and bits per byte.

A text is cut into stretches at about doubling positions (two an octave), at ends of lines; each is
scored given all before it. All contexts are beginnings of one text, so one pass scores them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import datasets

from ahn.evaluation.texts import DEFAULT_TEXTS, named_texts, task_tokenizer, token_starts

FIRST_CUT = 128  # tokens
CHARACTERS_PER_TOKEN = 16  # more than a text of any length has on average


def dataset(
    length: int = 8192,
    documents: int = 4,
    texts: Sequence[str] = DEFAULT_TEXTS,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    data: str | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Stretches of documents of `length` tokens, as many as the texts hold.

    Args:
        length: tokens of each document.
        documents: the most to take: the first of each text, then the second of each, and so on.
        texts: see `ahn.evaluation.texts.named_texts`.
        tokenizer, pretrained: where the tokenizer is; positions are measured with it.
        data: see `named_texts`.

    Raises:
        ValueError: no text is so long, or an option is out of range.
    """
    if length < 2 or documents < 1:
        raise ValueError(f"length, documents: expected at least 2, 1, got {length}, {documents}")
    encoder = task_tokenizer(tokenizer, pretrained)
    beginning = encoder.bos_token or ""  # without it lm-eval adds its prefix, but only to the first
    stretches: list[dict[str, Any]] = []
    taken = longest = 0
    for name, text, starts in _documents(named_texts(texts, data), length, encoder):
        longest = max(longest, len(starts))
        if len(starts) < length:
            continue
        for stretch in _stretches(name, text, starts[:length]):
            stretches.append({**stretch, "context": beginning + stretch["context"]})
        taken += 1
        if taken == documents:
            break
    if not stretches:
        raise ValueError(f"texts: expected one of {length} tokens, got {longest} at most")
    return {"test": datasets.Dataset.from_list(stretches)}


def process_results(
    doc: dict[str, Any], results: list[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """What a stretch cost, and its size; nothing where the sample was skipped."""
    loglikelihood = results[0][0]
    if not math.isfinite(loglikelihood):
        return {}
    return {
        "bits_per_byte": (-loglikelihood / math.log(2), doc["bytes"]),
        "nats_per_token": (-loglikelihood, doc["last"] - doc["first"]),
    }


def ratio(items: Sequence[tuple[float, int]]) -> float:
    """The sum of the first over the sum of the second."""
    return sum(cost for cost, _ in items) / sum(size for _, size in items)


def _documents(
    texts: Iterable[tuple[str, str]], length: int, encoder: Any
) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Name, text and token starts of the first document in each text, then of the second, ...

    A document of at least `length` tokens ends there; the next begins with the line after.
    """
    number = 0
    while texts:
        number, rest = number + 1, []
        for name, text in texts:
            document = text[: CHARACTERS_PER_TOKEN * length]
            starts = token_starts(encoder, document)
            yield name if number == 1 else f"{name}, {number}", document, starts
            end = len(starts) >= length and text.find("\n", starts[length - 1]) + 1
            if end:
                rest.append((name, text[end:]))
        texts = rest


def _stretches(name: str, text: str, starts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Stretches of the text up to the last of the tokens that begin at `starts`."""
    text = text[: starts[-1]]
    cuts = [0, *_cuts(text, starts), len(text)]
    position = {start: index for index, start in enumerate(starts)}
    for begin, end in pairwise(cuts):
        yield {
            "document": name,
            "context": text[:begin],
            "continuation": text[begin:end],
            "first": position[begin],  # tokens before it
            "last": position.get(end, len(starts) - 1),
            "bytes": len(text[begin:end].encode()),
        }


def _cuts(text: str, starts: Sequence[int]) -> list[int]:
    """Characters where stretches meet: before a line end that follows a letter or digit.

    There, tokenizers cut too, and lm-eval moves no white space from a context to what follows.
    """
    cuts: list[int] = []
    wanted = float(FIRST_CUT)
    for index, start in enumerate(starts[:-1]):
        if index >= wanted and start and text[start] == "\n" and text[start - 1].isalnum():
            cuts.append(start)
            while wanted <= index:
                wanted *= math.sqrt(2)
    return cuts
