"""lm-eval's own command line knows the model `ahn`, and no other program pays for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ahn
import standin

SOURCE = Path(ahn.__file__).parents[1]
LINE = SOURCE / "_ahn_lm_eval.pth"  # as a wheel puts it beside the packages
SITE = "import site\nsite.addsitedir({folder!r})\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, a memory, a task, and a folder of packages with the line that a wheel has."""
    path = tmp_path_factory.mktemp("place")
    standin.save_base(path / "base")
    ahn.save_pretrained(standin.load("DeltaNet")[0], path / "memory")
    (path / "site").mkdir()
    (path / "site" / LINE.name).write_text(LINE.read_text())
    (path / "sitecustomize.py").write_text(SITE.format(folder=str(path / "site")))
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
    path = os.pathsep.join((str(place), str(SOURCE)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment}
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


def test_lm_eval_and_accelerate_launch_know_the_model(place, tmp_path):
    script = tmp_path / "lm_eval"  # as pip writes it
    script.write_text(
        "import sys\nfrom lm_eval.__main__ import cli_evaluate\nsys.exit(cli_evaluate())"
    )
    alone = python(place, script, *options(place, tmp_path / "alone", "compressive-max"))
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
    module = ["-m", "lm_eval", *options(place, tmp_path / "two", "compressive-max")]
    two = python(place, *launch, *module, ACCELERATE_USE_CPU="true")
    assert two.returncode == 0, two.stderr
    expected, found = samples(tmp_path / "alone"), samples(tmp_path / "two")
    assert found.keys() == expected.keys() == set(range(5))
    for index, answers in expected.items():
        for answer, other in zip(answers, found[index]):
            assert float(answer[0]) == pytest.approx(float(other[0]), rel=1e-5)


def test_wrong_arguments_are_those_of_the_model(place, tmp_path):
    failed = python(place, "-m", "lm_eval", *options(place, tmp_path, "half"))
    assert failed.returncode and "method: expected one of ahn, full" in failed.stderr


def test_nothing_is_imported_before_it_is_asked_for(place):
    show = "import sys; print('_ahn_lm_eval' in sys.modules, 'ahn' in sys.modules)"
    assert python(place, "-c", show).stdout.split() == ["False", "False"]
    known = "from lm_eval.models import MODEL_MAPPING; print('ahn' in sys.modules)"
    (place / "my_lm_eval").write_text(f"{show}; {known}")
    assert python(place, "my_lm_eval").stdout.split() == ["True", "False", "False"]
    without = python(place, "-m", "lm_eval", "--help")
    assert without.returncode == 0 and "Traceback" not in without.stderr


def test_the_wheel_puts_the_line_where_python_looks():
    project = (SOURCE.parent / "pyproject.toml").read_text()
    for name in (LINE.name, f"{LINE.stem}.py"):
        assert f'"src/{name}" = "{name}"' in project and (SOURCE / name).is_file()
    assert LINE.read_text().startswith("import ") and LINE.read_text().count("\n") == 1
