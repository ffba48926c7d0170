"""`ahn generate`: its answers are the library's, and what it cannot answer is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ahn
import standin
from ahn.generation import stream
from ahn.io.text import CHUNK_BYTES
from commands import PROMPT, call, error, generated

SOURCE = Path(ahn.__file__).parents[1]


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


def test_a_named_model_has_a_memory_unless_told(monkeypatch, tmp_path):
    standin.install_as(monkeypatch, tmp_path, "toy", cells=("DeltaNet", "Mamba2"))
    assert generated("--model", "toy", "--prompt", PROMPT) == expected(attached())
    options = ("--memory", "Mamba2", "--window", 9)
    other = standin.load("Mamba2", window=9)[0]
    assert generated("--model", "toy", *options, "--prompt", PROMPT) == expected(other)
    options = ("--memory", "none", "--window", 9, "--num-sinks", 4)
    window = attached(window=9)
    with ahn.memory_off(window):
        assert generated("--model", "toy", *options, "--prompt", PROMPT) == expected(window)
    message = "dtype: expected float32 for the toy model, got 'bfloat16'"
    assert message in error("generate", "--model", "toy", "--prompt", "x", "--dtype", "bfloat16")


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


@pytest.mark.slow
def test_ctrl_c_ends_a_process_without_a_traceback(folder):
    """The prompt never ends: pieces are read until the interrupt."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    code = "import sys; sys.argv[0] = 'ahn'; from ahn.cli import main; main()"
    command = ["generate", "--model", str(folder), "--window", "16", "-"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # A shell that starts the tests in the background has them ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        # More than a pipe holds: once it is written, the command is reading.
        process.stdin.write(PROMPT.encode() * (3 * CHUNK_BYTES // len(PROMPT)))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130 and not out
    # It may have read past the tiny model's context, which is worth a line but no traceback.
    assert all(line.startswith(b"warning: ") for line in errors.splitlines()), errors
