"""`ahn generate` and `ahn eval` with vLLM equal themselves with transformers; see `.ci/vllm`."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

import pytest

pytest.importorskip("vllm")

from vllm.engine.arg_utils import EngineArgs
from vllm_engines import embedded_folder, prompts, tokenizer_of

from commands import call

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedded_folder(tmp_path_factory.mktemp("folders") / "model", "GatedDeltaNet")


@pytest.fixture
def small(monkeypatch):
    """vLLM takes most of a machine's memory unless it is told how much, and compiles."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def eager(**options):
        return EngineArgs(**{**options, "enforce_eager": True})

    for module in ("vllm.entrypoints.llm", "vllm.engine.arg_utils"):
        monkeypatch.setattr(f"{module}.EngineArgs", eager)


def done(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def test_prompts_of_a_file(tmp_path, folder, small):
    tokenizer = tokenizer_of(folder)
    texts = [tokenizer.decode(ids) for ids in prompts([130, 300, 700])]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    options = ["--model", folder, "--dtype", "float32", "--max-new-tokens", 16]
    lines = done("generate", "--engine", "vllm", "--prompts", file, *options).splitlines()
    found = {line["index"]: line["text"] for line in map(json.loads, lines)}
    for index, text in enumerate(texts):
        assert found[index] + "\n" == done("generate", "--prompt", text, *options)


def is_named_vllm():
    """Whether the engine is installed under its own name; its build for a CPU is not."""
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(is_named_vllm(), reason="vLLM has the name that lm-eval asks for")
def test_an_engine_under_another_name_is_refused_by_eval(tmp_path, folder, small):
    result = call("eval", "ppl", "--engine", "vllm", "--model", folder, "--output", tmp_path / "x")
    assert result.exit_code == 2 and "expected a package named vllm" in result.stderr


@pytest.mark.skipif(not is_named_vllm(), reason="lm-eval asks for a package named vllm")
def test_scores(tmp_path, folder, small):
    """Of continuations and of whole texts, and one that is too long is skipped by both."""
    scores = {}
    for engine, more in {"vllm": (), "transformers": ("--methods", "ahn")}.items():
        said = done(
            "eval", "needle", "ppl", "--engine", engine, "--model", folder, "--dtype", "float32",
            "--lengths", "300,600,1200", "--samples", 1, "--depths", "0,1", "--max-length", 900,
            "--text", "stdlib:argparse", "--output", tmp_path / engine, "--json", *more,
        )  # fmt: skip
        scores[engine] = json.loads(said.splitlines()[-1])["ahn"]
    found, expected = scores["vllm"], scores["transformers"]
    assert found.keys() == expected.keys() and len(found) == 2
    for task, summary in found.items():
        other = expected[task]
        assert (summary["samples"], summary["skipped"]) == (other["samples"], other["skipped"])
        assert summary["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
    assert sum(summary["skipped"] for summary in found.values()) > 0
