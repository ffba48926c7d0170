"""LongBench's scores, worked out by hand, where lm-eval's own would differ too."""

from __future__ import annotations

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.longbench import metrics

from ahn.evaluation.runs.suite import FOLDERS, GROUPS
from ahn.evaluation.tasks.longbench import task as longbench

CLASSES = ["Location", "Location of", "新闻"]


def score(name, prediction, *answers):
    doc = {"answers": list(answers), "all_classes": CLASSES}
    return longbench.process_results(name, doc, [prediction])["score"]


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "expected"),
    [
        ("hotpotqa", "The red fox", ["a red dog"], 1 / 2),  # articles are nothing
        ("hotpotqa", "red fox", ["blue", "red", "green red"], 2 / 3),  # the best of several
        ("hotpotqa", "", ["red"], 0),
        ("hotpotqa", "red", [], 0),
        ("musique", " \n", ["red"], 0),
        ("triviaqa", "\n\nred\nblue", ["red"], 1),  # the first line that is not empty
        ("triviaqa", " \nred", ["red"], 0),  # a blank is a line
        ("narrativeqa", "red\nblue", ["red"], 2 / 3),  # all lines count elsewhere
        ("multifieldqa_zh", "北京，大学", ["北京"], 2 / 3),  # noqa: RUF001
        ("multifieldqa_zh", "", ["北京"], 0),
        ("dureader", "北京 大学", ["北京", "北京 大学"], 1),
        ("dureader", "", ["北京"], 0),
        ("vcsum", "。", ["北京"], 0),
        ("qmsum", "red fox", ["red dog"], 1 / 2),
        ("gov_report", "", ["red"], 0),
        ("samsum", "\nred fox\nother", ["red fox"], 1),
        ("trec", "Location of it", ["Location of"], 1),  # what is part of the answer is dropped
        ("trec", "Location of it", ["Location"], 1 / 2),
        ("trec", "none", ["Location"], 0),
        ("lsht", "新闻 Location\nmore", ["新闻"], 1 / 2),
        ("passage_retrieval_en", "Paragraph 3, not 12", ["Paragraph 3"], 1 / 2),
        ("passage_retrieval_zh", "段落12", ["段落12"], 1),
        ("passage_retrieval_zh", "", ["段落12"], 0),
        ("passage_count", "3 or 3 or 4", ["3"], 2 / 3),
        ("passage_count", "", ["3"], 0),
        ("lcc", "\n\n# comment\nx = 1\ny = 2", ["x = 1"], 1),
        ("lcc", "`x`\n//y", ["x = 1"], 0),  # no line is code
        ("lcc", "// a\n\nx = 1", ["x = 1"], 0),  # a blank line is one
        ("repobench-p", "x = 1", ["x = 1", "other"], 1),
        ("repobench-p", "", ["x = 1"], 0),
    ],
)
def test_scores_by_hand(name, prediction, answers, expected):
    assert score(name, prediction, *answers) == pytest.approx(expected, abs=1e-6)


def test_lm_evals_own_scores_are_others():
    """Else this module has no reason to be."""
    doc = {"answers": ["x = 1"], "all_classes": None}
    assert metrics.get_code_sim_with_score(doc, ["// a\n\nx = 1"])["score"] == 1


def test_every_data_set_is_scored_and_generates_without_a_stop():
    names = []
    for file in sorted((FOLDERS[0]).glob("[!_]*.yaml")):
        config = longbench.adjusted(load_yaml(file))
        names.append(config["task"].removeprefix("longbench_").removesuffix("_e"))
        assert config["generation_kwargs"]["until"] == []
        assert config["generation_kwargs"]["max_gen_toks"] >= 32
        assert [each["metric"] for each in config["metric_list"]] == ["score"]
    assert len(names) == 34 and set(names) == set(longbench.METRICS)
    assert {name.removeprefix("longbench_") for name in GROUPS["longbench-6"]} < set(names)
