"""What all commands have in common: help, slips of the pen, JSON, progress, names, outputs."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest

import standin
from ahn.cli import app
from ahn.io import progress as progress_module
from ahn.io.progress import progress
from commands import PROMPT, call, error

COMMANDS = [
    *(["demo"], ["generate"], ["merge"], ["split"], ["inspect"], ["diff"], ["eval"], ["report"]),
    *(["bench", name] for name in ("prefill", "decode", "batch", "train", "kernels")),
    *([], ["bench"], ["train"]),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_a_short_name_and_an_example(words):
    short, long = call(*words, "-h"), call(*words, "--help")
    assert short.exit_code == long.exit_code == 0 and short.stdout == long.stdout
    after = short.stdout.lower().partition("examples:")[2]
    assert "  ahn " in after or "ahn train" in after, short.stdout[-300:]


def test_the_help_of_training_is_in_groups():
    shown = call("train", "--help").stdout
    groups = ["model and memory:", "data:", "losses, window and sinks:",
              "training, as in transformers:", "options of the original's script:"]  # fmt: skip
    places = [shown.index(f"\n{group}\n") for group in groups]
    assert places == sorted(places) and places[0] < 2000
    options = ["--memory", "--cutoff_len", "--loss_type", "--learning_rate", "--stage"]
    assert all(a < shown.index(f"\n  {o}", a) for a, o in zip(places, options))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["generate", "--modle", "x"], "--model"),
        (["generat"], "generate"),
        (["bench", "prefil"], "prefill"),
        (["bench", "prefill", "--lenghts", "4"], "--lengths"),
        (["train", "--model_name_or_path", "x", "--cutof_len", "3"], "--cutoff_len"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else x,
)
def test_a_slip_of_the_pen_is_named(words, meant):
    assert f"(did you mean {meant}?)" in error(*words)


def test_completion_can_be_installed():
    assert "--install-completion" in call("--help").stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch, *words):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["ahn", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        app(prog_name="ahn")
    monkeypatch.undo()
    return ended.value.code, out.getvalue()


BENCH = ("bench", "prefill", "--model", "tiny", "--lengths", 32, "--windows", 8, "--num-sinks", 2,
         "--dtype", "float32", "--repeats", 1, "--methods", "window",
         "--device", "cpu")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "diff", "bench"])
def test_json_is_asked_for_or_piped(folder, monkeypatch, command):
    words = {"inspect": ("inspect", folder), "bench": BENCH,
             "diff": ("diff", folder / "memory", folder / "memory")}[command]  # fmt: skip
    status, shown = on_a_terminal(monkeypatch, *words)
    assert status == 0 and "{" not in shown and len(shown.splitlines()) >= 1
    status, alone = on_a_terminal(monkeypatch, *words, "--json")
    assert status == 0 and isinstance(json.loads(alone), dict)
    piped = call(*words).stdout.splitlines()
    assert json.loads(piped[-1]).keys() == json.loads(alone).keys()
    assert len(piped) >= 2
    assert len(call(*words, "--json").stdout.splitlines()) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, terminal):
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("tokens") as report:
        for seconds in range(30):
            now[0] = float(seconds)
            report("reading", 100 * seconds, 4000, "KL 0.5")
            if terminal:
                time.sleep(0.01)
    shown = out.getvalue()
    if terminal:
        assert "reading: " in shown and "left" in shown
    else:
        assert shown.splitlines() == [
            "reading: 200 of 4,000 tokens, 100 tokens/s, 0:38 left, KL 0.5",
            "reading: 1,200 of 4,000 tokens, 100 tokens/s, 0:28 left, KL 0.5",
            "reading: 2,200 of 4,000 tokens, 100 tokens/s, 0:18 left, KL 0.5",
        ]


def test_generate_says_how_far_it_has_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(progress_module, "QUIET", 0.0)
    monkeypatch.setattr(progress_module, "BETWEEN", 0.0)
    monkeypatch.setattr("ahn.cli.answer.PIECE", 8)
    (tmp_path / "prompt.txt").write_text(PROMPT * 2)
    words = ("generate", "--model", folder, "--window", 16, "--max-new-tokens", 3)
    result = call(*words, "--file", tmp_path / "prompt.txt")
    lines = result.stderr.splitlines()
    whole = len(standin.tokenizer()(PROMPT * 2)["input_ids"])
    assert result.exit_code == 0 and lines[0].startswith(f"reading: 0 of {whole} tokens")
    assert len(lines) == -(-whole // 8) and "tokens/s" in lines[-1] and "left" in lines[-1]


@pytest.mark.slow
def test_named_models_are_known_to_every_command(tmp_path, monkeypatch):
    standin.install_as(monkeypatch, tmp_path, "toy", cells=("DeltaNet",))
    assert json.loads(call("inspect", "toy", "--json").stdout)["kind"] == "base"
    assert call("diff", "toy", "toy").exit_code == 0
    assert call("merge", "toy", "DeltaNet", tmp_path / "merged").exit_code == 0
    words = [x if x != "tiny" else "toy" for x in BENCH]
    result = call(*words, "--json")
    assert json.loads(result.stdout)["model"] == "toy", result.output


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--png", "{}/no/such.png"),
        ("demo", "--png", "{}"),
        (*BENCH, "--out", "{}/no/such.json"),
        ("eval", "needle", "--model", "no/such", "--output", "{}/file/runs"),
        ("report", "{}/runs", "--output", "{}/file/report"),
        ("merge", "no/such", "no/such", "{}/file/merged"),
        ("split", "no/such", "{}/file/memory"),
        ("train", "--model_name_or_path", "no/such", "--output_dir", "{}/file/out"),
    ],
    ids=lambda words: words[0],
)
def test_outputs_are_checked_before_the_work(tmp_path, words):
    (tmp_path / "file").write_text("in the way")
    said = error(*(str(word).format(tmp_path) for word in words))
    assert "that can be written, got" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
