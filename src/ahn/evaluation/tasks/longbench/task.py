"""LongBench (arXiv 2308.14508) as lm-eval has it, scored as the benchmark scores.

lm-eval's wrappers differ from the benchmark on the same predictions: they strip a prediction before
it is scored, they pass over blank lines where code is asked for, and for few-shot tasks generation
stops at the first line end, even where an answer begins with one. Here the score of a prediction
is the benchmark's: of the prediction as it is, for few-shot tasks of its first line, leading line
ends apart; the best over all answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import datasets
import jieba

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it works without python-Levenshtein, slowly
    from fuzzywuzzy import fuzz
from lm_eval.tasks.longbench import metrics

from ahn.evaluation.tasks.rouge_l import rouge_l

jieba.setLogLevel("ERROR")
CLASSIFIED = ("trec", "lsht")
FEW_SHOT = (*CLASSIFIED, "triviaqa", "samsum")
COMMENTS = ("`", "#", "//")  # what tells that a line is no code


def code_similarity(prediction: str, answer: str, **_: Any) -> float:
    """Of the first line without comment signs, a blank one too, leading line ends apart."""
    lines = prediction.lstrip("\n").split("\n")
    code = (line for line in lines if not any(sign in line for sign in COMMENTS))
    return fuzz.ratio(next(code, ""), answer) / 100


def rouge_zh(prediction: str, answer: str, **_: Any) -> float:
    """ROUGE-L of Chinese words."""
    return rouge_l(*(" ".join(jieba.cut(text)) for text in (prediction, answer)))


def rouge_en(prediction: str, answer: str, **_: Any) -> float:
    """ROUGE-L of words between blanks."""
    return rouge_l(prediction, answer)


Metric = Callable[..., float]
METRICS: dict[str, Metric] = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa"), metrics.qa_f1_score),
    **dict.fromkeys(("2wikimqa", "musique", "triviaqa"), metrics.qa_f1_score),
    "multifieldqa_zh": metrics.qa_f1_zh_score,
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_en),
    **dict.fromkeys(("dureader", "vcsum"), rouge_zh),
    **dict.fromkeys(CLASSIFIED, metrics.classification_score),
    "passage_retrieval_en": metrics.retrieval_score,
    "passage_retrieval_zh": metrics.retrieval_zh_score,
    "passage_count": metrics.count_score,
    **dict.fromkeys(("lcc", "repobench-p"), code_similarity),
}


def process_results(name: str, doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The score of one prediction for the data set `name`, between 0 and 1."""
    prediction = results[0]
    if name in FEW_SHOT:
        prediction = prediction.lstrip("\n").split("\n")[0]
    classes = doc.get("all_classes")
    scores = (METRICS[name](prediction, answer, all_classes=classes) for answer in doc["answers"])
    return {"score": float(max(scores, default=0.0))}


def checked(
    name: str, process: Callable[[datasets.Dataset], datasets.Dataset] | None, documents: Any
) -> datasets.Dataset:
    """The documents, after `process`.

    Raises ValueError where one has no answers, or no classes to choose from.
    """
    documents = process(documents) if process else documents
    wanted = ("answers", "all_classes") if name in CLASSIFIED else ("answers",)
    for column in wanted:
        values = documents[column] if column in documents.column_names else [None]
        for number, value in enumerate(values, start=1):
            if not value or not isinstance(value, list):
                raise ValueError(
                    f"sample {number}: expected {column} as a non-empty list, got {value!r}"
                )
    return documents


def adjusted(config: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's configuration of a data set of LongBench, or of LongBench-E, scored so."""
    name = config["task"].removeprefix("longbench_").removesuffix("_e")
    score = {"metric": "score", "aggregation": "mean", "higher_is_better": True}
    return {
        **config,
        "process_docs": partial(checked, name, config.get("process_docs")),
        "process_results": partial(process_results, name),
        "metric_list": [score],
        "generation_kwargs": {**config["generation_kwargs"], "until": []},
    }
