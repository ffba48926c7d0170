"""Scores are the benchmarks' own: by hand, and by formulas that know nothing of our code."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from rouge import Rouge

from ahn.evaluation.report.runs import read_runs
from ahn.evaluation.runs.suite import FOLDERS
from ahn.evaluation.tasks.infinitebench import task as infinitebench
from ahn.evaluation.tasks.longbench import task as longbench
from ahn.evaluation.tasks.lveval import task as lveval
from ahn.evaluation.tasks.lveval.metrics import rouge_zh
from ahn.evaluation.tasks.rouge_l import common_subsequence, rouge_l
from ahn.evaluation.tasks.ruler import task as ruler

WORDS = [
    "the",
    "a",
    "red",
    "fox",
    "ran",
    "home.",
    "and",
    ".",
    "1,000",
    "a-b",
    "北京",
    "大学",
    "...",
]


def said(chance, most=25):
    return " ".join(chance.choices(WORDS, k=chance.randrange(most)))


def by_the_package(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:  # its word for a text without sentences
        return 0.0


def test_rouge_l_is_the_packages():
    for seed in range(500):
        chance = random.Random(seed)
        prediction, answer = said(chance), said(chance)
        expected = by_the_package(prediction, answer)
        assert rouge_l(prediction, answer) == pytest.approx(expected, abs=1e-12), seed


@pytest.mark.slow
def test_long_texts_have_a_rouge():
    """The package recurses once a word."""
    chinese = "".join(chr(0x4E00 + i * 37 % 2000) for i in range(1500))
    assert rouge_zh(chinese, chinese) == pytest.approx(1, abs=1e-6)
    english = " ".join(f"word{i}" for i in range(2000))
    half = " ".join(f"word{i}" for i in range(0, 2000, 2))
    with pytest.raises(RecursionError):
        by_the_package(english, half)
    precision, recall = 1 / 2, 1
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(english, half) == pytest.approx(expected, abs=1e-6)
    doc = {"answers": [half], "all_classes": None}
    for name in ("gov_report", "qmsum", "multi_news", "samsum"):
        assert longbench.process_results(name, doc, [english])["score"] == pytest.approx(2 / 3)
    doc = {"answers": [chinese], "all_classes": None}
    for name in ("dureader", "vcsum"):
        assert longbench.process_results(name, doc, [chinese])["score"] == pytest.approx(1)


def test_a_longest_common_subsequence_is_one():
    for seed in range(200):
        chance = random.Random(seed)
        left, right = (chance.choices("abcd", k=chance.randrange(9)) for _ in range(2))
        found = common_subsequence(left, right)
        subsequences = {tuple(x for i, x in enumerate(left) if mask >> i & 1)
                        for mask in range(2 ** len(left))}  # fmt: skip
        common = [s for s in subsequences if is_within(s, right)]
        assert len(found) == max(map(len, common)) and tuple(found) in common


def is_within(words, text):
    rest = iter(text)
    return all(word in rest for word in words)


RULER = {path.stem: path for path in FOLDERS[2].glob("*.yaml") if path.stem != "ruler"}


@cache
def of_ruler(name):
    """A task's settings; the first of them imports a module that sorts words for twenty seconds."""
    return ruler.adjusted(load_yaml(RULER[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RULER))
@pytest.mark.parametrize(
    ("prediction", "outputs", "share", "any_of"),
    [
        ("It was in Paris.", ["paris", "city of light"], 1 / 2, 1),
        ("paris, the City of Light", ["paris", "city of light"], 1, 1),
        ("London", ["paris", "city of light"], 0, 0),
        ("", ["paris"], 0, 0),
        ("one\x07two", ["one\ntwo"], 1, 1),  # what cannot be printed is a line end
        ("a b", ["a", "b", "c", "d"], 1 / 2, 1),
    ],
)
def test_rulers_scores(name, prediction, outputs, share, any_of):
    """Questions ask for any of their answers, all else for all of its outputs."""
    process = of_ruler(name)["process_results"]
    doc = {"max_length": 4096, "outputs": outputs}
    found = process(doc, [prediction])
    assert found["4096"] == pytest.approx(any_of if name.startswith("qa_") else share)
    assert process({**doc, "max_length": 900}, [prediction])["900"] == found["4096"]


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The red fox", ["a red dog"], 1 / 2),
        ("a-b", ["ab"], 1),  # punctuation goes first, so that no article is left
        ("an.", ["an", "x"], 0),  # an article is nothing
        ("red\nfox", ["red fox"], 1),  # all lines count
        ("red", ["blue", "red green"], 2 / 3),
        ("", ["red"], 0),
        ("red", [], 0),
    ],
)
def test_infinitebenchs_answers(prediction, answers, expected):
    score = infinitebench.process_results({"answer": answers}, [prediction])["score"]
    assert score == pytest.approx(expected)


def test_infinitebench_is_asked_without_a_stop():
    (path,) = FOLDERS[1].glob("infinitebench_longbook_qa_en.yaml")
    config = infinitebench.adjusted(load_yaml(path))
    assert config["generation_kwargs"] == {"do_sample": False, "temperature": 0.0,
                                           "max_gen_toks": 40, "until": []}  # fmt: skip
    assert config["process_results"] is infinitebench.process_results


def test_lines_of_data_end_at_line_feeds_alone(tmp_path):
    """U+2028 within a document is text; the file may begin with a byte order mark."""
    document = {"input": "q", "context": "a\u2028b\x85c", "answers": ["x"]}
    line = json.dumps(document, ensure_ascii=False)
    (tmp_path / "cmrc_mixup_16k.jsonl").write_text(f"\ufeff{line}\n\n{line}", encoding="utf-8")
    found = lveval.dataset("cmrc_mixup", "zh", "f1_zh", lengths=[16384], data=str(tmp_path))
    assert [row["prompt"].count("a\u2028b\x85c") for row in found["test"]] == [1, 1]


def test_samples_of_a_run_are_read_line_by_line(tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "results.json").write_text('{"ahn_config": null}')
    sample = {"doc_id": 0, "doc": {"context": "a\u2028b"}, "scores": {"score": 1.0},
              "evidence": None, "skipped": False, "empty": False}  # fmt: skip
    text = json.dumps(sample, ensure_ascii=False) + "\n"
    (folder / "samples" / "t.jsonl").write_text(text * 2, encoding="utf-8")
    (run,) = read_runs([tmp_path])
    assert [s.doc["context"] for s in run.samples["t"]] == ["a\u2028b"] * 2
