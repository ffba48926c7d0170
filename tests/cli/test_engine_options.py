"""`--engine vllm` of `ahn generate` and `ahn eval`: what is refused before an engine starts."""

from __future__ import annotations

import json

import pytest

from ahn.checkpoint import merge
from ahn.serving import offline, servers
from commands import call, error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "merged"
    merge("embedded", "DeltaNet", folder)
    return folder


@pytest.fixture
def installed(monkeypatch):
    """vLLM is there; each answer is the number of its prompt's tokens, the last one first."""
    monkeypatch.setattr(servers, "find_spec", lambda name: name)

    def answers(folder, prompts, sampling, dtype):
        for index in reversed(range(len(prompts))):
            yield index, f"{len(prompts[index])} {sampling.max_new_tokens}"

    monkeypatch.setattr(offline, "answers", answers)


def vllm(command, folder, *options):
    what = ["needle", "--output", folder / "runs"] if command == "eval" else []
    return (command, *what, "--model", folder, "--engine", "vllm", *options)


def test_each_line_is_answered_with_its_index(tmp_path, folder, installed):
    file = tmp_path / "prompts.jsonl"
    file.write_text('"import os"\n\n{"prompt": "def read(path):", "id": 7}\n')
    done = call(*vllm("generate", folder, "--prompts", file, "--max-new-tokens", 5))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [{"index": 1, "text": "5 5"}, {"index": 0, "text": "2 5"}]
    one = call(*vllm("generate", folder, "--prompt", "def read(path):"))
    assert one.stdout == "5 128\n"


@pytest.mark.parametrize("line", ['{"text": "x"}', "[1]", '""', "import"])
def test_lines_that_are_no_prompts(tmp_path, folder, installed, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"import"\n{line}\n')
    said = error(*vllm("generate", folder, "--prompts", file))
    assert f"{file}, line 2: expected a string or an object with a prompt, got" in said
    file.write_text("\n")
    assert "expected at least one prompt, got none" in error(
        *vllm("generate", folder, "--prompts", file)
    )


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_options_of_the_other_engine(folder, installed, command):
    for option in ("--window", "--num-sinks", "--prefill-chunk-size", "--memory", "--device"):
        said = error(*vllm(command, folder, option, 3))
        assert f"{option}: expected --engine transformers, got vllm" in said
    assert "--engine: expected transformers or vllm, got 'sglang'" in error(
        *vllm(command, folder), "--engine", "sglang"
    )


def test_methods_and_prompts_of_the_other_engine(folder, installed):
    said = error(*vllm("eval", folder, "--methods", "ahn,full"))
    assert "--methods: expected ahn with --engine vllm, got ahn,full" in said
    said = error("generate", "--model", folder, "--prompts", folder / "config.json")
    assert "--prompts: expected --engine vllm to go with it, got transformers" in said


def test_what_is_no_merged_folder(tmp_path, folder, installed):
    prompt = ["--prompt", "x"]
    assert "expected a folder, got none" in error(*vllm("generate", tmp_path / "none", *prompt))
    merge("embedded", "Slots", tmp_path / "slots")
    assert "slots: expected 0 in vLLM" in error(*vllm("generate", tmp_path / "slots", *prompt))


def test_vllm_that_is_not_there_or_of_another_version(folder, monkeypatch):
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    prompt = ["--prompt", "x"]
    assert "--engine: expected pip install 'ahn[vllm]', got none" in error(
        *vllm("generate", folder, *prompt)
    )
    monkeypatch.setattr(servers, "find_spec", lambda name: name)
    untried = "vllm 0.20.0 (tested: <0.33,>=0.32)"
    monkeypatch.setattr(servers, "untried_versions", lambda name: [untried])
    said = error(*vllm("generate", folder, *prompt))
    assert f"vllm: expected a version that was tested, got {untried}" in said
