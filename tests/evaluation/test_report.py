"""What a report says is what the runs say: splits, intervals, gaps and tables by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

import standin
from ahn.evaluation.evidence import EVICTED, SINKS, WINDOW, evidence_of, place
from ahn.evaluation.report import write_report
from ahn.evaluation.report.bootstrap import Resampled, gap_recovered
from ahn.evaluation.report.runs import Sample
from commands import call


def sample(index, value, cluster=None, stratum="", **more):
    cluster = str(index) if cluster is None else cluster
    value = value if isinstance(value, tuple) else (value, 1.0)
    return Sample(index, stratum, cluster, {"acc": value}, more, None, False)


def drawn(values, **options):
    return Resampled([sample(i, x, **options) for i, x in enumerate(values)], "acc")


def test_evidence_at_a_known_place_and_by_search():
    prompt = standin.PARAGRAPH * 3 + "# the secret word of key is value\n" + standin.PARAGRAPH
    begin = prompt.index("# the")
    known = evidence_of({"evidence": [begin, begin + 33]}, prompt, standin.tokenizer())
    searched = evidence_of({"answers": ["Secret Word"]}, prompt, standin.tokenizer())
    assert (known["kind"], searched["kind"]) == ("known position", "answer string search")
    ids = standin.tokenizer()(prompt)["input_ids"]
    assert known["tokens"] == searched["tokens"] == len(ids)
    ((first, last),) = known["spans"]
    assert (
        standin.tokenizer().decode(ids[first:last]).strip() == "# the secret word of key is value"
    )
    ((first, last),) = searched["spans"]
    assert "secret word" in standin.tokenizer().decode(ids[first:last])
    assert evidence_of({"answers": ["nowhere"]}, prompt, standin.tokenizer())["spans"] == []
    assert evidence_of({"question": "?"}, prompt, standin.tokenizer()) is None


@pytest.mark.parametrize(
    ("span", "where"),
    [
        ([0, 4], SINKS),
        ([0, 5], EVICTED),  # its end is no sink any more
        ([89, 92], EVICTED),  # the query at 99 sees 90 to 99
        ([90, 92], WINDOW),
        ([98, 100], WINDOW),
        ([50, 52], EVICTED),
    ],
)
def test_places_by_hand(span, where):
    assert placed([span]) == where


def placed(spans, needs_all=False):
    return place({"spans": spans, "needs_all": needs_all, "tokens": 100}, 10, 4)


def test_the_best_place_counts_or_the_worst():
    spans = [[50, 52], [95, 96], [0, 2]]
    assert placed(spans) == SINKS and placed(spans[:2]) == WINDOW
    assert placed(spans, needs_all=True) == EVICTED and placed(spans[1:], True) == WINDOW
    assert placed([]) == placed([], True) == "absent"


def test_an_interval_covers_the_mean_as_often_as_it_says():
    chance, hits = np.random.default_rng(0), 0
    for _ in range(200):
        found = drawn(chance.normal(3, 1, 40)).estimate()
        hits += found.low <= 3 <= found.high
    assert 180 <= hits <= 198


def test_needles_of_one_haystack_are_one_text():
    many = [sample(i, float(i // 8 % 2), cluster=str(i // 8)) for i in range(64)]
    alone = [sample(i, float(i // 8 % 2)) for i in range(64)]
    widths = []
    for samples in (many, alone):
        found = Resampled(samples, "acc").estimate()
        assert found.value == 0.5 and found.samples == 64
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1]
    lone = Resampled([sample(i, 1.0, cluster="0") for i in range(8)], "acc").estimate()
    assert (lone.low, lone.high) == (None, None)


def test_ratios_and_lengths():
    found = Resampled([sample(0, (6.0, 2.0)), sample(1, (2.0, 2.0))], "acc").estimate()
    assert found.value == 2 and found.low == 1 and found.high == 3
    steady = [sample(i, float(i % 2), stratum=str(i % 2)) for i in range(20)]
    found = Resampled(steady, "acc").estimate()
    assert found.low == found.value == found.high == 0.5  # lengths keep their share


def test_differences_are_paired_and_gaps_by_hand():
    values = np.random.default_rng(1).normal(0, 5, 30)
    window, full, run = drawn(values), drawn(values + 4), drawn(values + 1)
    difference = run.minus(window)
    assert [difference.value, difference.low, difference.high] == pytest.approx([1, 1, 1])
    gap = gap_recovered(full, window, run, lower_is_better=False)
    assert [gap.value, gap.low, gap.high] == pytest.approx([0.25] * 3)
    assert gap_recovered(full, window, run, lower_is_better=True) is None  # full is worse
    assert gap_recovered(window, window, run, lower_is_better=False) is None
    assert run.minus(drawn(values[:-1])) is None  # not the same texts


def write_run(folder, method, accuracies, ahn_config):
    path = folder / method
    (path / "samples").mkdir(parents=True)
    asked = {"model": "m", "method": method, "versions": {"ahn": "1"}, "suite": {"seed": 0}}
    (path / "run.json").write_text(json.dumps(asked))
    (path / "results.json").write_text(json.dumps({
        "tasks": {}, "ahn_config": ahn_config, "seconds": 1.0, "peak_resident_bytes": 1,
        "device": "cpu", "processes": 1,
    }))  # fmt: skip
    needles, qa = [], []
    for index, accuracy in enumerate(accuracies):
        doc = {"length": 100, "depth": index / 10, "haystack": index}
        evidence = {"kind": "known position", "spans": [[10 * index, 10 * index + 3]]}
        evidence |= {"needs_all": False, "tokens": 40}
        scores = {"acc": accuracy, "recall": 0.0, "nats": 1.0}
        needles.append({"doc_id": index, "doc": doc, "scores": scores, "evidence": evidence,
                        "skipped": False, "empty": False})  # fmt: skip
        qa.append({"doc_id": index, "doc": {}, "scores": {"score": accuracy / 10}, "evidence": None,
                   "skipped": False, "empty": False})  # fmt: skip
    qa.append(
        {"doc_id": 9, "doc": {}, "scores": {}, "evidence": None, "skipped": True, "empty": True}
    )
    for task, records in (("ahn_needle", needles), ("infinitebench_longbook_qa_en", qa)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (path / "samples" / f"{task}.jsonl").write_text(text)
    (path / "readings.jsonl").write_text(
        '{"rows": 1, "tokens": 40, "seconds": 0.5, "cache_bytes": 2048}\n'
    )


@pytest.fixture
def runs(tmp_path):
    settings = {"window": 15, "num_sinks": 3}
    write_run(tmp_path / "runs", "ahn", [1.0, 0.0, 0.0, 1.0], settings)
    write_run(tmp_path / "runs", "window", [1.0, 0.0, 0.0, 0.0], settings)
    write_run(tmp_path / "runs", "full", [1.0, 1.0, 1.0, 1.0], None)
    return tmp_path / "runs"


def test_a_report_of_runs_made_by_hand(runs, tmp_path):
    found = write_report([runs], tmp_path / "report")
    accuracy = found["benchmarks"]["ahn_needle"]["metrics"]["acc"]
    assert {name: row["value"] for name, row in accuracy.items()} == {
        "ahn": 0.5, "window": 0.25, "full": 1.0,
    }  # fmt: skip
    assert accuracy["ahn"]["minus_window"]["value"] == 0.25
    assert accuracy["ahn"]["gap_recovered"]["value"] == pytest.approx(1 / 3)
    split = found["evidence"]["ahn_needle"]["metrics"]["acc"]
    places = {where: row["value"] for where, row in split["ahn"].items()}
    assert places == {"sinks": 1.0, "evicted": 0.0, "window": 1.0}
    assert split["full"]["evicted"] == {"value": 1.0, "low": 1.0, "high": 1.0, "samples": 2}
    paper = found["paper"]["benchmarks"]["infinitebench-qa"]
    assert paper["ours"] == pytest.approx({"ahn": 5.0, "window": 2.5, "full": 10.0})
    assert paper["rows"]["ahn DeltaNet"] == [13.51, 16.48, 17.48]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| paper: full | 9.52 | 13.5 | 12.21 |" in text and "| ahn | 5.00 |" in text
    assert "1 by ahn" in text and "skipped" in text
    assert "| ahn | 80; 2 |" in text  # tokens a second, KiB
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(
        json.dumps(found)
    )
    for name in ("needles_acc", "needles_nats"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / "report" / f"{name}.svg").read_bytes()
        assert f"({name}.png)" in text


def test_the_command_and_its_errors(runs, tmp_path):
    done = call("report", runs, "--output", tmp_path / "report")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("3 runs, ahn_needle, infinitebench_longbook_qa_en\n")
    for arguments, message in [
        ((runs, "--output", tmp_path / "report"), "expected a new or empty folder"),
        ((tmp_path / "none", "--output", tmp_path / "new"), "expected runs that ahn eval has"),
        ((runs, runs, "--output", tmp_path / "new"), "expected runs of different names"),
    ]:
        failed = call("report", *arguments)
        assert failed.exit_code == 2 and message in failed.stderr, failed.stderr
        assert failed.stderr.count("\n") == 1
