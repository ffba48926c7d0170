"""CONTRIBUTING.md, "Add an evaluation task": its two files, through lm-eval and `ahn`."""

from __future__ import annotations

import copy
import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import ahn
import standin
from ahn.evaluation.lm import AHNLM
from ahn.evaluation.runs import suite
from commands import call, error

YAML = """\
task: ahn_first_word
custom_dataset: !function task.dataset
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
TASK = r'''"""The first word of a list, asked for at its end."""

import random

import datasets

WORDS = ("apple", "bread", "chair", "dance", "eagle", "flame", "grape", "house")


def dataset(seed=0, samples=8, length=200, **options):
    """Questions with the same list of words and another first word.

    Args:
        seed: the same seed gives the same questions.
        length: of the list, in words.
        options: what else lm-eval passes, such as the version.
    """
    chance = random.Random(seed)
    questions = []
    for _ in range(samples):
        first = chance.choice(WORDS)
        words = [first, *chance.choices(WORDS, k=length)]
        questions.append(
            {
                "context": f"The words are: {' '.join(words)}.\nThe first word is:",
                "choices": [f" {word}" for word in WORDS],
                "gold": WORDS.index(first),
                "evidence": [15, 15 + len(first)],  # start and end in the context, end exclusive
            }
        )
    return {"test": datasets.Dataset.from_list(questions)}
'''


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks that has this one."""
    folder = tmp_path / "tasks" / "first_word"
    folder.mkdir(parents=True)
    (folder / "first_word.yaml").write_text(YAML)
    (folder / "task.py").write_text(TASK)
    return folder.parent


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    standin.save_base(folder)
    ahn.save_pretrained(standin.load("GatedDeltaNet")[0], folder / "memory")
    return folder


@pytest.mark.slow
def test_lm_eval_runs_it_with_the_model(tasks):
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"length": 60})
    model = AHNLM(standin.load("GatedDeltaNet")[0], tokenizer=copy.deepcopy(standin.tokenizer()))
    found = simple_evaluate(model, tasks=["ahn_first_word"], task_manager=manager)
    samples = found["samples"]["ahn_first_word"]
    assert len(samples) == 8
    for sample in samples:
        doc, scores = sample["doc"], [float(answer[0][0]) for answer in sample["resps"]]
        begin, end = doc["evidence"]
        assert doc["choices"][doc["gold"]] == f" {doc['context'][begin:end]}"
        assert sample["acc"] == (max(range(8), key=scores.__getitem__) == doc["gold"])
    mean = sum(sample["acc"] for sample in samples) / 8
    assert found["results"]["ahn_first_word"]["acc,none"] == mean


@pytest.mark.slow
def test_ahn_eval_and_ahn_report_know_it_by_its_folder(tasks, base, tmp_path, monkeypatch):
    asked = ("--model", base, "--memory", base / "memory", "--samples", 3, "--device", "cpu")
    assert "got 'ahn_first_word'" in error("eval", "ahn_first_word", *asked, "--output", "nothing")
    monkeypatch.setattr(suite, "TASKS", tasks)
    result = call("eval", "ahn_first_word", *asked, "--output", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "runs").glob("*/results.json"):
        summary = json.loads(path.read_text())["tasks"]["ahn_first_word"]
        assert summary["samples"] == 3 and 0 <= summary["metrics"]["acc"] <= 1
    assert call("report", tmp_path / "runs", "--output", tmp_path / "report").exit_code == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "ahn_first_word" in report and "by where the evidence stood" in report
