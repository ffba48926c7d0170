"""LV-Eval's metrics (arXiv 2402.05136): F1 or ROUGE-L, and 0 where too few keywords are recalled.

A prediction must recall 20 % (English) or 40 % (Chinese) of the tokens of the answer's keywords,
counted without blacklisted words; Chinese without keywords takes the answer for them. Tokenising
and normalising are LongBench's, as in the benchmark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jieba
from lm_eval.tasks.longbench.metrics import normalize_answer, normalize_zh_answer

from ahn.evaluation.tasks.rouge_l import rouge_l

jieba.setLogLevel("ERROR")
MIN_RECALL_EN, MIN_RECALL_ZH = 0.2, 0.4
BLACKLIST_EN, BLACKLIST_ZH = (
    frozenset((Path(__file__).parent / f"blacklist_{language}.txt").read_text("utf-8").split())
    for language in ("en", "zh")
)


def f1_en(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of English words."""
    return _f1(_words(prediction), _words(answer))


def f1_zh(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of Chinese words."""
    return _f1(_chinese_words(prediction), _chinese_words(answer))


def keyword_f1_en(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of English words, 0 where the keywords, if there are any, are not recalled."""
    words = _words(prediction)
    if keywords and _recall(words, _words(keywords), BLACKLIST_EN) < MIN_RECALL_EN:
        return 0.0
    return _f1(words, _words(answer))


def keyword_f1_zh(prediction: str, answer: str, keywords: str | None = None) -> float:
    """F1 of Chinese words, 0 where the keywords, or else the answer, are not recalled."""
    words = _chinese_words(prediction)
    if _recall(words, _chinese_words(keywords or answer), BLACKLIST_ZH) < MIN_RECALL_ZH:
        return 0.0
    return _f1(words, _chinese_words(answer))


def rouge_zh(prediction: str, answer: str, keywords: str | None = None) -> float:
    """ROUGE-L of Chinese words without blacklisted ones; 0 where nothing is left.

    Two texts of which only blanks are left are alike, as in the benchmark.
    """
    return rouge_l(*(" ".join(_allowed_chinese(text)) for text in (prediction, answer)))


METRICS: dict[str, Callable[..., float]] = {
    metric.__name__: metric for metric in (f1_en, f1_zh, keyword_f1_en, keyword_f1_zh, rouge_zh)
}


def _words(text: str) -> list[str]:
    return normalize_answer(text).split()


def _chinese_words(text: str) -> list[str]:
    words = (normalize_zh_answer(word) for word in jieba.cut(text))
    return [word for word in words if word]


def _allowed_chinese(text: str) -> list[str]:
    """The benchmark cuts twice: some words come apart only when spaces stand around them."""
    words = (normalize_zh_answer(word) for word in jieba.cut(" ".join(jieba.cut(text))))
    return [word for word in words if word not in BLACKLIST_ZH]


def _recall(words: Sequence[str], wanted: Sequence[str], blacklist: frozenset[str]) -> float:
    common = Counter(words) & Counter(wanted)
    matched = sum(count for word, count in common.items() if word not in blacklist)
    return matched / len(wanted) if wanted else 0.0


def _f1(words: Sequence[str], wanted: Sequence[str]) -> float:
    same = sum((Counter(words) & Counter(wanted)).values())
    return 2 * same / (len(words) + len(wanted)) if same else 0.0
