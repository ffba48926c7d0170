"""The command line starts at once; `import ahn` brings every name and every model type."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import ahn
import ahn.checkpoint
import standin
from ahn.startup import started_as_program

SOURCE = Path(ahn.__file__).parents[1]
HEAVY = ("torch", "transformers", "huggingface_hub", "lm_eval", "matplotlib", "datasets")
SECONDS = 2.0  # of the processor; about 0.3 are needed, and 5 with transformers
SAY = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules]))
"""
SCRIPT = "import sys\nfrom ahn.cli import main\nsys.exit(main())\n"  # as pip writes it


def python(*arguments, folder=None):
    """Run Python; its output and the processor's seconds in user mode."""
    path = os.pathsep.join(map(str, (folder, SOURCE) if folder else (SOURCE,)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A merged model, and a `sitecustomize` that has every process say what it imported."""
    path = tmp_path_factory.mktemp("place")
    standin.load("DeltaNet")[0].save_pretrained(path / "merged")
    (path / "sitecustomize.py").write_text(SAY)
    (path / "ahn").write_text(SCRIPT)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("started", ["module", "script"])
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--help",), "inspect"),
        (("--version",), ahn.__version__),
        (("inspect", "{merged}"), "DeltaNet"),
        (("inspect", "{merged}", "--verify"), "DeltaNet"),
        (("generate", "--help"), "--prefill-chunk-size"),
        (("bench", "decode", "--help"), "--new-tokens"),
    ],
    ids=str,
)
def test_what_needs_no_model_imports_nothing_large(place, words, shown, started):
    words = [word.format(merged=place / "merged") for word in words]
    program = ["-m", "ahn"] if started == "module" else [place / "ahn"]
    out, seconds = python(*program, *words, folder=place)
    assert shown in out and out.splitlines()[-1] == "[]"
    assert seconds < SECONDS


LOAD = """
model = transformers.AutoModelForCausalLM.from_pretrained({path!r})
other = transformers.AutoConfig.for_model("ahn_llama")
print(json.dumps([type(model).__name__, other.model_type]))
"""
LOADED = ["AHNQwen3ForCausalLM", "ahn_llama"]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ahn, transformers", "transformers, ahn"])
def test_merged_models_load_by_the_auto_classes_after_either_order_of_imports(place, order):
    code = f"import json, {order}\n" + LOAD.format(path=str(place / "merged"))
    out, _ = python("-c", code)
    assert json.loads(out.splitlines()[-1]) == LOADED


@pytest.mark.slow
def test_a_program_of_somebody_else_gets_the_model_types(place, tmp_path):
    """Also one whose package imports `ahn` while Python still looks for the module to run."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("import ahn\n")
    code = "import json, transformers\n" + LOAD.format(path=str(place / "merged"))
    (tmp_path / "theirs" / "__main__.py").write_text(code)
    out, _ = python("-m", "theirs", "-m", "ahn", folder=tmp_path)
    assert json.loads(out.splitlines()[-1]) == LOADED


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("/usr/bin/ahn", ["python", "/usr/bin/ahn", "--help"], True),
        ("C:\\\\ahn.exe".replace("\\", "/"), ["python"], True),
        ("-m", ["python", "-m", "ahn", "--help"], True),
        ("-m", ["python", "-X", "dev", "-m", "ahn.evaluation", "ls"], True),
        ("-m", ["python", "-m", "ahnother"], False),
        ("-m", ["python", "-m", "other", "-m", "ahn"], False),
        ("train.py", ["python", "train.py", "-m", "ahn"], False),
        ("-c", ["python", "-c", "import ahn"], False),
        ("", ["python"], False),
    ],
)
def test_the_package_knows_when_its_own_program_runs(monkeypatch, program, words, expected):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert started_as_program() is expected


NAMES = """
ahn.attach ahn.detach ahn.disabled ahn.memory_off ahn.AHNCache ahn.AHNConfig ahn.from_pretrained
ahn.save_pretrained ahn.use_liger ahn.UnsupportedModel ahn.embedded.load ahn.generation.prefill
ahn.generation.stream ahn.generation.save_session ahn.generation.load_session ahn.training.distill
ahn.evaluation.token_losses ahn.checkpoint.merge ahn.checkpoint.split ahn.checkpoint.inspect
ahn.checkpoint.diff ahn.checkpoint.push_to_hub ahn.cost.cache_bytes ahn.bench.bench_decode
ahn.plots.demo_figure
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", ["-c", "ahn"])
def test_every_public_name_is_there_after_import_alone(program):
    """Also in the package's own program, where all of them are imported on first use."""
    code = f"import sys; sys.argv[0] = {program!r}; import ahn; print({', '.join(NAMES.split())})"
    out, _ = python("-c", code)
    assert len(out.split("<")) > len(NAMES.split())


@pytest.mark.parametrize("package", [ahn, ahn.checkpoint])
def test_faces_list_what_they_have(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no'"):
        _ = package.no
