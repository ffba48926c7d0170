"""Where the evidence of an answer stood when it was asked for: in the sinks, the window, evicted.

Each layer attends only to sinks and window, but hidden states within the window can depend on
tokens outside of it. So "evicted" means that the query attends to no token of the evidence; how
much still arrives through hidden states is what the memory-off control measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

SINKS, WINDOW, EVICTED, ABSENT = "sinks", "window", "evicted", "absent"
KNOWN, SEARCHED = "known position", "answer string search"
ALL_NEEDED = "outputs"  # RULER's answers: each is asked for
ANSWER_FIELDS = (ALL_NEEDED, "answers", "answer", "answer_keywords")


def evidence_of(
    doc: Mapping[str, Any], prompt: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """Tokens of a prompt that hold the evidence, or None where a document has no answer.

    Args:
        doc: with `evidence`, characters of the prompt; or with answers that are searched for
            (RULER's are unique strings).
        prompt: what the model was given.

    Returns:
        `kind`; `spans`, first and last + 1 token of each place; `needs_all`, whether an answer
        needs all of them; `tokens` of the prompt.
    """
    needs_all = ALL_NEEDED in doc
    if doc.get("evidence") is not None:
        kind, places = KNOWN, [tuple(doc["evidence"])]
    else:
        answers = _answers(doc)
        if not answers:
            return None
        kind, places = SEARCHED, [place for answer in answers for place in _find(answer, prompt)]
    offsets = _offsets(prompt, tokenizer)
    spans = [_tokens(offsets, *place) for place in places]
    return {"kind": kind, "spans": spans, "needs_all": needs_all, "tokens": len(offsets)}


def place(evidence: Mapping[str, Any], window: int, num_sinks: int) -> str:
    """Where the evidence stood for the query that predicts the answer's first token.

    Evidence counts as seen where all of its tokens are. Of several places the best one counts
    (sinks, then window), or the worst one where all are needed.
    """
    first_seen = evidence["tokens"] - window
    order = (SINKS, WINDOW, EVICTED)
    ranks = [
        order.index(SINKS if last <= num_sinks else WINDOW if first >= first_seen else EVICTED)
        for first, last in evidence["spans"]
    ]
    if not ranks:
        return ABSENT
    return order[max(ranks) if evidence["needs_all"] else min(ranks)]


def _answers(doc: Mapping[str, Any]) -> list[str]:
    for name in ANSWER_FIELDS:
        value = doc.get(name)
        listed = [value] if isinstance(value, str) else value
        answers = listed if isinstance(listed, Sequence) else []
        answers = [x for x in answers if isinstance(x, str) and x.strip()]
        if answers:
            return answers
    return []


def _find(answer: str, prompt: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(re.escape(answer.strip()), prompt, re.IGNORECASE)]


def _offsets(prompt: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[tuple[int, int]]:
    begun = bool(tokenizer.bos_token) and prompt.startswith(str(tokenizer.bos_token))
    encoding = tokenizer(
        prompt, add_special_tokens=not begun, return_offsets_mapping=True, verbose=False
    )
    return encoding["offset_mapping"]


def _tokens(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> list[int]:
    """First and last + 1 token that share a character with `[begin, end)`."""
    touched = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
    return [touched[0], touched[-1] + 1]
