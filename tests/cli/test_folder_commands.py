"""`ahn merge`, `split`, `inspect` and `diff`: folders of bases and memories."""

from __future__ import annotations

import json

import pytest

from commands import PROMPT, call, error, generated


def test_merge_inspect_split_and_diff(folder, tmp_path):
    merged, again = tmp_path / "merged", tmp_path / "again"
    assert call("merge", folder, folder / "memory", merged, "--window", 9).exit_code == 0
    result = call("inspect", merged)
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["kind"], found["settings"]["window"]) == ("merged", 9)
    assert "DeltaNet" in result.stdout and "parameters: o_proj.weight" in result.stdout
    assert call("split", merged, again).exit_code == 0
    assert call("diff", folder / "memory", again).exit_code == 0
    result = call("diff", folder, merged)
    assert result.exit_code == 1
    assert "only in" in result.stdout and json.loads(result.stdout.splitlines()[-1])["only_right"]


@pytest.mark.slow
def test_a_merged_model_generates_with_its_memory(folder, tmp_path):
    merged = tmp_path / "merged"
    assert call("merge", folder, folder / "memory", merged).exit_code == 0
    arguments = ("--prompt", PROMPT * 3, "--dtype", "float32")
    apart = generated("--model", folder, "--memory", folder / "memory", *arguments)
    assert generated("--model", merged, *arguments) == apart
    plain = generated("--model", folder, *arguments)
    assert generated("--model", merged, "--memory", "none", *arguments) == plain
    window = generated("--model", folder, "--window", 8, "--num-sinks", 2, *arguments)
    options = ("--memory", "none", "--window", 8, "--num-sinks", 2)
    assert generated("--model", merged, *options, *arguments) == window


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "{base}", "{base}/nothing", "{tmp}/out"), "memory: expected a folder"),
        (("merge", "{base}", "{base}/memory", "{base}"), "expected a new or empty folder"),
        (("merge", "{base}", "{base}", "{tmp}/out"), "expected a memory"),
        (("split", "{base}", "{tmp}/out"), "expected a base merged with a memory"),
        (("split", "{base}", "{tmp}/out", "--format", "x"), "expected one of ahn, released"),
        (("inspect", "{tmp}/none"), "expected a folder, got none"),
        (("diff", "{base}", "{tmp}"), "got a folder without them"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_folder_is_one_line(folder, tmp_path, arguments, message):
    filled = [part.format(base=folder, tmp=tmp_path) for part in arguments]
    assert message in error(*filled)
    assert not list(tmp_path.iterdir())
