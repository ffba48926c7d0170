"""What a user gets wrong, or what a machine cannot, is one line; an interrupt is none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ahn
import standin
from ahn.checkpoint import load_tokenizer
from ahn.cli import answer
from ahn.cli.errors import out_of_memory
from ahn.config import AHNConfig
from ahn.cost import Shape, cache_bytes
from ahn.runtime.free_memory import largest_window
from ahn.training.arguments import ModelArguments, RunArguments
from commands import error, generated
from tiny_models import new_model

SOURCE = Path(ahn.__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--dtype", "flaot32"], "--dtype: expected one of auto, float32"),
        (["bench", "decode", "--model", "qwen2.5-3bb"], "--model: expected qwen2.5-0.5b"),
        (["bench", "decode", "--device", "abacus"], "--device: expected one that PyTorch can use"),
        (["bench", "kernels", "--device", "abacus"], "--device: expected one that PyTorch can"),
        (["demo", "--png", "/nowhere/at/all.png"], "--png: expected a file in a folder"),
    ],
    ids=str,
)
def test_typos_are_one_line(folder, arguments, message):
    model = ["--model", folder, "--prompt", "x"] if arguments[0] == "generate" else []
    assert message in error(*arguments, *model)


def test_a_folder_without_a_tokenizer(tmp_path):
    standin.base().save_pretrained(tmp_path)
    said = error("generate", "--model", tmp_path, "--prompt", "x")
    assert "expected a tokenizer beside the model, got a folder without one" in said


def test_memory_that_does_not_suffice_says_so(folder):
    """As the allocators of PyTorch say it, and Python's own."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert "free on the CPU" in (out_of_memory(caught.value) or "")
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
    assert "expected 20.00 GiB free on the GPU" in (out_of_memory(gpu) or "")
    assert out_of_memory(MemoryError()) and out_of_memory(RuntimeError("a fault")) is None


def test_memory_that_does_not_suffice_says_which_window_fits(monkeypatch):
    """A text of half the free bytes, of the cache alone: rows of all layers, gates and states."""
    model = new_model(window=2**40)
    settings, cell = (
        AHNConfig.from_dict(model.config.ahn_config),
        type(model.model.layers[0].ahn.fn),
    )
    for fits in (1, 77, 12345):
        size = cache_bytes(Shape.of(model.config), 1, settings.with_budget(fits), cell, number=4)
        assert largest_window(model, 2 * size) == fits
    assert largest_window(model, 100) == 0
    monkeypatch.setattr(answer, "free_memory", lambda device: 2 * size)
    said = r"expected \d+ bytes free on the CPU, got less; --window 12345 fits"
    with pytest.raises(ValueError, match=said), answer._says_what_fits(model):
        torch.empty(2**50)
    with pytest.raises(ZeroDivisionError), answer._says_what_fits(model):
        raise ZeroDivisionError


def test_tokens_that_the_base_has_not(folder, tmp_path):
    """A tokenizer may be larger than its base, and matters once such a token is asked for."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tokenizer = load_tokenizer(copy)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(copy)
    for more in ([], ["--window", "16"]):
        generated("--model", copy, "--prompt", "some", *more)
        said = error("generate", "--model", copy, "--prompt", "some <more>", *more)
        assert f"tokens: expected ids below {standin.VOCABULARY}, the size of the base's" in said
        assert f"got {standin.VOCABULARY}" in said


@pytest.mark.parametrize("dtype", ["flaot32", "int8", ""])
def test_a_dtype_that_is_none(dtype):
    with pytest.raises(ValueError, match="dtype: expected one of auto, float32"):
        ModelArguments("embedded", dtype=dtype)


def test_a_report_tool_that_is_not_installed(tmp_path):
    message = r"report_to: expected an installed tool of .*'nosuch'"
    if not hasattr(RunArguments, "activation_checkpointing"):  # as in transformers 5.0
        message = "transformers: expected a version that knows activation_checkpointing, to train"
    with pytest.raises(ValueError, match=message):
        RunArguments(output_dir=str(tmp_path), report_to=["nosuch"], use_cpu=True)


@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_an_interrupt_during_imports_says_nothing(seconds, folder):
    """Sent once the package has begun to be imported."""
    code = "import sys; sys.argv[0] = 'ahn'; import ahn; print('x', flush=True)\n" \
           "from ahn.cli import main; main()"  # fmt: skip
    words = ["generate", "--model", str(folder), "--prompt", "x"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130 and not errors, errors.decode()
