"""LV-Eval: scores worked out by hand, and data in the benchmark's own format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from ahn.evaluation.tasks.lveval import task as lveval
from ahn.evaluation.tasks.lveval.metrics import METRICS
from ahn.evaluation.tasks.lveval.task import process_results

DOCUMENT = {
    "input": "Who wrote it?",
    "context": "Ann wrote it. {input} is not a place to fill.",
    "answers": ["Ann Lee", "nobody"],
    "length": 9,
    "dataset": "hotpotwikiqa_mixup",
    "language": "en",
    "answer_keywords": "Ann",
}


@pytest.mark.parametrize(
    ("metric", "prediction", "answer", "keywords", "score"),
    [
        ("f1_en", "The red fox", "a red dog", None, 0.5),  # articles are nothing: 1 of 2 and 2
        ("f1_en", "", "red", None, 0),
        ("f1_en", "red", "", None, 0),
        ("keyword_f1_en", "Ann!", "ann lee", "Ann", 2 / 3),
        ("keyword_f1_en", "Lee", "ann lee", "Ann", 0),  # the keyword is not recalled
        ("keyword_f1_en", "Lee", "ann lee", None, 2 / 3),
        ("keyword_f1_en", "Lee", "ann lee", "", 2 / 3),
        # one of five keywords is 20 %; a blacklisted one counts for the length alone
        ("keyword_f1_en", "one", "one", "one two three four five", 1),
        ("keyword_f1_en", "one", "one", "one two three four five six", 0),
        ("keyword_f1_en", "is one", "one", "is", 0),
        ("keyword_f1_en", "", "ann lee", "Ann", 0),
        ("f1_zh", "北京，", "北京", None, 1),  # noqa: RUF001
        ("f1_zh", "", "北京", None, 0),
        ("keyword_f1_zh", "北京", "上海", None, 0),
        ("keyword_f1_zh", "北京", "北京", "上海", 0),
        ("keyword_f1_zh", "北京", "北京", None, 1),
        ("keyword_f1_zh", "的", "的", None, 0),  # blacklisted
        ("rouge_zh", "北京", "北京", None, 1),
        ("rouge_zh", "", "北京", None, 0),
        ("rouge_zh", "的", "北京", None, 0),
        ("rouge_zh", "北京 大学", "北京 上海", None, 0.5),
        ("rouge_zh", "北京 的", "北京", None, 1),  # what is blacklisted costs nothing
    ],
)
def test_scores_by_hand(metric, prediction, answer, keywords, score):
    assert METRICS[metric](prediction, answer, keywords) == pytest.approx(score, abs=1e-6)


def test_only_the_first_answer_counts():
    doc = {"answers": ["Ann Lee", "Bob"], "answer_keywords": "", "level": "16k"}
    doc["scored_by"] = "keyword_f1_en"
    assert process_results(doc, ["Bob"]) == {"score": 0, "16k": 0}
    assert process_results(doc, ["Ann Lee"]) == {"score": 100, "16k": 100}


def write(folder, *documents, name="hotpotwikiqa_mixup_16k"):
    lines = (json.dumps(document) + "\n" for document in documents)
    (folder / f"{name}.jsonl").write_text("".join(lines))


def load(folder, **options):
    options = {"name": "hotpotwikiqa_mixup", "language": "en", "lengths": [16384], **options}
    return list(lveval.dataset(scored_by="keyword_f1_en", data=str(folder), **options)["test"])


def test_prompts_are_our_own_unless_the_benchmarks_are_given(tmp_path):
    write(tmp_path, DOCUMENT)
    (own,) = load(tmp_path)
    assert own["wording"] == "own" and own["answers"] == ["Ann Lee", "nobody"]
    assert DOCUMENT["context"] in own["prompt"]
    assert own["prompt"].endswith("Question: Who wrote it?\nAnswer:")
    config = "import os\nDATASET_PROMPT = {'hotpotwikiqa_mixup': 'T {context} Q {input}'}\n"
    (tmp_path / "config.py").write_text(config)
    (theirs,) = load(tmp_path)
    assert theirs["wording"] == "the benchmark's"
    assert theirs["prompt"].startswith("T Ann wrote it.")
    assert theirs["prompt"].endswith("Q Who wrote it?")


def test_every_data_set_has_a_known_metric_and_language():
    files = sorted(Path(lveval.__file__).parent.glob("*.yaml"))
    assert len(files) == 11
    for file in files:
        options = load_yaml(file)["dataset_kwargs"]
        assert options["scored_by"] in METRICS and options["language"] in lveval.LANGUAGES


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (None, {}, "expected a file of LV-Eval, got none"),
        ([], {}, "expected samples, got none"),
        ([{**DOCUMENT, "answers": []}], {}, "line 1: expected answers as a non-empty list"),
        ([DOCUMENT, {"question": "?"}], {}, "line 2: expected input as a non-empty str"),
        ([DOCUMENT], {"lengths": [1000]}, "lengths: expected some of 16384, 32768"),
    ],
)
def test_other_formats_are_refused(tmp_path, documents, options, message):
    if documents is not None:
        write(tmp_path, *documents)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)
