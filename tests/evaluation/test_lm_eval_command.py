"""`python -m ahn.evaluation` is lm-eval's command line, with the model `ahn` and our tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import ahn
import standin
from ahn.evaluation import lm_eval_command
from ahn.evaluation.tasks import TASKS

SOURCE = Path(ahn.__file__).parents[1]
PROGRAM = ("-m", "ahn.evaluation")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, a memory and a folder with the task `toy`."""
    path = tmp_path_factory.mktemp("place")
    standin.save_base(path / "base")
    ahn.save_pretrained(standin.load("DeltaNet")[0], path / "memory")
    documents = [{"q": f"def f{i}(x):\n    return" * 9} for i in range(5)]
    (path / "toy.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    (path / "tasks").mkdir()
    (path / "tasks" / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {path / 'toy.jsonl'}}}}}\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: [x, "return y"]\ndoc_to_target: 0\n'
        "metric_list: [{metric: acc}]\n"
    )
    return path


def python(place, *arguments, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place)


def options(place, output, method="ahn"):
    model = f"pretrained={place / 'base'},memory={place / 'memory'},method={method}"
    places = ["--include_path", place / "tasks", "--output_path", output, "--log_samples"]
    return ["--model", "ahn", "--model_args", model, "--tasks", "toy", "--device", "cpu", *places]


def samples(output):
    """Log-likelihoods of every sample."""
    (file,) = Path(output).rglob("samples_toy_*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return {each["doc_id"]: each["filtered_resps"] for each in records}


@pytest.mark.slow
def test_alone_and_under_accelerate_launch_the_answers_are_the_same(place, tmp_path):
    alone = python(place, *PROGRAM, *options(place, tmp_path / "alone", "compressive-max"))
    assert alone.returncode == 0, alone.stderr
    assert "|toy  |" in alone.stdout
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29741"]
    module = [*PROGRAM, "run", *options(place, tmp_path / "two", "compressive-max")]
    two = python(place, *launch, *module, ACCELERATE_USE_CPU="true")
    assert two.returncode == 0, two.stderr
    expected, got = samples(tmp_path / "alone"), samples(tmp_path / "two")
    assert got.keys() == expected.keys() == set(range(5))
    for index, answers in expected.items():
        for answer, other in zip(answers, got[index]):
            assert float(answer[0]) == pytest.approx(float(other[0]), rel=1e-5)


@pytest.mark.slow
def test_wrong_arguments_are_those_of_the_model(place, tmp_path):
    failed = python(place, *PROGRAM, *options(place, tmp_path, "half"))
    assert failed.returncode and "method: expected one of ahn, full" in failed.stderr


def called(monkeypatch, capsys, *words):
    """What the command line prints in this process; lm-eval's exit code where it exits."""
    monkeypatch.setattr("sys.argv", ["lm_eval", *map(str, words)])
    try:
        code = lm_eval_command.main()
    except SystemExit as error:
        code = error.code
    return capsys.readouterr().out, code


def original(monkeypatch, capsys, *words):
    """The same of lm-eval's own command line."""
    from lm_eval.__main__ import cli_evaluate

    monkeypatch.setattr("sys.argv", ["lm_eval", *map(str, words)])
    try:
        code = cli_evaluate()
    except SystemExit as error:
        code = error.code
    return capsys.readouterr().out, code


@pytest.mark.parametrize(
    "words",
    [(), ("--help",), ("run",), ("run", "--help"), ("ls", "--help")],
    ids=str,
)
def test_without_tasks_it_says_what_lm_eval_says(monkeypatch, capsys, words):
    shown = called(monkeypatch, capsys, *words)
    assert shown == original(monkeypatch, capsys, *words)
    assert "usage: lm-eval" in shown[0]


@pytest.mark.slow
def test_every_command_knows_our_tasks_and_those_of_the_user(place, monkeypatch, capsys):
    listed, _ = called(monkeypatch, capsys, "ls", "subtasks", f"--include_path={place / 'tasks'}")
    assert all(f"|{name} " in listed for name in ("ahn_needle", "ahn_ppl", "toy", "arc_easy"))
    missing, code = called(monkeypatch, capsys, "validate", "--tasks", "ahn_needle,toy")
    assert code == 1 and "Tasks not found: toy\n" in missing


def test_folders_of_a_config_file_stay(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"include_path: {tmp_path}\ntasks: [toy]\n")
    folders = lm_eval_command._task_folders
    assert folders(Namespace(include_path=None, config=str(file))) == [str(TASKS), str(tmp_path)]
    assert folders(Namespace(include_path="here", config=str(file))) == [str(TASKS), "here"]
    assert folders(Namespace(include_path=None)) == [str(TASKS)]


@pytest.mark.slow
def test_importing_the_package_registers_the_model():
    code = "import ahn.evaluation.lm\nfrom lm_eval.api.registry import get_model\n"
    code += "print(get_model('ahn').__name__)"
    assert python(None, "-c", code).stdout.splitlines()[-1] == "AHNLM"


def test_python_starts_without_this_package(place):
    show = "import sys; print(any('ahn' in name for name in sys.modules))"
    assert python(place, "-c", show).stdout.split() == ["False"]
    assert not list(SOURCE.glob("*.pth"))
    assert "force-include" not in (SOURCE.parent / "pyproject.toml").read_text()
