"""Samples longer than `max_length`: answered as skipped and counted, where lm-eval cuts them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

UNLIMITED = 2**40  # tokens of `max_length`: memory use does not depend on a sample's length
SKIPPED = "[ahn-skipped]"  # the answer to a prompt longer than max_length
SKIPPED_SCORE = (float("-inf"), False)  # the same for a continuation
log = logging.getLogger(__name__)


def report_skipped(count: int, total: int, longest: int) -> None:
    """Warn of samples that are longer than `max_length`."""
    if count:
        log.warning(
            "max_length: expected samples of at most %d tokens, skipped %d of %d that are longer",
            longest, count, total,
        )  # fmt: skip


def fitting_prompts(lm: Any, requests: Sequence[Any]) -> list[int]:
    """Indices of the requests whose prompt and longest answer `lm.max_length` has room for."""
    if lm.max_length >= UNLIMITED:  # nothing has to be counted
        return list(range(len(requests)))

    def fits(context: str, gen_kwargs: dict[str, Any]) -> bool:
        answer = normalize_gen_kwargs(gen_kwargs, lm.max_gen_toks)["max_gen_toks"]
        return len(lm.tok_encode(context)) <= lm.max_length - answer

    return [i for i, request in enumerate(requests) if fits(*request.args)]


def with_skipped(
    lm: Any,
    fits: Sequence[int],
    requests: Sequence[Any],
    skipped: Any,
    ask: Callable[[list[Any]], Sequence[Any]],
) -> list[Any]:
    """What is answered to the requests that fit, in their places, and `skipped` in the others."""
    report_skipped(len(requests) - len(fits), len(requests), lm.max_length)
    answers = [skipped] * len(requests)
    found = ask([requests[i] for i in fits]) if fits else []
    for index, answer in zip(fits, found, strict=True):
        answers[index] = answer
    return answers
