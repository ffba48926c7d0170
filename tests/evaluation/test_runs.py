"""A grid of runs: kill it and start again, split it over processes, the scores are the same."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

import ahn
import standin
from ahn.evaluation.runs import Grid, Suite, evaluate_grid
from children import started
from commands import call

KILLS = int(os.environ.get("AHN_KILLS", "3"))  # interruptions of the law below
TEXT = "\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(400))
NO_DEVICE = "cuda:99" if torch.cuda.is_available() else "cuda"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two memories and a text."""
    path = tmp_path_factory.mktemp("model")
    standin.save_base(path)
    for cell in ("GatedDeltaNet", "DeltaNet"):
        ahn.save_pretrained(standin.load(cell)[0], path / cell)
    (path / "text.py").write_text(TEXT)
    return path


def grid(folder, methods=("ahn", "window", "full"), memories=("GatedDeltaNet",), **options):
    options = {"batch_size": 1, "device": "cpu", **options}
    paths = tuple(str(folder / memory) for memory in memories)
    return Grid(str(folder), paths, tuple(methods), None, None, options)


def suite(folder, *names, **options):
    options = {"lengths": (400, 600), "depths": (0, 0.5, 1), "samples": 2, **options}
    return Suite(names or ("needle", "ppl"), texts=(str(folder / "text.py"),), **options)


