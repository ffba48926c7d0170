"""InfiniteBench (arXiv 2402.13718) as lm-eval has it, En.QA scored as the benchmark scores.

lm-eval drops articles before punctuation, the benchmark after it (`a-b` is the word `ab`), and
lm-eval ends an answer at its first line end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.tasks.longbench.metrics import qa_f1_score

QA = "infinitebench_longbook_qa_en"


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The best F1 over all answers, between 0 and 1."""
    scores = (qa_f1_score(results[0], answer) for answer in doc["answer"])
    return {"score": float(max(scores, default=0.0))}


def adjusted(config: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's configuration of En.QA, scored so."""
    return {
        **config,
        "process_results": process_results,
        "generation_kwargs": {**config["generation_kwargs"], "until": []},
    }
