"""The command line: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ahn
import standin
from ahn.cli import app
from ahn.generation import stream
from ahn.text import PIECE

SOURCE = Path(ahn.__file__).parents[1]
PROMPT = standin.PARAGRAPH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model and, in `memory`, a memory for it."""
    path = tmp_path_factory.mktemp("model")
    standin.save_base(path)
    model, _ = standin.load("DeltaNet")
    ahn.save_pretrained(model, path / "memory")
    return path


def call(*arguments, **options):
    return CliRunner().invoke(app, [str(x) for x in arguments], **options)


def generated(*arguments, **options):
    """The answer of `ahn generate`, which must succeed without a word on stderr."""
    result = call("generate", "--max-new-tokens", 12, *arguments, **options)
    assert result.exit_code == 0 and not result.stderr, (result.stderr, result.exception)
    return result.stdout


def error(*arguments, **options):
    """The one line of a command that must fail with 2 and print nothing else."""
    result = call(*arguments, **options)
    assert result.exit_code == 2 and not result.stdout, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def expected(model, prompt=PROMPT, **options):
    """The answer by the library itself."""
    ids = standin.tokenizer()(prompt, return_tensors="pt")["input_ids"]
    tokens = list(stream(model, ids, max_new_tokens=12, **options))
    return standin.tokenizer().decode(torch.cat(tokens), skip_special_tokens=True) + "\n"


def attached(window=standin.WINDOW, num_sinks=standin.SINKS):
    return standin.load("DeltaNet", window=window, num_sinks=num_sinks)[0]


def test_version_and_help_name_what_there_is():
    assert call("--version").stdout == f"{ahn.__version__}\n"
    assert {"demo", "generate"} <= set(call("--help").stdout.split())
    shown = call("generate", "--help").stdout
    assert "--num-sinks" in shown and "--num-attn-sinks" not in shown


def test_answers_are_the_librarys(folder):
    with_memory = generated("--model", folder, "--memory", folder / "memory", "--prompt", PROMPT)
    assert with_memory == expected(attached())
    window = generated("--model", folder, "--window", 16, "--num-sinks", 4, "--prompt", PROMPT)
    model = attached()
    with ahn.memory_off(model):
        assert window == expected(model)
    full = generated("--model", folder, "--prompt", PROMPT)
    ids = standin.tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    tokens = standin.base().generate(ids, max_new_tokens=12, do_sample=False)
    answer = standin.tokenizer().decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    assert full == answer + "\n"
    assert len({with_memory, window, full}) == 3


def test_given_window_and_sinks_win_and_old_spellings_are_read(folder):
    new = generated(
        "--model", folder, "--memory", folder / "memory", "--window", 5, "--num-sinks", 1,
        "--prompt", PROMPT,
    )  # fmt: skip
    old = generated(
        "--model", folder, "--memory", folder / "memory", "--sliding-window", 5,
        "--num-attn-sinks", 1, "--prompt", PROMPT,
    )  # fmt: skip
    assert new == old == expected(attached(5, 1)) != expected(attached())