def results(output):
    """Scores of all runs, and every sample's answers."""
    scores = {
        p.parent.name: json.loads(p.read_text())["tasks"] for p in output.glob("*/results.json")
    }
    samples = {}
    for path in sorted(output.glob("*/samples/*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            samples[path.parts[-3], path.stem, record["doc_id"]] = record["filtered_resps"]
    return scores, samples


def assert_same(found, expected):
    assert found[1].keys() == expected[1].keys()
    for (run, tasks), (other, others) in zip(sorted(found[0].items()), sorted(expected[0].items())):
        assert run == other
        for task, summary in tasks.items():
            counts = {k: v for k, v in summary.items() if k != "metrics"}
            assert counts == {k: v for k, v in others[task].items() if k != "metrics"}
            assert summary["metrics"] == pytest.approx(others[task]["metrics"], rel=1e-5)
    for key, answers in found[1].items():
        for answer, other in zip(answers, expected[1][key]):
            assert answer == pytest.approx(other, rel=1e-5) if answer != other else True


def evaluated(environment, *arguments):
    os.environ.update(environment)
    evaluate_grid(*arguments)


def in_child(*arguments, environment=()):
    """`evaluate_grid` in a process of its own, that can be killed."""
    return started(evaluated, dict(environment), *arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_at_random_moments_and_started_again_the_scores_are_the_same(folder, tmp_path):
    what = grid(folder, ("ahn", "window", "full", "compressive-max")), suite(folder)
    for name in ("first", "whole"):  # the first one waits for imports too
        began = time.perf_counter()
        reference = in_child(*what, tmp_path / name)
        reference.join()
        assert reference.exitcode == 0
    seconds = time.perf_counter() - began
    expected, chance, kills, number = results(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < KILLS:
        number += 1
        output, child = tmp_path / str(number), None
        while child is None or child.exitcode:
            child = in_child(*what, output)
            child.join(chance.uniform(0, seconds) if kills < KILLS else None)
            if child.is_alive():
                child.kill()
                child.join()
                kills += 1
        assert_same(results(output), expected)
        for run in expected[0]:
            assert (output / run / "run.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_are_one(folder, tmp_path):
    names = ("needle", "ppl", "niah_single_1")  # scored, streamed, generated
    asked = suite(folder, *names, lengths=(600, 900), samples=3)
    what = grid(folder, methods=("ahn", "full", "compressive-avg")), asked
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731",
              "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    children = [in_child(*what, tmp_path / "one")] + [
        in_child(
            *what,
            tmp_path / "two",
            environment={**common, "RANK": rank, "LOCAL_RANK": rank}.items(),
        )
        for rank in "01"
    ]
    for child in children:
        child.join()
        assert child.exitcode == 0
    done = json.loads((tmp_path / "two" / "full" / "results.json").read_text())
    assert done["processes"] == 2
    for rank in (0, 1):
        assert (tmp_path / "two" / "full" / f"responses_rank{rank}.db").is_file()
    found = results(tmp_path / "two")
    assert_same(found, results(tmp_path / "one"))
    assert all(
        set(tasks) == {"ahn_needle", "ahn_ppl", "niah_single_1"} for tasks in found[0].values()
    )


def test_what_needs_no_memory_runs_once(folder):
    runs = list(grid(folder, ("ahn", "full", "ahn-shuffled"), ("GatedDeltaNet", "DeltaNet")).runs())
    assert [name for name, _, _ in runs] == [
        "ahn-GatedDeltaNet", "full", "ahn-shuffled-GatedDeltaNet", "ahn-DeltaNet",
        "ahn-shuffled-DeltaNet",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_too_long_samples_are_counted_and_left_out(folder, tmp_path):
    (run,) = evaluate_grid(grid(folder, ["ahn"], max_length=500), suite(folder, "needle"), tmp_path)
    found = json.loads((run.path / "results.json").read_text())["tasks"]["ahn_needle"]
    lines = (run.path / "samples" / "ahn_needle.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    kept = [r for r in records if not r["skipped"]]
    assert 0 < len(kept) < len(records) == found["samples"]
    assert found["skipped"] == len(records) - len(kept)
    assert found["metrics"]["acc"] == pytest.approx(
        sum(r["scores"]["acc"] for r in kept) / len(kept)
    )
    assert all(r["evidence"]["tokens"] <= 500 for r in kept)
    assert "skipped as too long" in next(run.scores())


def command(folder, output, *arguments):
    base = ["eval", "needle", "--model", folder, "--memory", folder / "GatedDeltaNet", "--text",
            folder / "text.py", "--lengths", 400, "--depths", "0,0.5,1", "--samples", 1,
            "--device", "cpu", "--output", output]  # fmt: skip
    return call(*base, *arguments)


@pytest.mark.filterwarnings("ignore")
def test_the_command_goes_on_and_refuses_another_question(folder, tmp_path):
    first = command(folder, tmp_path, "--methods", "ahn")
    assert first.exit_code == 0, first.stderr
    assert "run 1 of 1: ahn-GatedDeltaNet\n" in first.stdout and "acc " in first.stdout
    again = command(folder, tmp_path, "--methods", "ahn,full")
    assert "run 1 of 2: ahn-GatedDeltaNet is done\nrun 2 of 2: full\n" in again.stdout
    other = command(folder, tmp_path, "--methods", "ahn", "--seed", 1)
    assert other.exit_code == 2 and other.stderr.count("\n") == 1
    assert "expected a run with suite" in other.stderr and "give another --output" in other.stderr
    written = json.loads((tmp_path / "ahn-GatedDeltaNet" / "run.json").read_text())
    assert set(written["versions"]) >= {"ahn", "torch", "transformers", "lm-eval"}
    assert len(written["memory_sha256"]) == 64
    readings = (tmp_path / "full" / "readings.jsonl").read_text().splitlines()
    assert readings and all(json.loads(each)["cache_bytes"] > 0 for each in readings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "half"], "method: expected one of ahn, full, window"),
        (["--device", NO_DEVICE], "device: expected one that PyTorch can use, got"),
        (["--max-length", "0"], "--max-length: expected an integer >= 1, got '0'"),
        (["--lengths", "x"], "--lengths: expected numbers >= 2 with commas, got 'x'"),
        (["--data", "nowhere"], "data: expected a task that reads a data set"),
        (["ahn_nothing"], "task: expected one of needle, recall, recall-chat, ppl"),
        (["--text", "nowhere.txt"], "nowhere.txt: expected a text"),
        (["--memory", "nowhere"], "nowhere"),
    ],
)
def test_wrong_commands_end_in_one_line(folder, tmp_path, arguments, message):
    found = command(folder, tmp_path / "out", *arguments)
    assert found.exit_code == 2, found.exception
    assert message in found.stderr and found.stderr.count("\n") == 1, found.stderr


def test_a_model_without_a_memory_is_refused(folder, tmp_path):
    arguments = ["eval", "ppl", "--model", folder, "--output", tmp_path / "out", "--lengths", 400,
                 "--samples", 1, "--text", folder / "text.py", "--device", "cpu"]  # fmt: skip
    found = call(*arguments)
    assert found.exit_code == 2
    assert "memory: expected one for method ahn, got a model without" in found.stderr
    assert not Path(tmp_path / "out").exists()
