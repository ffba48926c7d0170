"""ROUGE-L as LongBench and LV-Eval take it from the package `rouge`, for texts of any length.

That package recurses once a word: texts of a thousand words raise, and the benchmarks' programs
then count 0. Here they get their score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALL = 1e-8  # in the package's formula


def rouge_l(prediction: str, answer: str) -> float:
    """F1 of the distinct words in the longest common subsequences of all pairs of sentences.

    Sentences end at full stops, words at blanks; a text without any sentence scores 0.
    """
    ours, theirs = _sentences(prediction), _sentences(answer)
    if not ours or not theirs:
        return 0.0
    common = {word for a in theirs for b in ours for word in common_subsequence(a, b)}
    precision, recall = (
        len(common) / len({word for sentence in text for word in sentence})
        for text in (ours, theirs)
    )
    return 2 * precision * recall / (precision + recall + SMALL)


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one that the package finds."""
    numbers = {word: number for number, word in enumerate({*left, *right})}
    row = np.array([numbers[word] for word in right])
    lengths = np.zeros((len(left) + 1, len(right) + 1), np.int32)
    for index, word in enumerate(left, start=1):
        before = lengths[index - 1]
        best = np.where(row == numbers[word], before[:-1] + 1, before[1:])
        lengths[index, 1:] = np.maximum.accumulate(best)
    found, i, j = [], len(left), len(right)
    while i and j:
        if left[i - 1] == right[j - 1]:
            found.append(left[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1, j] > lengths[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]