def test_every_source_of_the_prompt_gives_the_same(folder, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    common = ("--model", folder, "--window", 16, "--num-sinks", 4)
    given = generated(*common, "--prompt", PROMPT)
    assert given == generated(*common, "--file", tmp_path / "prompt.txt")
    assert given == generated(*common, "-", input=PROMPT)
    assert given == generated(*common, "--prompt", PROMPT, "--prefill-chunk-size", 3)


def test_sampling_is_repeatable_and_follows_the_seed(folder):
    for mode in ((), ("--window", 16, "--num-sinks", 4)):
        common = ("--model", folder, *mode, "--prompt", PROMPT, "--temperature", 2)
        first, again, other = (generated(*common, "--seed", seed) for seed in (1, 1, 2))
        assert first == again != other
        greedy = generated("--model", folder, *mode, "--prompt", PROMPT)
        assert generated(*common, "--top-k", 1) == greedy
        assert generated(*common, "--top-p", 1e-6) == greedy


def test_the_embedded_model_has_a_memory_unless_told(monkeypatch):
    standin.use(monkeypatch)
    seen = []
    monkeypatch.setattr(
        "ahn.embedded.load", lambda *a, **k: seen.append((a, k)) or standin.load(*a, **k)
    )
    nothing = {"window": None, "num_sinks": None}
    generated("--model", "embedded", "--prompt", PROMPT)
    generated("--model", "embedded", "--memory", "Mamba2", "--window", 9, "--prompt", PROMPT)
    generated("--model", "embedded", "--memory", "none", "--window", 9, "--prompt", PROMPT)
    assert seen == [
        (("GatedDeltaNet",), nothing),
        (("Mamba2",), {"window": 9, "num_sinks": None}),
        ((None,), nothing),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--window", "0"], "--window: expected an integer >= 1, got '0'"),
        (["--prompt", "x", "--window", "a"], "--window: expected an integer >= 1, got 'a'"),
        (["--prompt", "x", "--num-sinks", "-1"], "--num-sinks: expected an integer >= 0"),
        (["--prompt", "x", "--num-sinks", "1"], "--num-sinks: expected --window or --memory"),
        (["--prompt", "x", "--top-p", "0"], "--top-p: expected a number above 0 and at most 1"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature: expected a number >= 0"),
        (["--prompt", "x", "--dtype", "int8"], "--dtype: expected one of auto, float32"),
        (
            ["--prompt", "x", "--liger", "--device", "cpu"],
            "use_liger: expected all weights",
        ),
        (["--prompt", "x", "--device", "abacus"], "--device: expected one that PyTorch can use"),
        (["--prompt", "x", "--unknown"], "command line: expected an option of --help"),
        (["--prompt", "x", "--memory", "Elman"], "memory: expected a folder or a name on the hub"),
        (["--prompt", ""], "prompt: expected some text, got none"),
        (["--prompt", "x", "-"], "prompt: expected exactly one of --prompt, --file and -, got 2"),
        ([], "prompt: expected exactly one of --prompt, --file and -, got 0"),
        (["x"], "command line: expected - for standard input, got 'x'"),
        (["--file", "missing"], "missing: expected a file that can be used"),
        (["--file", "latin1"], "latin1: expected UTF-8 text, got the byte 0xfc"),
        (["--prompt", "x", "--window"], "--window: expected a value, got none"),
    ],
)
def test_what_cannot_be_answered_is_one_line(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("latin1").write_bytes("Grüße".encode("latin1"))
    assert message in error("generate", "--model", folder, *arguments)


def test_folders_without_what_is_needed_are_one_line(folder, tmp_path):
    common = ("generate", "--prompt", "x", "--model")
    assert "--model: expected a folder with config.json" in error(*common, tmp_path)
    assert "ahn_config.json" in error(*common, folder, "--memory", tmp_path)
    assert "float32" in error(*common, "embedded", "--dtype", "bfloat16")
    assert "command line: expected a command" in error("no-such-command")


def test_demo_prints_a_table_and_json_and_draws_the_same(monkeypatch, tmp_path):
    standin.use(monkeypatch)
    drawn = []
    monkeypatch.setattr("ahn.plots.demo_figure", lambda result, path: drawn.append((result, path)))
    result = call("demo", "--tokens", 300, "--steps", 2, "--png", tmp_path / "demo.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    values = json.loads(lines[-1])
    rows = {row["name"]: row for row in values["rows"]}
    assert len(rows) == 6 and values["environment"]["ahn"] == ahn.__version__
    for name, row in rows.items():
        line = next(line for line in lines if f"│ {name} " in line)
        assert f"{row['bits_per_byte']:.4f}" in line
    assert json.loads(json.dumps(drawn[0][0])) == values and drawn[0][1] == tmp_path / "demo.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing"], "missing: expected a file that can be used"),
        (["--text", "short"], "short: expected a text of more than 20 tokens, got less"),
        (["--text", "latin1"], "latin1: expected UTF-8 text, got the byte 0xfc"),
        (["--tokens", "20"], "tokens: expected more than the budget of 20, got 20"),
        (["--steps", "-1"], "--steps: expected an integer >= 0, got '-1'"),
        (["--png", "no/such.png"], "--png: expected a file in a folder that can be written"),
    ],
)
def test_a_demo_that_cannot_run_writes_nothing(monkeypatch, tmp_path, arguments, message):
    standin.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("latin1").write_bytes("Grüße".encode("latin1"))
    Path("short").write_text("short")
    assert message in error("demo", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin1", "short"]


def test_an_interrupted_demo_writes_nothing(monkeypatch, tmp_path):
    standin.use(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ahn.demo.run.distill", interrupted)
    result = call("demo", "--tokens", 100)
    assert result.exit_code == 130
    assert not result.stdout and not list(tmp_path.iterdir())


def test_ctrl_c_ends_a_process_without_a_traceback(folder):
    """The prompt never ends: pieces are read until the interrupt."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = ["generate", "--model", str(folder), "--window", "16", "-"]
    with subprocess.Popen(
        [sys.executable, "-c", "from ahn.cli import main; main()", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # A shell that starts the tests in the background has them ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        # More than a pipe holds: once it is written, the command is reading.
        process.stdin.write(PROMPT.encode() * (3 * PIECE // len(PROMPT)))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130 and not out
    # It may have read past the tiny model's context, which is worth a line but no traceback.
    assert all(line.startswith(b"warning: ") for line in errors.splitlines()), errors


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
